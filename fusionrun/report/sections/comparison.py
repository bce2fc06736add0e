"""What the report says of several studies side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from fusionrun.evaluation.schema import RowResult
from fusionrun.report.blocks import Block, Text
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.answer import summary
from fusionrun.tables.headline import GAIN
from fusionrun.tables.table import Column, Images, Table

Studies = Sequence[StudyResults]
# of a recipe: rows are matched by name, places differ anyway
OF_GRIDS = ("models", "fusions", "seeds", "alphas", "expert_seeds")
NOT_COMPARED = ("rows", "grid", *(f"grid.{name}" for name in OF_GRIDS), "output_dir")

DIFFERENT_TESTS = "These studies have different test sets: their accuracies don't compare."


def side_by_side(studies: Studies) -> list[Block]:
    """Rows of the same experts and variant on one line, whatever mixed ones are called."""
    data = [study.evaluation.data for study in studies]
    same_test = len({(of.name, of.classes, of.test_images, of.image_size) for of in data}) == 1
    columns = [Column("row", "text", lambda item: item[0])]
    for index, study in enumerate(studies):
        columns += _columns(index, study.label, same_test)
    found = [
        {(row.members or row.model, row.variant): row for row in study.evaluation.rows}
        for study in studies
    ]
    names: dict[Any, str] = {}
    for key, row in (pair for rows in found for pair in rows.items()):
        members = f" ({', '.join(row.members)})" if row.members else ""
        names.setdefault(key, f"{row.name}{members}")
    items = [(name, [rows.get(key) for rows in found]) for key, name in names.items()]
    note = (
        "Rows of the same model and variant; the highest on the same test set stands out. "
        f"{GAIN}: of the same study, low and high its 95 % interval. Nothing is tested between "
        "studies: training itself varies."
    )
    sentences = [Text(f"{study.label}: {summary(study.evaluation)}") for study in studies]
    images = Images(min(of.test_images for of in data))
    warnings = [] if same_test else [Text(DIFFERENT_TESTS, True)]
    return [*warnings, *sentences, Table("Fused accuracy", columns, items, note, images=images)]


def _columns(index: int, label: str, contest: bool) -> list[Column]:
    def of(value: Callable[[RowResult], float]) -> Callable[[Any], float | None]:
        return lambda item: None if item[1][index] is None else value(item[1][index])

    return [
        Column(f"{label}: fused", "accuracy", of(lambda row: row.fused.top1), contest),
        Column(f"{label}: {GAIN}", "points", of(lambda row: row.gain_over_averaging.points)),
        Column(f"{label}: low", "points", of(lambda row: row.gain_over_averaging.low)),
        Column(f"{label}: high", "points", of(lambda row: row.gain_over_averaging.high)),
    ]


def recipe_differences(studies: Studies) -> list[Block]:
    """The fields in which the studies' recipes differ."""

    def of(index: int) -> Callable[[tuple[str, list[Any]]], str]:
        return lambda item: "null" if item[1][index] is None else str(item[1][index])

    fields = dict.fromkeys(field for study in studies for field in study.settings)
    found = [
        (field, [study.settings.get(field, "not set") for study in studies]) for field in fields
    ]
    items = [
        (field, values)
        for field, values in found
        if field not in NOT_COMPARED and any(value != values[0] for value in values)
    ]
    if not items:
        return [Text("The recipes differ in nothing but their rows and output directories.")]
    columns = [Column("field", "text", lambda item: item[0])]
    columns += [
        Column(f"{study.label}: value", "text", of(index)) for index, study in enumerate(studies)
    ]
    return [Table("Fields that differ", columns, items, "Rows and output directories aside.")]


SECTIONS: tuple[tuple[str, Callable[[Studies], Sequence[Block]]], ...] = (
    ("Accuracy", side_by_side),
    ("Recipes", recipe_differences),
)
