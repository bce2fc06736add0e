"""How well a model's confidence tells images of its classes from images of something else.

Scores are high for what the model takes for its own. AUROC and AUPR don't depend on where the
line between the two is drawn, FPR at 95 % TPR draws it where 95 % of the own images pass.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusionrun.evaluation.statistics.metrics import check_scores

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Detection:
    """All in percent. Chance is 50 for auroc, and the share of its side for aupr."""

    auroc: float  # probability that an own image scores higher than a foreign one; ties count half
    aupr_in: float  # average precision of finding the own images by high scores
    aupr_out: float  # average precision of finding the foreign images by low scores
    fpr_at_95_tpr: float  # foreign images that pass where at least 95 % of the own do


def max_probability(logits: Tensor) -> Tensor:
    """Largest softmax probability (Hendrycks and Gimpel 2017): (N, C) -> (N,) float64.

    Raises ValueError for another shape or values that aren't finite.
    """
    return check_scores("logits", logits, "NC").softmax(dim=1).amax(dim=1)


def negative_energy(logits: Tensor) -> Tensor:
    """Log of the sum of exponentials (Liu et al. 2020, temperature 1): (N, C) -> (N,) float64.

    Raises ValueError for another shape or values that aren't finite.
    """
    return check_scores("logits", logits, "NC").logsumexp(dim=1)


def detect(own: Tensor, foreign: Tensor) -> Detection:
    """Scores (N,) of own and (M,) of foreign images, compared exactly, ties included.

    Average precision is the sum of precision over steps of recall, without interpolation. Raises
    ValueError for no scores, another shape or values that aren't finite.
    """
    for name, scores in (("own", own), ("foreign", foreign)):
        if scores.ndim != 1 or not len(scores) or not scores.isfinite().all():
            found = f"{tuple(scores.shape)}, {int((~scores.isfinite()).sum())} of them not finite"
            raise ValueError(f"{name} scores: expected (N,) finite numbers, found {found}")
    both = torch.cat([own.double(), foreign.double()]).cpu().numpy()
    levels, index = np.unique(both, return_inverse=True)  # rising
    own_at = np.bincount(index[: len(own)], minlength=len(levels))
    foreign_at = np.bincount(index[len(own) :], minlength=len(levels))
    # pairs that are in the right order, twice, so that a tie is a whole number
    below = foreign_at.cumsum() - foreign_at
    ordered = int((own_at * (2 * below + foreign_at)).sum())
    # what passes when the line is drawn at each level, from the strictest on
    own_pass, foreign_pass = own_at[::-1].cumsum(), foreign_at[::-1].cumsum()
    enough = int((20 * own_pass >= 19 * len(own)).argmax())
    return Detection(
        auroc=50 * ordered / (len(own) * len(foreign)),
        aupr_in=_average_precision(own_at[::-1], foreign_at[::-1]),
        aupr_out=_average_precision(foreign_at, own_at),
        fpr_at_95_tpr=100 * int(foreign_pass[enough]) / len(foreign),
    )


def _average_precision(wanted: Counts, others: Counts) -> float:
    """Percent, from how many of each there are at every level, best level first."""
    found, taken = wanted.cumsum(), (wanted + others).cumsum()
    return 100 * float((wanted * (found / taken)).sum()) / int(found[-1])
