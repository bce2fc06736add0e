"""What the report says of noisy, corrupted and OOD images."""

from collections.abc import Callable, Iterator
from typing import Any

from fusionrun.report import charts
from fusionrun.report.blocks import Block, Figure, Gallery, Text
from fusionrun.report.charts import Axis, Dot, Grid, Line, round_ticks
from fusionrun.report.load import StudyResults
from fusionrun.robustness.schema import CorruptionResult, OODResult, Robustness, Suite, TestedRow
from fusionrun.tables.table import Column, Table

# method -> (heading, heading of a narrow column, style of its line)
METHODS = {
    "fused": ("fused", "fused", "fused"),
    "mean_probabilities": ("mean of probabilities", "mean", "alternative"),
    "best_expert": ("best expert", "best", "muted dashed"),
}
DETECTORS = {
    **{key: name for key, (name, _, _) in METHODS.items()},
    "mean_logits": "mean of logits",
}
SCORES = {"max_probability": "largest probability", "energy": "energy"}

MISSING = "Not measured: `python -m fusionrun robustness OUTPUT_DIR` asks the saved models about "
MISSING += "noisy, corrupted and OOD images; then run `report` again."
NOISE_NOTE = (
    "Test accuracy with Gaussian noise of that standard deviation added to the normalised images."
)
TOTALS_NOTE = (
    "Percent of test images; the highest mean over all corruptions and severities stands out. "
    "kept: corrupted as percent of clean. The best expert is chosen on validation; experts as "
    "fusion training left them. Plain means, without intervals."
)
EACH_NOTE = "Accuracy under each corruption, mean over five severities, percent."
DETECTION_NOTE = (
    "AUROC in percent: how often a clean test image gets a higher score than an OOD image; 50 is "
    "chance, the highest stands out. largest probability: of the answer. energy: log of the sum of "
    "exponentials of the logits; averaged probabilities have none."
)
DETECTED_NOTE = (
    "AUPR: average precision of finding the in-distribution images (in) or the OOD ones (out). "
    "FPR: OOD images that pass where 95 % of the in-distribution do. Percent."
)


def robustness(study: StudyResults) -> list[Block]:
    found = study.robustness
    if found is None:
        return [Text(MISSING)]
    failed = [Text(f"{row.name}: n/a, not measured: {row.problem}", True) for row in found.failures]
    if not found.rows:
        return [*failed]
    return [Text(_asked(found)), *failed, *_noise(found), *_corruptions(found), *_detection(found)]


def _asked(found: Robustness) -> str:
    """What was done, and what to know about it."""
    notes = [f"{note}." for note in found.notes]
    published = f" Published images: {found.corrupted}." if found.corrupted else ""
    return " ".join([f"Corruptions are made by fusionrun.{published}", *notes])


def _noise(found: Robustness) -> list[Block]:
    levels = [level for row in found.rows for c in row.methods for level in c.noise]
    x = Axis("sigma of the noise", round_ticks(level.sigma for level in levels))
    y = Axis("accuracy, %", round_ticks(level.top1 for level in levels))
    figures = []
    for row in found.rows:
        drawn = [(style, c) for key, (_, _, style) in METHODS.items() if (c := row.method(key))]
        lines = [Line(style, [(n.sigma, n.top1) for n in c.noise]) for style, c in drawn]
        dots = [
            Dot(style, n.sigma, n.top1, f"{c.label}, sigma {n.sigma:g}: {n.top1:.2f} %", 3)
            for style, c in drawn
            for n in c.noise
        ]
        picture = charts.plot(f"{row.name}: accuracy against noise", x, y, lines, dots)
        figures.append(Figure(row.name, picture))
    legend = [(charts.swatch(style, "line"), name) for name, _, style in METHODS.values()]
    items = [(row, level) for row in found.rows for level in range(len(row.methods[0].noise))]
    columns = [
        ROW,
        Column("sigma", "plain", lambda item: item[0].methods[0].noise[item[1]].sigma),
        *_columns(lambda tested, item: tested.noise[item[1]].top1, ""),
    ]
    table = Table("Accuracy with noise", columns, items, NOISE_NOTE, folded=True)
    return [Gallery(figures, legend, NOISE_NOTE), table]


ROW = Column("row", "text", lambda item: item[0].name)  # of (row, ...)


def _columns(
    value: Callable[[CorruptionResult, Any], float | None], before: str, contest: bool = True
) -> Iterator[Column]:
    """One for each method, of items (row, ...)."""

    def of(key: str) -> Callable[[Any], float | None]:
        def read(item: Any) -> float | None:
            tested = item[0].method(key)
            return None if tested is None else value(tested, item)

        return read

    for key, (name, _, _) in METHODS.items():
        yield Column(f"{before}{name}", "percent", of(key), contest)


def _corruptions(found: Robustness) -> list[Block]:
    kinds = [("corrupted", _made), *([("published", _published)] if found.corrupted else [])]
    columns = [ROW, *_columns(lambda tested, item: tested.clean, "clean: ", False)]
    for name, suite in kinds:
        columns += _columns(_of_suite(suite, "mean"), f"{name}: ", name == "corrupted")
        columns += _columns(_of_suite(suite, "kept"), f"{name}, kept: ", False)
    items = [
        (row, kind, i)
        for row in found.rows
        for kind, suite in kinds
        for i in range(len(_names(row, suite)))
    ]
    by_kind = dict(kinds)
    each = [
        ROW,
        Column("images", "text", lambda item: item[1]),
        Column("corruption", "text", lambda item: _names(item[0], by_kind[item[1]])[item[2]]),
        *_columns(lambda tested, item: _mean(by_kind[item[1]](tested), item[2]), ""),
    ]
    return [
        Table("Clean and corrupted images", columns, [(row,) for row in found.rows], TOTALS_NOTE),
        Gallery(_heat_maps(found), note=f"{EACH_NOTE} {HEAT_NOTE}"),
        Table("Corruption by corruption", each, items, EACH_NOTE, folded=True),
    ]


HEAT_NOTE = "mean: of the experts' probabilities. best: the best expert."


def _made(tested: CorruptionResult) -> Suite | None:
    return tested.made


def _published(tested: CorruptionResult) -> Suite | None:
    return tested.published


def _of_suite(
    suite: Callable[[CorruptionResult], Suite | None], field: str
) -> Callable[[CorruptionResult, Any], float | None]:
    return lambda tested, item: getattr(suite(tested), field, None)


def _names(row: TestedRow, suite: Callable[[CorruptionResult], Suite | None]) -> list[str]:
    found = suite(row.methods[0])
    return [corruption.name for corruption in found.corruptions] if found else []


def _mean(suite: Suite | None, index: int) -> float | None:
    return None if suite is None else suite.corruptions[index].mean


def _heat_maps(found: Robustness) -> list[Figure]:
    """Of the corruptions made here; all with the same shades."""
    grids = [(row.name, _grid(row)) for row in found.rows]
    values = [value for _, grid in grids for line in grid.values for value in line]
    least, most = min(values), max(values)
    return [
        Figure(name, charts.heat_map(f"{name}: corruptions", grid, least, most))
        for name, grid in grids
    ]


def _grid(row: TestedRow) -> Grid:
    known = {
        short: [corruption.mean for corruption in tested.made.corruptions]
        for key, (_, short, _) in METHODS.items()
        if (tested := row.method(key)) and tested.made
    }
    return Grid("", _names(row, _made), list(known), list(zip(*known.values(), strict=True)))


def _detection(found: Robustness) -> list[Block]:
    """A table to look at, one that has everything."""
    sets = [of.name for of in found.ood_sets]
    items = [(row, name, score) for row in found.rows for name in sets for score in SCORES]
    columns = [
        ROW,
        Column("images", "text", lambda item: item[1]),
        Column("score", "text", lambda item: SCORES[item[2]]),
        *(Column(label, "percent", _auroc(key), True) for key, label in DETECTORS.items()),
    ]
    entries = [(row, entry) for row in found.rows for entry in row.ood]
    about = [f"{of.name}: {of.images:,} images: {of.about}." for of in found.ood_sets]
    return [
        Table("Out-of-distribution detection", columns, items, " ".join([DETECTION_NOTE, *about])),
        Table(
            "Out-of-distribution detection, every number",
            DETECTED,
            entries,
            DETECTED_NOTE,
            folded=True,
        ),
    ]


def _auroc(key: str) -> Callable[[Any], float | None]:
    def of(item: tuple[TestedRow, str, str]) -> float | None:
        row, *place = item
        entries: tuple[OODResult, ...] = row.ood
        known = (e.auroc for e in entries if [e.set, e.score] == place and e.method == key)
        return next(known, None)

    return of


DETECTED = (
    ROW,
    Column("images", "text", lambda pair: pair[1].set),
    Column("method", "text", lambda pair: _label(*pair)),
    Column("score", "text", lambda pair: SCORES[pair[1].score]),
    Column("AUROC", "percent", lambda pair: pair[1].auroc),
    Column("AUPR in", "percent", lambda pair: pair[1].aupr_in),
    Column("AUPR out", "percent", lambda pair: pair[1].aupr_out),
    Column("FPR at 95 % TPR", "percent", lambda pair: pair[1].fpr_at_95_tpr),
)


def _label(row: TestedRow, entry: OODResult) -> str:
    tested = row.method(entry.method)
    return tested.label if tested else entry.method
