"""The final table: every row's fusion beside the cheap alternatives, on the test set."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rich.console import Console, Group, JustifyMethod
from rich.table import Table

from fusionrun.common.atomic_files import write_text
from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.components.manifest import read_manifest
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import SINGLE
from fusionrun.study.study import Study
from fusionrun.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Result:
    """One row's accuracies on the test set, in percent; None: not measured."""

    task: str
    model: str
    fusion_type: str  # or single; a control is named after its fusion type
    seed: int
    alpha: float
    epoch: int | None = None  # that validation selected
    val_accuracy: float | None = None
    fused: float | None = None
    best_expert: float | None = None  # after fusion training; chosen on validation
    mean_probabilities: float | None = None  # of the experts after fusion training
    mean_logits: float | None = None
    before_best_expert: float | None = None  # before fusion training; chosen on validation
    before_mean_probabilities: float | None = None
    before_mean_logits: float | None = None
    control: str | None = None  # frozen, detached

    @property
    def gain(self) -> float | None:
        """Points of the fused model over the best of all alternatives."""
        rivals = [
            self.best_expert,
            self.mean_probabilities,
            self.mean_logits,
            self.before_best_expert,
            self.before_mean_probabilities,
            self.before_mean_logits,
        ]
        measured = [value for value in rivals if value is not None]
        return None if self.fused is None or not measured else self.fused - max(measured)


# column of the files, heading for people
COLUMNS: tuple[tuple[str, str], ...] = (
    ("task", "row"),
    ("model", "model"),
    ("fusion_type", "fusion"),
    ("seed", "seed"),
    ("alpha", "alpha"),
    ("epoch", "epoch"),
    ("val_accuracy", "val."),
    ("fused", "fused"),
    ("best_expert", "best expert"),
    ("mean_probabilities", "mean prob."),
    ("mean_logits", "mean logits"),
    ("before_best_expert", "before: expert"),
    ("before_mean_probabilities", "before: prob."),
    ("before_mean_logits", "before: logits"),
    ("gain", "gain"),
)
HEADINGS = {
    **dict(COLUMNS),
    "seeds": "seeds",
    "frozen": "experts frozen",
    "detached": "experts without fusion",
    "single": "one network",
}
SUMMARISED = (
    "fused",
    "best_expert",
    "mean_probabilities",
    "mean_logits",
    "before_mean_logits",
    "gain",
)
# what a narrow terminal can do without, first to go first; the files have everything
DISPENSABLE = ("epoch", "val_accuracy", "before_mean_probabilities", "mean_probabilities")
SVG_WIDTH = 150  # columns of the picture
NUMBER_WIDTH = 10  # of a column of numbers, with its frame


def collect_results(study: Study) -> list[Result]:
    """A result for every row of the study; rows without a manifest have no numbers."""
    results = []
    for row in study.rows:
        known = {
            "task": row.name,
            "model": row.model,
            "fusion_type": row.method,
            "seed": row.seed,
            "alpha": row.alpha,
            "control": row.control,
        }
        try:
            manifest = read_manifest(study.layout.row(row.model, row.variant).manifest)
        except CheckpointError:
            results.append(Result(**known))  # type: ignore[arg-type]
            continue
        fields = Result.__dataclass_fields__
        test = {key: value for key, value in manifest.test.items() if key in fields}
        selected = {"epoch": manifest.epoch, "val_accuracy": manifest.val_accuracy}
        results.append(Result(**known, **selected, **test))  # type: ignore[arg-type]
    return results


def over_seeds(results: Sequence[Result]) -> list[dict[str, str]]:
    """Mean and sample standard deviation of the rows that differ in nothing but their seed."""
    groups: dict[tuple[str, str, float], list[Result]] = {}
    for result in results:
        if result.fused is not None:
            groups.setdefault((result.model, result.fusion_type, result.alpha), []).append(result)
    return [
        {
            "model": model,
            "fusion_type": fusion,
            "alpha": f"{alpha:g}",
            "seeds": str(len(group)),
            **{column: _mean_and_sd(group, column) for column in SUMMARISED},
        }
        for (model, fusion, alpha), group in groups.items()
        if len(group) > 1
    ]


def controls(results: Sequence[Result]) -> list[dict[str, str]]:
    """Every row that has controls beside them; they settle whether fusion itself helped."""
    by_name = {(r.model, r.fusion_type, r.seed, r.alpha): r for r in results}
    singles = {(r.model, r.seed): r for r in results if r.fusion_type == SINGLE}
    found = []
    for row in results:
        frozen, detached = (
            by_name.get((row.model, f"{row.fusion_type}-{control}", row.seed, row.alpha))
            for control in ("frozen", "detached")
        )
        single = singles.get((row.model, row.seed))
        if row.control or row is single or not (frozen or detached or single):
            continue
        accuracies = {
            "fused": row.fused,
            "frozen": frozen.fused if frozen else None,
            "detached": detached.mean_probabilities if detached else None,
            "single": single.fused if single else None,
        }
        names = {name: _cell(row, name) for name in ("model", "fusion_type", "seed", "alpha")}
        found.append(names | {name: _percent(value) for name, value in accuracies.items()})
    return found


def _percent(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.2f}"


def _mean_and_sd(group: Sequence[Result], column: str) -> str:
    values = [value for result in group if (value := getattr(result, column)) is not None]
    if len(values) < len(group):
        return NOT_AVAILABLE
    sign = "+" if column == "gain" else ""
    return f"{fmean(values):{sign}.2f} ± {stdev(values):.2f}"


def write_results(layout: Layout, results: Sequence[Result]) -> None:
    """results.csv, results.md and results.svg in the output directory."""
    write_text(layout.results("csv"), _as_csv(results))
    write_text(layout.results("md"), _as_markdown(results))
    write_text(layout.results("svg"), _as_svg(results))


def results_tables(results: Sequence[Result], width: int) -> Group:
    """For people: every row; means over seeds and controls where there are any."""
    tables = [_rows_table(results, width)]
    for title, caption, lines in (
        ("Mean ± standard deviation over seeds", SEEDS_CAPTION, over_seeds(results)),
        ("Does fusion itself help?", CONTROLS_CAPTION, controls(results)),
    ):
        if lines:
            tables.append(_small_table(title, caption, lines))
    return Group(*tables)


def _small_table(title: str, caption: str, summaries: Sequence[dict[str, str]]) -> Table:
    table = Table(title=title, caption=caption)
    for column in summaries[0]:
        justify: JustifyMethod = "left" if column in ("model", "fusion_type") else "right"
        table.add_column(HEADINGS[column].replace(" ", "\n"), justify=justify, overflow="fold")
    for summary in summaries:
        table.add_row(*summary.values())
    return table


def _rows_table(results: Sequence[Result], width: int) -> Table:
    """Every row, at most `width` columns wide where that is possible."""
    table = Table(title="Test accuracy in percent, read once", caption=CAPTION)
    names = max(len(result.model) + len(result.fusion_type) for result in results) + 7
    shown = _columns_that_fit(results, (width - names) // NUMBER_WIDTH)
    for column, heading in shown:
        text = column in ("model", "fusion_type")
        table.add_column(
            heading.replace(" ", "\n"), justify="left" if text else "right", overflow="fold"
        )
    for result in results:
        cells = (_cell(result, column) for column, _ in shown)
        table.add_row(*cells, style="dim" if result.fused is None else "")
    return table


def _columns_that_fit(results: Sequence[Result], numbers: int) -> list[tuple[str, str]]:
    """Model and fusion, then as many of the numbers as there is room for."""
    unvaried = {c for c in ("seed", "alpha") if len({getattr(r, c) for r in results}) <= 1}
    shown = [entry for entry in COLUMNS if entry[0] not in {"task", *unvaried}]
    for column in DISPENSABLE:
        if len(shown) - 2 > numbers:
            shown = [entry for entry in shown if entry[0] != column]
    return shown


def _cell(result: Result, column: str) -> str:
    value = getattr(result, column)
    if value is None:
        return NOT_AVAILABLE
    if column == "gain":
        return f"{value:+.2f}"
    if column in ("seed", "epoch", "task", "model", "fusion_type"):
        return str(value)
    return f"{value:g}" if column == "alpha" else f"{value:.2f}"


def _as_csv(results: Sequence[Result]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(column for column, _ in COLUMNS)
    for result in results:
        writer.writerow(_cell(result, column) for column, _ in COLUMNS)
    return buffer.getvalue()


def _as_markdown(results: Sequence[Result]) -> str:
    columns = [column for column, _ in COLUMNS if column != "task"]
    rows = [[_cell(result, column) for column in columns] for result in results]
    text = _markdown_table(columns, rows) + f"\n{LEGEND}\n"
    for lines, legend in (
        (over_seeds(results), SEEDS_LEGEND),
        (controls(results), CONTROLS_LEGEND),
    ):
        if lines:
            rows = [list(line.values()) for line in lines]
            text += f"\n{_markdown_table(list(lines[0]), rows)}\n{legend}\n"
    return text


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[HEADINGS[column] for column in columns]]
    lines.append(["---" if i < 2 else "--:" for i in range(len(columns))])
    return "".join(f"| {' | '.join(line)} |\n" for line in [*lines, *rows])


CAPTION = "before: the experts without any fusion training; gain: fused minus the best alternative"

LEGEND = (
    "Accuracy on the test set in percent, read once, after validation selected the epoch. "
    "`best expert`, `mean prob.` and `mean logits` use the experts after fusion training, "
    "`before` the same experts as their own training left them; the best expert is chosen on "
    "validation. `gain`: fused minus the best alternative, in points."
)

SEEDS_CAPTION = "seeds of fusion training; the experts before it are the same"
SEEDS_LEGEND = (
    "Mean ± sample standard deviation over rows that differ in the seed of their fusion training "
    "alone. They start from the same experts."
)

CONTROLS_CAPTION = "paired with the row by seed; what each column is stands in results.md"
CONTROLS_LEGEND = (
    "Does fusion itself help? `experts frozen`: the same fusion on experts that fusion training "
    "leaves as they are. `experts without fusion`: the mean of the probabilities of experts that "
    "only their own losses train on, everything else as in the row. `one network`: the "
    "architecture once, trained as an expert is, on all images that experts and fusion saw."
)


def _as_svg(results: Sequence[Result]) -> str:
    console = Console(record=True, width=SVG_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(results_tables(results, SVG_WIDTH))
    return console.export_svg(title="fusionrun")
