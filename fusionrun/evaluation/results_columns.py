"""Columns of the tables that the end of training brings."""

from collections.abc import Callable, Sequence

from fusionrun.evaluation.alternatives import FUSED, METHODS
from fusionrun.evaluation.results import UNFITTED, Result
from fusionrun.tables import headline
from fusionrun.tables.table import Column


def top1(key: str) -> Column:
    """On a narrow terminal the fused model and the mean of probabilities are the last to go."""
    last = {FUSED.key: 0, headline.AVERAGING: 0, headline.BEST_EXPERT: 6}
    last |= {"mean_logits": 5, "before_mean_logits": 2}
    of: Callable[[Result], float | None] = lambda result: result.top1.get(key)  # noqa: E731
    return Column(METHODS[key].heading, "accuracy", of, dispensable=last.get(key, 1))


NAMES = (
    Column("model", "name", lambda result: result.model),
    Column("fusion", "name", lambda result: result.fusion),
    Column("seed", "whole", lambda result: result.seed),
    Column("alpha", "plain", lambda result: result.alpha),
)
EXPERT_SEED = Column(
    "experts' seed",
    "written",
    lambda result: "the study's" if result.expert_seed is None else str(result.expert_seed),
)
STACKED = Column("row", "name", lambda result: f"{result.model}\n{result.variant}")
NUMBERS = (
    Column("epoch", "whole", lambda result: result.epoch, dispensable=3),
    Column("val.", "validation", lambda result: result.val_accuracy, dispensable=4),
    top1(FUSED.key),
    top1(headline.AVERAGING),
    Column(headline.GAIN, "margin", lambda result: result.over(headline.AVERAGING)),
    top1(headline.BEST_EXPERT),
    Column(
        headline.VS_BEST_EXPERT, "margin", lambda row: row.over(headline.BEST_EXPERT), dispensable=7
    ),
    *(top1(key) for key in UNFITTED if key not in (headline.AVERAGING, headline.BEST_EXPERT)),
)


def names_of(results: Sequence[Result]) -> list[Column]:
    """What tells the rows apart."""
    varied = any(result.expert_seed is not None for result in results)
    return [*NAMES, *([EXPERT_SEED] if varied else [])]
