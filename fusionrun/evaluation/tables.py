"""evaluation.json for people: a main table in Markdown and on the terminal, a long one as CSV."""

from collections.abc import Callable, Iterator

from rich.console import Group
from rich.text import Text

from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.common.typed_fields import plain
from fusionrun.evaluation.alternatives import METHODS
from fusionrun.evaluation.schema import (
    Difference,
    Evaluation,
    FailedRow,
    MethodResult,
    OverSeeds,
    RowResult,
)
from fusionrun.logs.csv import write_csv
from fusionrun.study.paths import Layout
from fusionrun.tables.markdown import markdown_table
from fusionrun.tables.table import Column, Table
from fusionrun.tables.terminal import terminal_table

Entry = RowResult | FailedRow

TITLE = "Fused models and their best alternatives"
LEGEND = (
    "Test accuracy in percent. The best alternative is the one with the highest validation "
    "accuracy; difference: fused minus it in points, with its 95 % interval (paired bootstrap) "
    "and McNemar's p. NLL (nats) and ECE (percent) of both, each after a temperature fitted on "
    "validation."
)
CONTROLS_TITLE = "Does fusion itself help? Fused models and their controls"
SEEDS_TITLE = "Mean ± sample standard deviation over seeds"
SUMMARISED = ("fused", "best_expert", "mean_probabilities", "mean_logits", "weighted")

CSV_COLUMNS = (
    "task",
    "model",
    "fusion",
    "variant",
    "seed",
    "alpha",
    "epoch",
    "contender",
    "stage",
    "top1",
    "top5",
    "nll",
    "ece",
    "brier",
    "temperature",
    "calibrated_nll",
    "calibrated_ece",
    "calibrated_brier",
    "difference",
    "low",
    "high",
    "only_fused",
    "only_other",
    "p_value",
)


def write(layout: Layout, evaluation: Evaluation) -> None:
    """evaluation.json, .md and .csv. Raises OSError."""
    write_json(layout.evaluation("json"), plain(evaluation))
    write_text(layout.evaluation("md"), markdown(evaluation))
    write_csv(layout.evaluation("csv"), CSV_COLUMNS, list(long_rows(evaluation)))


def show(evaluation: Evaluation) -> Group:
    """For the terminal: of every row a line for fused, and below it its best alternative's."""
    parts = [
        Table(TITLE, LINES, evaluation.entries, LEGEND),
        Table(CONTROLS_TITLE, CONTROLS, controls(evaluation)),
        Table(SEEDS_TITLE, SEEDS, evaluation.over_seeds),
    ]
    drawn = (terminal_table(table) for table in parts if table.items)
    return Group(*drawn, *(Text(line) for line in remarks(evaluation)))


def markdown(evaluation: Evaluation) -> str:
    """evaluation.md."""
    data = evaluation.data
    parts = [
        f"# {TITLE}\n\n{evaluation.study}, {evaluation.evaluated}: {data.name}, "
        f"{data.test_images} test and {data.val_images} validation images.\n",
        markdown_table(Table(TITLE, MAIN, evaluation.entries)),
        f"{LEGEND}\n",
        "".join(f"- {line}\n" for line in remarks(evaluation)),
    ]
    for table in (
        Table(CONTROLS_TITLE, CONTROLS, controls(evaluation)),
        Table(SEEDS_TITLE, SEEDS, evaluation.over_seeds),
    ):
        if table.items:
            parts += [f"## {table.title}\n", markdown_table(table)]
    return "\n".join(part for part in parts if part)


def long_rows(evaluation: Evaluation) -> Iterator[dict[str, object]]:
    """A line for each method of each row that was measured, by CSV_COLUMNS."""
    for row in evaluation.rows:
        for method in row.methods:
            found = {**plain(row), **plain(method), "contender": method.key}
            found |= {f"calibrated_{key}": value for key, value in found["calibrated"].items()}
            found |= plain(method.difference) if method.difference else {}
            found["difference"] = method.difference and method.difference.points
            yield {column: found.get(column) for column in CSV_COLUMNS}


def measured(read: Callable[[RowResult], object]) -> Callable[[Entry], object]:
    """Of a row that was measured; None of others."""
    return lambda entry: read(entry) if isinstance(entry, RowResult) else None


def both(write: Callable[[MethodResult], str], between: str) -> Callable[[Entry], object]:
    """Of the fused model and its best alternative."""
    return measured(lambda row: between.join(map(write, (row.fused, row.best_alternative))))


def nll(method: MethodResult) -> str:
    return f"{method.calibrated.nll:.3f}" if method.calibrated else NOT_AVAILABLE


def ece(method: MethodResult) -> str:
    return f"{method.calibrated.ece:.1f}" if method.calibrated else NOT_AVAILABLE


def points(difference: Difference, between: str = " ") -> str:
    """With the interval; in brackets on the same line."""
    interval = f"{difference.low:+.2f} to {difference.high:+.2f}"
    return f"{difference.points:+.2f}" + (f" ({interval})" if between == " " else f"\n{interval}")


def spread_of(key: str) -> Callable[[OverSeeds], str | None]:
    def read(group: OverSeeds) -> str | None:
        found = group.columns.get(key)
        return None if found is None else found.text()

    return read


MAIN = (
    Column("model", "text", lambda row: row.model),
    Column("fusion", "text", lambda row: row.variant),
    Column("fused", "percent", measured(lambda row: row.fused.top1)),
    Column("best alternative", "text", measured(lambda row: row.best_alternative.label)),
    Column("its", "percent", measured(lambda row: row.best_alternative.top1)),
    Column("difference", "written", measured(lambda row: points(row.difference))),
    Column("p", "p", measured(lambda row: row.difference.p_value)),
    Column("NLL", "written", both(nll, " / ")),
    Column("ECE", "written", both(ece, " / ")),
)
LINES = (
    Column("row", "text", lambda row: f"{row.model}\n{row.variant}"),
    Column("method", "text", both(lambda method: method.label, "\n")),
    Column("top-1", "written", both(lambda method: f"{method.top1:.2f}", "\n")),
    Column("difference", "written", measured(lambda row: points(row.difference, "\n"))),
    Column("p", "p", measured(lambda row: row.difference.p_value)),
    Column("NLL", "written", both(nll, "\n")),
    Column("ECE", "written", both(ece, "\n")),
)
CONTROLS = (  # of (row, control, difference)
    Column("model", "text", lambda item: item[0].model),
    Column("fusion", "text", lambda item: item[0].variant),
    Column("fused", "percent", lambda item: item[0].fused.top1),
    Column("control", "text", lambda item: METHODS[item[1].key].heading),
    Column("its", "percent", lambda item: item[1].top1),
    Column("difference", "written", lambda item: points(item[2])),
    Column("p", "p", lambda item: item[2].p_value),
)
SEEDS = (
    Column("model", "text", lambda group: group.model),
    Column("fusion", "text", lambda group: group.fusion),
    Column("alpha", "written", lambda group: group.alpha),
    Column("seeds", "whole", lambda group: group.seeds),
    *(Column(METHODS[key].heading, "written", spread_of(key)) for key in SUMMARISED),
    Column("gain", "written", spread_of("gain")),
)


def controls(evaluation: Evaluation) -> list[tuple[RowResult, MethodResult, Difference]]:
    """Each row with each of its controls."""
    return [
        (row, method, method.difference)
        for row in evaluation.rows
        for method in row.methods
        if method.stage == "control" and method.difference
    ]


def remarks(evaluation: Evaluation) -> list[str]:
    """The verdict, then what a reader must not overlook."""
    lines = []
    if differences := [row.difference for row in evaluation.in_question]:
        won = sum(difference.low > 0 for difference in differences)
        lost = sum(difference.high < 0 for difference in differences)
        lines.append(
            f"Of {len(differences)} rows, fused is ahead of its best alternative in {won} and "
            f"behind in {lost}; {len(differences) - won - lost} too close to tell (the interval "
            "holds 0)."
        )
    for row in evaluation.rows:
        if row.contributions.alarm:
            lines.append(f"{row.task}: {row.contributions.alarm}")
    lines += [f"{row.task}: not evaluated: {row.problem}" for row in evaluation.failures]
    if evaluation.training:
        lines.append(evaluation.training.text())
    return lines
