"""Fused against the best alternative, class by class."""

from typing import Any

from fusionrun.evaluation.schema import RowResult
from fusionrun.report import charts
from fusionrun.report.blocks import Block, Gallery, bar_figures
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.columns import OF_ROW
from fusionrun.tables.headline import VS_BEST_ALTERNATIVE, digits
from fusionrun.tables.table import Column, Images, Table

MOST_CLASSES = 20  # in a chart; of more only those at both ends
CLASSES = (
    OF_ROW,
    Column("class", "text", lambda item: item[1]),
    Column("fused", "accuracy", lambda item: item[2]),
    Column("best alternative", "accuracy", lambda item: item[3]),
    Column(VS_BEST_ALTERNATIVE, "points", lambda item: item[4]),
)


def per_class(study: StudyResults) -> list[Block]:
    """A chart of differences a row, and every class's accuracies."""
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
        f"{VS_BEST_ALTERNATIVE}, the best on validation, in points, class by class. With about "
        f"{each:,.0f} test images a class, one image is {100 / each:.3g} points."
    )
    if len(data.classes) > MOST_CLASSES:
        note += f" The {MOST_CLASSES // 2} highest and lowest of {len(data.classes)} classes."
    title, units = "Accuracy by class", "Percent; fused minus the other in points."
    table = Table(title, CLASSES, items, units, folded=True, images=Images(round(each)))
    figures = bar_figures(charted, "by class", digits(round(each)))
    return [Gallery(figures, note=note), table] if rows else []
