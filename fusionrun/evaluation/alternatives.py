"""The methods that results compare: what each is called, how it answers, what was chosen for it.

The one definition, for the test at a row's end, `evaluate`, `robustness`, `assemble`, `preview` and
every table. Importing it doesn't import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fusionrun.study.recipe import FULL_ENSEMBLE, SINGLE
from fusionrun.training.scores import (
    check_scores,
    log_probabilities,
    mean_logits,
    mix_probabilities,
)

if TYPE_CHECKING:
    from torch import Tensor

STACKING = "stacking"  # key of a regression on the experts' answers

# whose logits a method reads: all heads of the row (fusion), its tuned experts (after), the experts
# as their own training left them (before), all heads of a row that is there to compare (control)
Stage = Literal["fusion", "after", "before", "control"]


@dataclass(frozen=True)
class Choice:
    """What validation chose among the experts of a stage."""

    best: int  # the most accurate; of equals the first
    weights: "Tensor | None" = None  # (E,) with the smallest loss; None: not fitted
    stacking: "Callable[[Tensor], Tensor] | None" = None  # (N, E, C) -> (N, C) logits; likewise
    held_out: "Tensor | None" = None  # (V, C) its log-probabilities on validation, out of fold


NOTHING_CHOSEN = Choice(0)


@dataclass(frozen=True)
class Formula:
    """How answers follow from logits (N, H, C). Raises ValueError where they aren't finite."""

    scores: Callable[["Tensor", Choice], "Tensor"]  # (N, C)
    has_logits: bool = True  # else the scores are log-probabilities already
    chosen: Literal["nothing", "expert", "weights", "stacking"] = "nothing"  # on validation

    @property
    def is_fitted(self) -> bool:
        """Whether it takes all the logits of validation, and not just how accurate experts are."""
        return self.chosen in ("weights", "stacking")

    def log_probabilities(self, logits: "Tensor", choice: Choice) -> "Tensor":
        """(N, H, C) -> (N, C)."""
        scores = self.scores(logits, choice)
        return log_probabilities(scores) if self.has_logits else scores


@dataclass(frozen=True)
class Method:
    key: str  # in files
    label: str
    heading: str  # of a narrow column
    stage: Stage
    formula: Formula


def stacked(logits: "Tensor", choice: Choice) -> "Tensor":
    """(N, E, C) -> (N, C)."""
    assert choice.stacking is not None, "it is left out where nothing was fitted"
    return choice.stacking(logits)


FIRST_HEAD = Formula(lambda logits, _: check_scores("logits", logits[:, 0], "NC"))
OTHER_HEADS = Formula(lambda logits, _: mix_probabilities(logits[:, 1:]), has_logits=False)
BEST_EXPERT = Formula(
    lambda logits, choice: check_scores("logits", logits[:, choice.best], "NC"), chosen="expert"
)
MEAN_PROBABILITIES = Formula(lambda logits, _: mix_probabilities(logits), has_logits=False)
MEAN_LOGITS = Formula(lambda logits, _: mean_logits(logits))
WEIGHTED = Formula(
    lambda logits, choice: mix_probabilities(logits, choice.weights),
    has_logits=False,
    chosen="weights",
)
STACKED = Formula(stacked, chosen="stacking")

FUSED = Method("fused", "fused", "fused", "fusion", FIRST_HEAD)

# put together from the row's own experts: they cost no training beyond these
ALTERNATIVES = (
    Method("best_expert", "best expert", "best expert", "after", BEST_EXPERT),
    Method(
        "mean_probabilities", "mean of probabilities", "mean prob.", "after", MEAN_PROBABILITIES
    ),
    Method("mean_logits", "mean of logits", "mean logits", "after", MEAN_LOGITS),
    Method("weighted", "weighted mean", "weighted", "after", WEIGHTED),
    Method(STACKING, "stacking", "stacking", "after", STACKED),
    Method("before_best_expert", "before: best expert", "before: expert", "before", BEST_EXPERT),
    Method(
        "before_mean_probabilities",
        "before: mean of probabilities",
        "before: prob.",
        "before",
        MEAN_PROBABILITIES,
    ),
    Method("before_mean_logits", "before: mean of logits", "before: logits", "before", MEAN_LOGITS),
    Method("before_weighted", "before: weighted mean", "before: weighted", "before", WEIGHTED),
    Method("before_stacking", "before: stacking", "before: stacking", "before", STACKED),
)

# rows of their own, by what they control: each cost a training
CONTROLS = (
    Method("frozen", "control: experts frozen", "experts frozen", "control", FIRST_HEAD),
    Method(
        "detached",
        "control: experts without fusion",
        "experts without fusion",
        "control",
        OTHER_HEADS,
    ),
    Method(SINGLE, "control: one network", "one network", "control", FIRST_HEAD),
    Method(FULL_ENSEMBLE, "control: full ensemble", "full ensemble", "control", FIRST_HEAD),
)

METHODS = {method.key: method for method in (FUSED, *ALTERNATIVES, *CONTROLS)}


def scores_by_method(
    logits: Mapping[Stage, "Tensor"], best: Mapping[Stage, int]
) -> dict[Method, "Tensor"]:
    """Scores (N, C) of the fused model and its alternatives at the stages that have `logits`.

    `best` expert of each stage, by validation. Fitted ones aren't among them: that takes the logits
    of validation, too. Raises ValueError: not finite.
    """
    return {
        method: method.formula.scores(logits[method.stage], Choice(best.get(method.stage, 0)))
        for method in (FUSED, *ALTERNATIVES)
        if method.stage in logits and not method.formula.is_fitted
    }
