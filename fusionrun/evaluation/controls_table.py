"""Rows beside the rows that control them, with what both cost."""

from collections.abc import Callable
from typing import Any

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.evaluation.alternatives import METHODS
from fusionrun.evaluation.schema import Cost, Difference, Evaluation, MethodResult, RowResult
from fusionrun.tables.table import Column, Table, short_count

COST_NOTE = (
    "Costs as fused / control, training of experts included: images seen counts each training "
    "image once, image passes are images x epochs x networks forward and backward (frozen experts "
    "go forward only), MACs and parameters are those of answering an image. n/a: with experts that "
    "this study's recipe wouldn't train. What pretrained weights had cost isn't counted."
)
TITLE = "Does fusion itself help? Fused models and their controls"
CONTROLS_NOTE = (
    "In brackets 95 % intervals over test images; p: McNemar's, then corrected over all "
    f"alternatives and controls of all rows (Holm). {COST_NOTE}"
)


def beside(read: Callable[[Cost], int | None]) -> Callable[[Any], str | None]:
    """Of (row, control, ...): the row's number and the control's; None: neither is known."""

    def of(item: Any) -> str | None:
        numbers = [cost and read(cost) for cost in (item[0].cost, item[1].cost)]
        known = [NOT_AVAILABLE if n is None else short_count(n) for n in numbers]
        return None if numbers == [None, None] else " / ".join(known)

    return of


COST_COLUMNS = (  # of (row, control, ...)
    Column(
        "images seen: fused / its", "written", beside(lambda cost: cost.images_seen), dispensable=3
    ),
    Column(
        "optimizer steps: fused / its", "written", beside(lambda cost: cost.steps), dispensable=2
    ),
    Column(
        "image passes: fused / its",
        "written",
        beside(lambda cost: cost.image_passes),
        dispensable=4,
    ),
    Column("MACs: fused / its", "written", beside(lambda cost: cost.macs), dispensable=4),
    Column(
        "parameters: fused / its", "written", beside(lambda cost: cost.parameters), dispensable=1
    ),
)
CONTROLS = (  # of (row, control, difference)
    Column("model", "name", lambda item: item[0].model),
    Column("fusion", "name", lambda item: item[0].variant),
    Column("control", "text", lambda item: METHODS[item[1].key].heading),
    Column("fused", "accuracy", lambda item: item[0].fused.top1),
    Column("its", "accuracy", lambda item: item[1].top1),
    Column("fused minus it", "margin", lambda item: item[2].margin),
    Column("p", "p", lambda item: item[2].p_value, dispensable=5),
    Column("p (Holm)", "p", lambda item: item[2].p_holm, dispensable=6),
    *COST_COLUMNS,
)


def controls_table(evaluation: Evaluation) -> Table:
    """Of all rows that have some."""
    images = evaluation.data.images
    return Table(TITLE, CONTROLS, controls(evaluation), CONTROLS_NOTE, images=images)


def controls(evaluation: Evaluation) -> list[tuple[RowResult, MethodResult, Difference]]:
    """Each row with each of its controls."""
    return [
        (row, method, method.difference)
        for row in evaluation.rows
        for method in row.methods
        if method.stage == "control" and method.difference
    ]
