"""Every row beside its controls where training ends, and what each of them cost."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fusionrun.evaluation.alternatives import CONTROLS, FIRST_HEAD, FUSED, METHODS
from fusionrun.evaluation.results import Result, images_of
from fusionrun.evaluation.results_columns import names_of, top1
from fusionrun.evaluation.schema import Cost
from fusionrun.study.recipe import WITHOUT_EXPERTS
from fusionrun.tables import headline
from fusionrun.tables.table import Column, Table, short_count

CONTROLS_TITLE = "Does fusion itself help?"
CONTROLS_CAPTION = "paired with the row by seed; what each column is stands in results.md"
CONTROLS_LEGEND = (
    "Does fusion itself help? `experts frozen`: the same fusion on experts that fusion training "
    "leaves as they are. `experts without fusion`: the mean of the probabilities of experts that "
    "only their own losses train on, everything else as in the row. `one network`: the "
    "architecture once, trained as an expert is, on all images that experts and fusion saw. "
    "`full ensemble`: the mean of the probabilities of as many such networks as there are experts, "
    "each with a seed of its own."
)
COSTS_TITLE = "What they cost"
COSTS_CAPTION = (
    "training of experts included; images seen: each counts once; image passes: images x epochs x "
    "networks, forward and backward; MACs, parameters: of answering an image"
)
COSTS_LEGEND = (
    "What rows and their controls cost, the training of experts included. `images seen` counts "
    "each training image once; `image passes` are images x epochs x networks that they go through "
    "forward and backward (frozen experts: forward only); `MACs` (multiply-accumulates) and "
    "`parameters` are those of answering an image. n/a: with experts that this study's recipe "
    "wouldn't train, or trained by an earlier version. What pretrained weights had cost isn't "
    "counted."
)


def counted(heading: str, read: Callable[[Cost], int | None], dispensable: int = 0) -> Column:
    """Of (model, fusion, what answers, cost)."""

    def of(item: Any) -> str | None:
        number = item[3] and read(item[3])
        return None if number is None else short_count(number)

    return Column(heading, "written", of, dispensable=dispensable)


COSTS = (
    Column("model", "name", lambda item: item[0]),
    Column("fusion", "name", lambda item: item[1]),
    Column("answers", "text", lambda item: item[2]),
    counted("images seen", lambda cost: cost.images_seen),
    counted("optimizer steps", lambda cost: cost.steps, dispensable=2),
    counted("image passes", lambda cost: cost.image_passes),
    counted("MACs", lambda cost: cost.macs),
    counted("parameters", lambda cost: cost.parameters, dispensable=1),
)


def controls_table(results: Sequence[Result]) -> Table:
    """Every row that has controls beside them; they settle whether fusion itself helped."""

    beside = []
    for row in results:
        controls: dict[str, float] = {}
        for other in results:
            if other.is_control_of(row):
                method = METHODS[other.control or other.fusion]
                # its method's key among the control's own: all heads but the first are experts
                own = FUSED.key if method.formula is FIRST_HEAD else headline.AVERAGING
                controls |= {method.key: other.top1[own]} if own in other.top1 else {}
        if any(other.is_control_of(row) for other in results):
            beside.append(replace(row, top1={**row.top1, **controls}))
    *shown, ensemble = CONTROLS  # which takes many trainings, and is rarely there
    shown += [ensemble] if any(ensemble.key in each.top1 for each in beside) else []
    columns = [*names_of(results), top1(FUSED.key), *(top1(method.key) for method in shown)]
    return Table(CONTROLS_TITLE, columns, beside, CONTROLS_CAPTION, images=images_of(results))


def costs_table(results: Sequence[Result]) -> Table:
    """Of every row that has controls, and of these; once for all seeds that cost the same."""
    lines: list[tuple[str, str, str, Cost | None]] = []
    for row in results:
        beside = [other for other in results if other.is_control_of(row)]
        lines += [(row.model, row.fusion, FUSED.heading, row.cost)] if beside else []
        for other in beside:
            fusion = "-" if other.fusion in WITHOUT_EXPERTS else other.fusion
            heading = METHODS[other.control or other.fusion].heading
            lines.append((other.model, fusion, heading, other.cost))
    known = any(cost for *_, cost in lines)
    return Table(COSTS_TITLE, COSTS, list(dict.fromkeys(lines)) if known else [], COSTS_CAPTION)


def controls_tables(results: Sequence[Result]) -> list[tuple[Table, str]]:
    """Whether fusion helps and what that took, each with its legend in Markdown."""
    return [(controls_table(results), CONTROLS_LEGEND), (costs_table(results), COSTS_LEGEND)]
