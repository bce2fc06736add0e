"""evaluation.json for people: a main table in Markdown and on the terminal, a long one as CSV."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich.console import Group
from rich.text import Text

from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.common.typed_fields import plain
from fusionrun.evaluation.alternatives import FUSED, METHODS, STACKING
from fusionrun.evaluation.controls_table import controls_table
from fusionrun.evaluation.matrix import fusion_matrices
from fusionrun.evaluation.over_seeds import TRAINING, OverSeeds
from fusionrun.evaluation.row_names import members_of, mixed_notes
from fusionrun.evaluation.schema import (
    Evaluation,
    FailedRow,
    MethodResult,
    RowResult,
)
from fusionrun.logs.csv import write_csv
from fusionrun.study.paths import Layout
from fusionrun.tables import headline
from fusionrun.tables.markdown import escape, markdown_table
from fusionrun.tables.table import Column, Table
from fusionrun.tables.terminal import terminal_table

Entry = RowResult | FailedRow

TITLE = "Fused models and the mean of their experts' probabilities"
LEGEND = (
    f"Test accuracy in percent. {headline.GAIN}: fused minus the mean of the experts' "
    "probabilities in points, with its 95 % interval (paired bootstrap over test images) and "
    "McNemar's p, then corrected over the rows (Holm). Both speak of other test images, not of "
    f"training again. Beside it likewise {headline.VS_BEST_EXPERT} and "
    f"{headline.VS_BEST_ALTERNATIVE}: the expert and the alternative with the highest validation "
    "accuracy; nothing is chosen on the test set. NLL (nats) and ECE (percent) of fused and of the "
    "mean, each after a temperature fitted on validation."
)
SEEDS_TITLE = "Mean ± sample standard deviation over seeds"
TWO_LUCKS = (
    "±: sample standard deviation over seeds, how far training again moves a row. In brackets the "
    "mean's 95 % interval over test images, how far other images would move it; it takes the seeds "
    "as they are."
)
SEEDS_NOTE = (
    f"{TWO_LUCKS} `seeds of`: whose differ; rows whose {TRAINING} has another seed start from the "
    "same experts."
)
TYPES_TITLE = "Fusion types against each other"
TYPES_NOTE = (
    f"{TWO_LUCKS} `best other`: of the same architecture and alpha the type with the highest mean "
    "validation accuracy; the difference is over the seeds that both have. p: exact sign-flip test "
    "over test images of the means over seeds (with one seed McNemar's), then corrected over all "
    "lines (Holm)."
)
SUMMARISED = (
    *(FUSED.key, headline.AVERAGING, headline.BEST_EXPERT),
    *("mean_logits", "weighted", STACKING),
)
MARGINS = {  # by their names in `numbers`
    headline.GAIN_KEY: headline.GAIN,
    "vs_best_expert": headline.VS_BEST_EXPERT,
    "vs_best_alternative": headline.VS_BEST_ALTERNATIVE,
    "gain": headline.VS_BEST_ALTERNATIVE,  # as version 0.1 calls it
}

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
    "members",
    "expert_seed",
    "p_holm",
)


def write(layout: Layout, evaluation: Evaluation) -> None:
    """evaluation.json, .md and .csv. Raises OSError."""
    tree = plain(evaluation)
    for entry, row in zip(tree["rows"], evaluation.entries, strict=True):
        if isinstance(row, RowResult):  # once more by its name: what most readers come for
            entry[headline.GAIN_KEY] = plain(row.gain_over_averaging)
    write_json(layout.evaluation("json"), tree)
    write_text(layout.evaluation("md"), markdown(evaluation))
    write_csv(layout.evaluation("csv"), CSV_COLUMNS, list(long_rows(evaluation)))


def show(evaluation: Evaluation, width: int) -> Group:
    """For the terminal: of every row a line for fused, and below it one for the mean."""
    main = Table(TITLE, LINES, evaluation.entries, LEGEND, images=evaluation.data.images)
    notes = (Text(note, "dim") for note in mixed_notes(evaluation.entries))
    more = (terminal_table(table, width) for table in more_tables(evaluation))
    words = (evaluation.verdict, *remarks(evaluation))
    return Group(terminal_table(main, width), *notes, *more, *(Text(line) for line in words))


def markdown(evaluation: Evaluation) -> str:
    """evaluation.md."""
    data = evaluation.data
    main = Table(TITLE, MAIN, evaluation.entries, images=data.images)
    parts = [
        f"# {TITLE}\n\n{evaluation.study}, {evaluation.evaluated}: {data.name}, "
        f"{data.test_images} test and {data.val_images} validation images.\n",
        f"{evaluation.verdict}\n",
        markdown_table(main),
        f"{LEGEND}\n",
        "".join(f"- {escape(line)}\n" for line in mixed_notes(evaluation.entries)),
        "".join(f"- {line}\n" for line in remarks(evaluation)),
    ]
    for table in more_tables(evaluation):
        parts += [f"## {table.title}\n", markdown_table(table), f"{table.note}\n"]
    return "\n".join(part for part in parts if part)


def more_tables(evaluation: Evaluation) -> list[Table]:
    """Those that the study gives rise to."""
    images = evaluation.data.images
    tables = [
        *matrices(evaluation),
        types_table(evaluation),
        controls_table(evaluation),
        Table(
            SEEDS_TITLE, seeds_columns(evaluation), evaluation.over_seeds, SEEDS_NOTE, images=images
        ),
    ]
    return [table for table in tables if table.items]


def matrices(evaluation: Evaluation) -> list[Table]:
    """Of a grid, controls aside."""
    cells = [(row, row.fused.top1, row.gain_over_averaging.points) for row in evaluation.rows]
    return fusion_matrices(cells, evaluation.data.images)


def long_rows(evaluation: Evaluation) -> Iterator[dict[str, object]]:
    """A line for each method of each row that was measured, by CSV_COLUMNS."""
    members = members_of(evaluation.rows)
    for row in evaluation.rows:
        for method in row.methods:
            found = {**plain(row), **plain(method), "contender": method.key}
            found |= {f"calibrated_{key}": value for key, value in found["calibrated"].items()}
            found |= plain(method.difference) if method.difference else {}
            found["difference"] = method.difference and method.difference.points
            found["members"] = members.get(row.model)
            yield {column: found.get(column) for column in CSV_COLUMNS}


def measured(read: Callable[[RowResult], object]) -> Callable[[Entry], object]:
    """Of a row that was measured; None of others."""
    return lambda entry: read(entry) if isinstance(entry, RowResult) else None


def both(write: Callable[[MethodResult], str], between: str) -> Callable[[Entry], object]:
    """Of the fused model and the mean of its experts' probabilities."""
    return measured(lambda row: between.join(map(write, (row.fused, row.averaging))))


def nll(method: MethodResult) -> str:
    return f"{method.calibrated.nll:.3f}" if method.calibrated else NOT_AVAILABLE


def ece(method: MethodResult) -> str:
    return f"{method.calibrated.ece:.1f}" if method.calibrated else NOT_AVAILABLE


GAINS = (
    Column(headline.GAIN, "margin", measured(lambda row: row.gain_over_averaging.margin)),
    Column("p", "p", measured(lambda row: row.gain_over_averaging.p_value), dispensable=2),
    Column("p (Holm)", "p", measured(lambda row: row.gain_p_holm), dispensable=3),
)
VS_EXPERT = Column(
    headline.VS_BEST_EXPERT, "margin", measured(lambda row: row.vs_best_expert.margin)
)
BEST_EXPERT = Column("best expert's name", "text", measured(lambda row: row.best_expert_name))
VS_ALTERNATIVE = (
    Column("best alternative", "text", measured(lambda row: row.best_alternative.label)),
    Column(
        headline.VS_BEST_ALTERNATIVE,
        "margin",
        measured(lambda row: row.vs_best_alternative.margin),
        dispensable=1,
    ),
)
MAIN = (
    Column("model", "name", lambda row: row.model),
    Column("fusion", "name", lambda row: row.variant),
    Column("fused", "accuracy", measured(lambda row: row.fused.top1)),
    Column("mean prob.", "accuracy", measured(lambda row: row.averaging.top1)),
    *GAINS,
    BEST_EXPERT,
    VS_EXPERT,
    *VS_ALTERNATIVE,
    Column("NLL", "written", both(nll, " / ")),
    Column("ECE", "written", both(ece, " / ")),
)
LINES = (
    Column("row", "name", lambda row: f"{row.model}\n{row.variant}"),
    Column("fused", "accuracy", measured(lambda row: row.fused.top1)),
    Column("mean prob.", "accuracy", measured(lambda row: row.averaging.top1)),
    *GAINS,
    VS_EXPERT,
    VS_ALTERNATIVE[1],
)


def seeds_columns(evaluation: Evaluation) -> list[Column]:
    """Of a group of rows that differ in nothing but their seed."""
    shown = headline.digits(evaluation.data.test_images)

    def spread(key: str, group: OverSeeds) -> str | None:
        found = group.columns.get(key)
        return None if found is None else found.text(shown, points=key in MARGINS)

    known = {key for group in evaluation.over_seeds for key in group.columns}
    named = {**{key: METHODS[key].heading for key in SUMMARISED}, **MARGINS}
    return [
        Column("model", "name", lambda group: group.model),
        Column("fusion", "name", lambda group: group.fusion),
        Column("alpha", "written", lambda group: group.alpha),
        Column("seeds", "whole", lambda group: group.seeds),
        seeds_of(evaluation.over_seeds),
        *(
            Column(heading, "written", partial(spread, key))
            for key, heading in named.items()
            if key in known
        ),
    ]


def seeds_of(groups: Sequence[OverSeeds]) -> Column:
    """Whose seeds differ; always shown where that isn't the same of all."""
    same = len({group.seeds_of for group in groups}) < 2
    return Column("seeds of", "text", lambda group: group.seeds_of, dispensable=int(same))


def types_table(evaluation: Evaluation) -> Table:
    """Of the fusion types of one architecture and alpha; no lines where there is one alone."""
    images = evaluation.data.images
    shown = headline.digits(images.test)

    columns = [
        Column("model", "name", lambda each: each.model),
        Column("fusion", "name", lambda each: each.fusion),
        Column("alpha", "plain", lambda each: each.alpha, dispensable=1),
        Column("seeds", "whole", lambda each: each.seeds),
        Column(
            "seeds of",
            "text",
            lambda each: each.varied if each.seeds > 1 else None,
            dispensable=2,
        ),
        Column("val.", "validation", lambda each: each.validation, dispensable=3),
        Column("fused", "written", lambda each: each.fused.text(shown)),
        Column(headline.GAIN, "written", lambda each: each.gain.text(shown, points=True)),
        Column("best other", "name", lambda each: each.best_other),
        Column(
            "vs best other",
            "written",
            lambda each: each.difference and each.difference.text(shown, points=True),
        ),
        Column("p", "p", lambda each: each.p_value, dispensable=4),
        Column("p (Holm)", "p", lambda each: each.p_holm),
    ]
    note = f"{TYPES_NOTE} {evaluation.types_note}"
    return Table(TYPES_TITLE, columns, evaluation.fusion_types, note, images=images)


def remarks(evaluation: Evaluation) -> list[str]:
    """What a reader must not overlook."""
    few = headline.too_few(evaluation.data.val_images)
    lines = [f"Warning: {few}."] if few else []
    lines += [note] if (note := evaluation.types_note) else []
    for row in evaluation.rows:
        if row.contributions.alarm:
            lines.append(f"{row.task}: {row.contributions.alarm}")
    lines += [f"{row.task}: not evaluated: {row.problem}" for row in evaluation.failures]
    if any(row.method(STACKING) is None for row in evaluation.rows):
        lines.append(
            "stacking isn't measured: fitting it for so many classes and images would take hours"
        )
    lines += [f"note: {note}" for note in evaluation.data.notes]
    if evaluation.training:
        lines.append(evaluation.training.text())
    return lines
