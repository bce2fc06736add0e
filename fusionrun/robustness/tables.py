"""robustness.json for people: tables in Markdown and on the terminal, every accuracy as CSV."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from rich.console import Group
from rich.text import Text

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.evaluation.alternatives import FUSED
from fusionrun.evaluation.row_names import members_of, mixed_notes
from fusionrun.evaluation.schema import FailedRow
from fusionrun.robustness.schema import CorruptionResult, Robustness, RobustnessRow
from fusionrun.tables.headline import AVERAGING, BEST_EXPERT, GAIN
from fusionrun.tables.markdown import markdown_table
from fusionrun.tables.table import Column, Images, Table
from fusionrun.tables.terminal import terminal_table

MAIN = (FUSED.key, AVERAGING, BEST_EXPERT)  # methods of the main table

TITLE = "Accuracy on noisy and corrupted images"
LEGEND = (
    "Test accuracy in percent. noise: Gaussian noise of that standard deviation added after "
    "normalisation. corrupted: mean over fifteen corruptions at five severities, made by "
    "fusionrun; kept: that as percent of clean. The best expert is chosen on validation; experts "
    "are as fusion training left them."
)
PUBLISHED_LEGEND = " published: the same on the published images of the folder given."
EACH_TITLE = "Corruption by corruption"
EACH_LEGEND = "Test accuracy in percent, mean over five severities."
DETECTION_TITLE = "Out-of-distribution detection"
DETECTION_LEGEND = (
    "AUROC in percent (50: chance): how often a clean test image gets a higher score than an OOD "
    "image. Energy is the log of the sum of exponentials of the logits; averaged probabilities "
    "have none."
)
SCORES = {"max_probability": "largest probability", "energy": "energy"}
MORE_LEGEND = (
    "AUPR: average precision of finding the in-distribution images (in) or the OOD ones (out). FPR "
    "at 95 % TPR: OOD images that pass where 95 % of the in-distribution do."
)

CSV_COLUMNS = ("task", "model", "fusion", "set", "severity", "contender", "top1", "members")

Entry = FailedRow | RobustnessRow
Item = tuple[Entry, Any]  # a row and one of its results, None where it has none
NAME = (
    Column("model", "name", lambda item: item[0].model),
    Column("fusion", "name", lambda item: item[0].variant),
)
METHOD = Column("method", "text", lambda item: item[1] and item[1].label)
DETECTED = (  # of (row, OODResult)
    Column("images", "text", lambda item: item[1] and item[1].set),
    Column("method", "text", lambda item: item[1] and item[0].label(item[1].method)),
    Column("score", "text", lambda item: item[1] and SCORES[item[1].score]),
    Column("AUROC", "percent", lambda item: item[1] and item[1].auroc),
    Column("AUPR in", "percent", lambda item: item[1] and item[1].aupr_in),
    Column("AUPR out", "percent", lambda item: item[1] and item[1].aupr_out),
    Column("FPR at 95 % TPR", "percent", lambda item: item[1] and item[1].fpr_at_95_tpr),
)


def tables(results: Robustness, width: int) -> Group:
    """For the terminal."""
    legend = f"{DETECTION_LEGEND} By {' / by '.join(SCORES.values())}."
    columns = [Column("method", "text", lambda item: item[1] and item[0].label(item[1]))]
    for of in results.ood_sets:
        name = of.name.replace("_", " ")
        columns.append(Column(name, "written", partial(aurocs, of.name)))
    detection = _stacked(DETECTION_TITLE, columns, results, detectors, legend)
    main = _stacked(TITLE, accuracy_columns(results), results, main_methods, main_legend(results))
    remarks = (Text(line) for line in _remarks(results))
    return Group(terminal_table(main, width), terminal_table(detection, width), *remarks)


def markdown(results: Robustness) -> str:
    """robustness.md."""
    main = [(row, method) for row in results.entries for method in main_methods(row)]
    images = Images(results.images)
    parts = [
        f"# {TITLE}\n\n{results.study}, {results.evaluated}: {results.data.name}, "
        f"{results.images} of {results.data.test_images} test images.\n",
        markdown_table(Table(TITLE, [*NAME, *accuracy_columns(results)], main, images=images)),
        f"{main_legend(results)}\n",
        "".join(f"- {line}\n" for line in _remarks(results)),
    ]
    for source, what in (("made", "made by fusionrun"), ("published", "published images")):
        methods = [method for row in results.rows for method in row.methods]
        suite = next((s for method in methods if (s := method.suite(source))), None)
        if suite is not None:
            each = [
                Column(corruption.name, "accuracy", partial(of_corruption, source, index))
                for index, corruption in enumerate(suite.corruptions)
            ]
            table = markdown_table(Table(EACH_TITLE, [*NAME, METHOD, *each], main, images=images))
            parts += [f"## {EACH_TITLE}, {what}\n", table, f"{EACH_LEGEND}\n"]
    entries = [
        (row, entry)
        for row in results.entries
        for entry in (row.ood if isinstance(row, RobustnessRow) else [None])
    ]
    detection = markdown_table(Table(DETECTION_TITLE, [*NAME, *DETECTED], entries))
    parts += [f"## {DETECTION_TITLE}\n", detection, f"{DETECTION_LEGEND} {MORE_LEGEND}\n"]
    return "\n".join(part for part in parts if part)


def long_rows(results: Robustness) -> Iterator[dict[str, object]]:
    """A line for every accuracy, by CSV_COLUMNS; severity is sigma where the set is noise."""
    members = members_of(results.rows)
    for row in results.rows:
        for method in row.methods:
            accuracies: list[tuple[str, float | None, float]] = [("clean", None, method.clean)]
            accuracies += [("noise", level.sigma, level.top1) for level in method.noise]
            for suite, prefix in ((method.made, ""), (method.published, "published:")):
                accuracies += [
                    (f"{prefix}{corruption.name}", severity, top1)
                    for corruption in (suite.corruptions if suite else ())
                    for severity, top1 in enumerate(corruption.top1, 1)
                ]
            for name, severity, top1 in accuracies:
                values = (row.task, row.model, row.fusion, name, severity, method.key, top1)
                yield dict(zip(CSV_COLUMNS, (*values, members.get(row.model)), strict=True))


def main_methods(row: Entry) -> Sequence[CorruptionResult | None]:
    """A row's lines of the main table."""
    if isinstance(row, FailedRow):
        return [None]
    return [method for method in row.methods if method.key in MAIN]


def accuracy_columns(results: Robustness) -> list[Column]:
    """Of the main table, of items (row, method)."""
    levels = next((method.noise for row in results.rows for method in row.methods), ())
    columns = [METHOD, Column("clean", "accuracy", lambda item: item[1] and item[1].clean)]
    columns += [
        Column(
            f"noise {level.sigma:g}", "accuracy", partial(with_noise, index), dispensable=1 + index
        )
        for index, level in enumerate(levels)
        if level.sigma
    ]
    columns.append(Column("corrupted", "accuracy", partial(of_suite, "made", "mean")))
    columns.append(Column("kept", "accuracy", partial(of_suite, "made", "kept")))
    if results.corrupted:
        columns.append(Column("published", "accuracy", partial(of_suite, "published", "mean")))
        columns.append(Column("kept of it", "accuracy", partial(of_suite, "published", "kept")))
    return columns


def main_legend(results: Robustness) -> str:
    return LEGEND + PUBLISHED_LEGEND if results.corrupted else LEGEND


def with_noise(index: int, item: Item) -> float | None:
    """Accuracy of an item (row, method) at a level of noise."""
    top1: float | None = item[1] and item[1].noise[index].top1
    return top1


def of_suite(source: str, field: str, item: Item) -> float | None:
    """Mean or kept accuracy of an item (row, method) under all corruptions of a source."""
    return getattr(item[1] and item[1].suite(source), field, None)


def of_corruption(source: str, index: int, item: Item) -> float | None:
    """Accuracy of an item (row, method) under one corruption, mean over its severities."""
    suite = item[1] and item[1].suite(source)
    top1: float | None = suite and suite.corruptions[index].mean
    return top1


def detectors(row: Entry) -> Sequence[str | None]:
    """Keys of the methods whose confidence was measured."""
    return (
        list(dict.fromkeys(of.method for of in row.ood))
        if isinstance(row, RobustnessRow)
        else [None]
    )


def aurocs(name: str, item: Item) -> str | None:
    """Of an item (row, key of a method) on the OOD set `name`, by each score."""
    row, key = item
    if isinstance(row, FailedRow):
        return None
    found = {of.score: of.auroc for of in row.ood if (of.set, of.method) == (name, key)}
    numbers = (found[score] for score in SCORES)
    return " / ".join(NOT_AVAILABLE if auroc is None else f"{auroc:.2f}" for auroc in numbers)


def _stacked(
    title: str,
    columns: Sequence[Column],
    results: Robustness,
    parts: Callable[[Entry], Sequence[Any]],
    note: str,
) -> Table:
    """A line a row: what the columns read from all of its items, each on a line of the cell."""
    items = []
    for row in results.entries:
        of_row = [(row, part) for part in parts(row)]
        lines = Table("", columns, of_row, images=Images(results.images)).lines()
        cells = ("\n".join(cell.text for cell in column) for column in zip(*lines, strict=True))
        items.append([f"{row.model}\n{row.variant}", *cells])
    drawn = [Column("row", "name", itemgetter(0))]
    for index, column in enumerate(columns, 1):
        how = "text" if column.is_text else "written"
        drawn.append(Column(column.heading, how, itemgetter(index), dispensable=column.dispensable))
    return Table(title, drawn, items, note)


def _remarks(results: Robustness) -> list[str]:
    """Mixed rows' members, the verdict, the OOD images, what a reader must not overlook."""
    pairs = []
    for row in results.rows:
        means = {method.key: method.made.mean for method in row.methods if method.made}
        fused, reference = means.get(FUSED.key), means.get(AVERAGING)
        if fused is not None and reference is not None:
            pairs.append((fused, reference))
    ahead = sum(fused > reference for fused, reference in pairs)
    verdict = (
        f"On corrupted images fused is more accurate than the mean of its experts' probabilities "
        f"in {ahead} of {len(pairs)} rows ({GAIN}; plain means, without intervals)."
    )
    ood = [f"{of.name}: {of.images} images: {of.about}" for of in results.ood_sets]
    problems = [f"{row.task}: not measured: {row.problem}" for row in results.failures]
    mixed = mixed_notes(results.entries)
    notes = [*(f"note: {note}" for note in results.data.notes), *results.notes]
    return [*mixed, *([verdict] if pairs else []), *ood, *notes, *problems]
