"""What the report says of noisy, corrupted and OOD images."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fusionrun.evaluation.alternatives import METHODS
from fusionrun.report import charts
from fusionrun.report.blocks import Block, Figure, Gallery, Text
from fusionrun.report.charts import ALTERNATIVE, FUSED, Axis, Dot, Grid, Line
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.columns import OF_ROW
from fusionrun.robustness.schema import CorruptionResult, Robustness, RobustnessRow
from fusionrun.robustness.tables import DETECTED, DETECTION_TITLE, SCORES
from fusionrun.tables.axis import round_ticks
from fusionrun.tables.headline import digits
from fusionrun.tables.table import Column, Images, Table

# method -> (heading of a narrow column, style of its line)
SHOWN = {
    "fused": ("fused", FUSED),
    "mean_probabilities": ("mean", ALTERNATIVE),
    "best_expert": ("best", "muted dashed"),
}
DETECTORS = (*SHOWN, "mean_logits")

MISSING = (
    "Not measured: `python -m fusionrun robustness OUTPUT_DIR` asks the saved models about noisy, "
    "corrupted and OOD images; then run `report` again."
)
NOISE_NOTE = (
    "Test accuracy with Gaussian noise of that standard deviation added to the normalised images."
)
TOTALS_NOTE = (
    "Percent of test images; the highest mean over all corruptions and severities stands out. "
    "kept: corrupted as percent of clean. The best expert is chosen on validation; experts as "
    "fusion training left them. Plain means, without intervals."
)
EACH_NOTE = "Accuracy under each corruption, mean over five severities, percent."
HEAT_NOTE = "mean: of the experts' probabilities. best: the best expert."
DETECTION_NOTE = (
    "AUROC in percent: how often a clean test image gets a higher score than an OOD image; 50 is "
    "chance, the highest stands out. largest probability: of the answer. energy: log of the sum of "
    "exponentials of the logits; averaged probabilities have none."
)
EVERY_NOTE = (
    "AUPR: average precision of finding the in-distribution images (in) or the OOD ones (out). "
    "FPR: OOD images that pass where 95 % of the in-distribution do. Percent."
)


def robustness(study: StudyResults) -> list[Block]:
    """Whether fusion also helps where images aren't what it was trained on."""
    found = study.robustness
    if found is None:
        return [Text(MISSING)]
    failed = [Text(f"{row.name}: n/a, not measured: {row.problem}", True) for row in found.failures]
    if not found.rows:
        return [*failed]
    published = f" Published images: {found.corrupted}." if found.corrupted else ""
    notes = [f"{note}." for note in found.notes]
    text = Text(" ".join([f"Corruptions are made by fusionrun.{published}", *notes]))
    return [text, *failed, *noise(found), *corruptions(found), *ood_detection(found)]


def noise(found: Robustness) -> list[Block]:
    """A curve a method, and its numbers."""
    levels = [level for row in found.rows for method in row.methods for level in method.noise]
    x = Axis("sigma of the noise", round_ticks(level.sigma for level in levels))
    y = Axis("accuracy, %", round_ticks(level.top1 for level in levels))
    figures, shown = [], digits(found.images)
    for row in found.rows:
        drawn = [(style, m) for key, (_, style) in SHOWN.items() if (m := row.method(key))]
        lines = [Line(style, [(n.sigma, n.top1) for n in m.noise]) for style, m in drawn]
        dots = [
            Dot(style, n.sigma, n.top1, f"{m.label}, sigma {n.sigma:g}: {n.top1:.{shown}f} %", 3)
            for style, m in drawn
            for n in m.noise
        ]
        picture = charts.plot(f"{row.name}: accuracy against noise", x, y, lines, dots)
        figures.append(Figure(row.name, picture))
    legend = [
        (charts.swatch(style, "line"), METHODS[key].label) for key, (_, style) in SHOWN.items()
    ]
    items = [(row, level) for row in found.rows for level in range(len(row.methods[0].noise))]
    columns = [
        OF_ROW,
        Column("sigma", "plain", lambda item: item[0].methods[0].noise[item[1]].sigma),
        *_columns(lambda method, item: method.noise[item[1]].top1, ""),
    ]
    title, images = "Accuracy with noise", Images(found.images)
    table = Table(title, columns, items, NOISE_NOTE, folded=True, images=images)
    return [Gallery(figures, legend, NOISE_NOTE), table]


def _columns(
    value: Callable[[CorruptionResult, Any], float | None], before: str, contest: bool = True
) -> Iterator[Column]:
    """One for each method, of items (row, ...)."""

    def read(key: str, item: Any) -> float | None:
        method = item[0].method(key)
        return None if method is None else value(method, item)

    for key in SHOWN:
        yield Column(f"{before}{METHODS[key].label}", "accuracy", partial(read, key), contest)


def corruptions(found: Robustness) -> list[Block]:
    """All of them together, and each, of those made here and of the published ones."""
    kinds = {"corrupted": "made", **({"published": "published"} if found.corrupted else {})}
    columns = [OF_ROW, *_columns(lambda method, item: method.clean, "clean: ", False)]
    for kind, source in kinds.items():
        for field, heading in (("mean", kind), ("kept", f"{kind}, kept")):
            contest = (kind, field) == ("corrupted", "mean")
            columns += _columns(partial(total, source, field), f"{heading}: ", contest)
    items = [
        (row, kind, name, source, i)
        for row in found.rows
        for kind, source in kinds.items()
        for i, name in enumerate(_names(row, source))
    ]
    each = [
        OF_ROW,
        Column("images", "text", lambda item: item[1]),
        Column("corruption", "text", lambda item: item[2]),
        *_columns(mean_of_severities, ""),
    ]
    images = Images(found.images)
    return [
        Table(
            "Clean and corrupted images",
            columns,
            [(row,) for row in found.rows],
            TOTALS_NOTE,
            images=images,
        ),
        Gallery(heat_maps(found), note=f"{EACH_NOTE} {HEAT_NOTE}"),
        Table("Corruption by corruption", each, items, EACH_NOTE, folded=True, images=images),
    ]


def total(source: str, field: str, method: CorruptionResult, item: Any) -> float | None:
    """Mean or kept accuracy of a method, over all corruptions of a source."""
    return getattr(method.suite(source), field, None)


def mean_of_severities(method: CorruptionResult, item: Any) -> float | None:
    """Accuracy of a method under the corruption of an item (row, kind, name, source, number)."""
    suite = method.suite(item[3])
    return None if suite is None else suite.corruptions[item[4]].mean


def _names(row: RobustnessRow, source: str) -> list[str]:
    suite = row.methods[0].suite(source)
    return [corruption.name for corruption in suite.corruptions] if suite else []


def heat_maps(found: Robustness) -> list[Figure]:
    """Of the corruptions made here; all with the same shades."""
    grids = []
    for row in found.rows:
        known = {
            short: [corruption.mean for corruption in method.made.corruptions]
            for key, (short, _) in SHOWN.items()
            if (method := row.method(key)) and method.made
        }
        lines = list(zip(*known.values(), strict=True))
        grids.append((row.name, Grid("", _names(row, "made"), list(known), lines)))
    values = [value for _, grid in grids for line in grid.values for value in line]
    least, most = min(values), max(values)
    return [
        Figure(
            name, charts.heat_map(f"{name}: corruptions", grid, least, most, digits(found.images))
        )
        for name, grid in grids
    ]


def ood_detection(found: Robustness) -> list[Block]:
    """A table to look at, one that has everything."""
    sets = [of.name for of in found.ood_sets]
    items = [(row, name, score) for row in found.rows for name in sets for score in SCORES]
    columns = [
        OF_ROW,
        Column("images", "text", lambda item: item[1]),
        Column("score", "text", lambda item: SCORES[item[2]]),
        *(Column(METHODS[key].label, "percent", partial(auroc, key), True) for key in DETECTORS),
    ]
    entries = [(row, entry) for row in found.rows for entry in row.ood]
    about = [f"{of.name}: {of.images:,} images: {of.about}." for of in found.ood_sets]
    return [
        Table(DETECTION_TITLE, columns, items, " ".join([DETECTION_NOTE, *about])),
        Table(
            f"{DETECTION_TITLE}, every number",
            [OF_ROW, *DETECTED],
            entries,
            EVERY_NOTE,
            folded=True,
        ),
    ]


def auroc(key: str, item: tuple[RobustnessRow, str, str]) -> float | None:
    """Of the method `key`, for an item (row, set, score)."""
    row, *place = item
    known = (e.auroc for e in row.ood if [e.set, e.score] == place and e.method == key)
    return next(known, None)
