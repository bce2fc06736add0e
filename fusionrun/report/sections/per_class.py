"""What fusion gains, class by class."""

from typing import Any

from fusionrun.evaluation.schema import RowResult
from fusionrun.report import charts
from fusionrun.report.blocks import Block, Gallery, bar_figures
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.columns import OF_ROW
from fusionrun.tables.table import Column, Table

MOST_CLASSES = 20  # in a chart; of more only those at both ends
CLASSES = (
    OF_ROW,
    Column("class", "text", lambda item: item[1]),
    Column("fused", "percent", lambda item: item[2]),
    Column("best alternative", "percent", lambda item: item[3]),
    Column("gain", "points", lambda item: item[4]),
)


def per_class(study: StudyResults) -> list[Block]:
    """A chart of gains a row, and every class's accuracies."""
    data, rows = study.evaluation.data, study.evaluation.rows
    items: list[tuple[RowResult, str, Any, Any, Any]] = []
    charted: list[tuple[str, charts.Bars]] = []
    for row in rows:
        of = row.per_class
        parts = list(zip(data.classes, of.fused, of.best_alternative, of.gain, strict=True))
        items += [(row, *part) for part in parts]
        gains = [(name, gain) for name, _, _, gain in parts if gain is not None]
        ranked = sorted(gains, key=lambda pair: -pair[1])
        if len(ranked) > MOST_CLASSES:
            ranked = ranked[: MOST_CLASSES // 2] + ranked[-MOST_CLASSES // 2 :]
        groups = [(name, [("gain" if gain > 0 else "loss", gain)]) for name, gain in ranked]
        charted.append((row.name, groups))
    each = data.test_images / len(data.classes)
    note = (
        "Points of accuracy that fused has over the best alternative, class by class. With about "
        f"{each:,.0f} test images a class, one image is {100 / each:.3g} points."
    )
    if len(data.classes) > MOST_CLASSES:
        note += f" The {MOST_CLASSES // 2} highest and lowest of {len(data.classes)} classes."
    table = Table("Accuracy by class", CLASSES, items, "Percent, gain in points.", folded=True)
    return [Gallery(bar_figures(charted, "gain by class"), note=note), table] if rows else []
