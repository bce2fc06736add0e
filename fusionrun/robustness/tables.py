"""robustness.json for people: tables in Markdown and on the terminal, every accuracy as CSV."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich.console import Group, RenderableType
from rich.text import Text

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.evaluation.schema import FailedRow
from fusionrun.evaluation.tables import markdown_table, rich_table
from fusionrun.robustness.schema import CorruptionResult, Robustness, TestedRow

MAIN = ("fused", "best_expert", "mean_probabilities")  # methods of the main table
REFERENCE = "mean_probabilities"

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
DETECTED = ("images", "method", "score", "AUROC", "AUPR in", "AUPR out", "FPR at 95 % TPR")
MORE_LEGEND = (
    "AUPR: average precision of finding the in-distribution images (in) or the OOD ones (out). FPR "
    "at 95 % TPR: OOD images that pass where 95 % of the in-distribution do."
)

CSV_COLUMNS = ("task", "model", "fusion", "set", "severity", "contender", "top1")

Lines = list[list[str]]
Cells = Callable[[Robustness, TestedRow], Lines]


def tables(results: Robustness) -> Group:
    """For the terminal."""
    headings, legend = _main_headings(results)
    main = _stacked(results, accuracy_lines, len(headings))
    parts: list[RenderableType] = [rich_table(TITLE, ["row", *headings], main, caption=legend)]
    names = ["row", "method", *(of.name.replace("_", " ") for of in results.ood_sets)]
    lines = _stacked(results, detection_lines, 1 + len(results.ood_sets))
    legend = f"{DETECTION_LEGEND} By {' / by '.join(SCORES.values())}."
    parts.append(rich_table(DETECTION_TITLE, names, lines, caption=legend))
    return Group(*parts, *(Text(line) for line in _remarks(results)))


def markdown(results: Robustness) -> str:
    """robustness.md."""
    headings, legend = _main_headings(results)
    parts = [
        f"# {TITLE}\n\n{results.study}, {results.evaluated}: {results.data.name}, "
        f"{results.images} of {results.data.test_images} test images.\n",
        markdown_table(
            ["model", "fusion", *headings], _lines(results, accuracy_lines, len(headings))
        ),
        f"{legend}\n",
        "".join(f"- {line}\n" for line in _remarks(results)),
    ]
    for suite, what in (("made", "made by fusionrun"), ("published", "published images")):
        measured = [s for row in results.rows for m in row.methods if (s := m.suite(suite))]
        if measured:
            names = [corruption.name for corruption in measured[0].corruptions]
            lines = _lines(results, partial(corruption_lines, suite), 1 + len(names))
            table = markdown_table(["model", "fusion", "method", *names], lines)
            parts += [f"## {EACH_TITLE}, {what}\n", table, f"{EACH_LEGEND}\n"]
    lines = _lines(results, every_detection, len(DETECTED))
    detection = markdown_table(["model", "fusion", *DETECTED], lines)
    parts += [f"## {DETECTION_TITLE}\n", detection, f"{DETECTION_LEGEND} {MORE_LEGEND}\n"]
    return "\n".join(part for part in parts if part)


def long_rows(results: Robustness) -> Iterator[dict[str, object]]:
    """A line for every accuracy, by CSV_COLUMNS; severity is sigma where the set is noise."""
    for row in results.rows:
        for method in row.methods:
            for name, severity, top1 in _accuracies(method):
                values = (row.task, row.model, row.fusion, name, severity, method.key, top1)
                yield dict(zip(CSV_COLUMNS, values, strict=True))


def _accuracies(method: CorruptionResult) -> Iterator[tuple[str, float | None, float]]:
    """(set, severity, top1)."""
    yield "clean", None, method.clean
    for level in method.noise:
        yield "noise", level.sigma, level.top1
    for suite, prefix in ((method.made, ""), (method.published, "published:")):
        for corruption in suite.corruptions if suite else ():
            for severity, top1 in enumerate(corruption.top1, 1):
                yield f"{prefix}{corruption.name}", severity, top1


def _main_headings(results: Robustness) -> tuple[list[str], str]:
    """(headings of the main table, its legend)."""
    levels = next((method.noise for row in results.rows for method in row.methods), ())
    noise = [f"noise {level.sigma:g}" for level in levels if level.sigma]
    headings = ["method", "clean", *noise, "corrupted", "kept"]
    if results.corrupted:
        return [*headings, "published", "kept of it"], LEGEND + PUBLISHED_LEGEND
    return headings, LEGEND


def _lines(results: Robustness, cells: Cells, width: int) -> Lines:
    """Of all rows, each method's line after the row's model and variant."""
    return [
        [row.model, row.variant, *line]
        for row in results.entries
        for line in _cells(results, row, cells, width)
    ]


def _stacked(results: Robustness, cells: Cells, width: int) -> Lines:
    """The lines of each row as one, its name before them."""
    return [
        [f"{row.model}\n{row.variant}", *map("\n".join, zip(*lines, strict=True))]
        for row in results.entries
        if (lines := _cells(results, row, cells, width))
    ]


def _cells(results: Robustness, row: TestedRow | FailedRow, cells: Cells, width: int) -> Lines:
    return [[NOT_AVAILABLE] * width] if isinstance(row, FailedRow) else cells(results, row)


def accuracy_lines(results: Robustness, row: TestedRow) -> Lines:
    """The main table's part of a row."""
    suites = ["made", "published"] if results.corrupted else ["made"]
    return [
        [
            method.label,
            _percent(method.clean),
            *(_percent(level.top1) for level in method.noise if level.sigma),
            *(
                _percent(value)
                for suite in map(method.suite, suites)
                for value in ((suite.mean, suite.kept) if suite else (None, None))
            ),
        ]
        for method in row.methods
        if method.key in MAIN
    ]


def corruption_lines(suite: str, results: Robustness, row: TestedRow) -> Lines:
    return [
        [method.label, *(_percent(corruption.mean) for corruption in found.corruptions)]
        for method in row.methods
        if method.key in MAIN and (found := method.suite(suite))
    ]


def detection_lines(results: Robustness, row: TestedRow) -> Lines:
    """AUROC by both scores, for each method and OOD set."""
    labels = {method.key: method.label for method in row.methods}
    found = {(of.method, of.set, of.score): of.auroc for of in row.ood}
    return [
        [
            labels[key],
            *(
                " / ".join(_percent(found[key, of.name, score]) for score in SCORES)
                for of in results.ood_sets
            ),
        ]
        for key in dict.fromkeys(key for key, _, _ in found)
    ]


def every_detection(results: Robustness, row: TestedRow) -> Lines:
    """By DETECTED."""
    labels = {method.key: method.label for method in row.methods}
    return [
        [
            of.set,
            labels[of.method],
            SCORES[of.score],
            *map(_percent, (of.auroc, of.aupr_in, of.aupr_out, of.fpr_at_95_tpr)),
        ]
        for of in row.ood
    ]


def _percent(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.2f}"


def _remarks(results: Robustness) -> list[str]:
    """The verdict, what the OOD images are, then what a reader must not overlook."""
    verdict = _verdict(results.rows)
    ood = [f"{of.name}: {of.images} images: {of.about}" for of in results.ood_sets]
    problems = [f"{row.task}: not measured: {row.problem}" for row in results.failures]
    return [*([verdict] if verdict else []), *ood, *results.notes, *problems]


def _verdict(rows: Sequence[TestedRow]) -> str:
    """How often fused keeps ahead of the experts' mean when images are corrupted."""
    pairs = []
    for row in rows:
        means = {method.key: method.made.mean for method in row.methods if method.made}
        fused, reference = means.get("fused"), means.get(REFERENCE)
        if fused is not None and reference is not None:
            pairs.append((fused, reference))
    ahead = sum(fused > reference for fused, reference in pairs)
    return (
        f"On corrupted images fused is more accurate than the mean of its experts' probabilities "
        f"in {ahead} of {len(pairs)} rows (plain means, without intervals)."
        if pairs
        else ""
    )
