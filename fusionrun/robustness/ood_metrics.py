"""Out-of-distribution detection: how well a model's confidence tells what it can't know.

Scores are high for what the model takes for in-distribution. AUROC and AUPR don't depend on a
threshold; FPR at 95 % TPR sets it where 95 % of the in-distribution images pass (Hendrycks and
Gimpel, "A baseline for detecting misclassified and out-of-distribution examples", 2017).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusionrun.training.scores import check_scores

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DetectionMetrics:
    """All in percent. Chance is 50 for auroc, and the share of its side for aupr."""

    auroc: float  # probability that an in-distribution image outscores an OOD one; ties count half
    aupr_in: float  # average precision of finding the in-distribution images by high scores
    aupr_out: float  # average precision of finding the OOD images by low scores
    fpr_at_95_tpr: float  # OOD images that pass where at least 95 % of the in-distribution do


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


def detection_metrics(in_distribution: Tensor, ood: Tensor) -> DetectionMetrics:
    """Scores (N,) of in-distribution and (M,) of OOD images, compared exactly, ties included.

    Average precision is the sum of precision over steps of recall, without interpolation. Raises
    ValueError for no scores, another shape or values that aren't finite.
    """
    for name, scores in (("in-distribution", in_distribution), ("OOD", ood)):
        if scores.ndim != 1 or not len(scores) or not scores.isfinite().all():
            found = f"{tuple(scores.shape)}, {int((~scores.isfinite()).sum())} of them not finite"
            raise ValueError(f"{name} scores: expected (N,) finite numbers, found {found}")
    both = torch.cat([in_distribution.double(), ood.double()]).cpu().numpy()
    levels, index = np.unique(both, return_inverse=True)  # rising
    id_at = np.bincount(index[: len(in_distribution)], minlength=len(levels))
    ood_at = np.bincount(index[len(in_distribution) :], minlength=len(levels))
    # pairs that are in the right order, twice, so that a tie is a whole number
    below = ood_at.cumsum() - ood_at
    ordered = int((id_at * (2 * below + ood_at)).sum())
    # what passes when the threshold is each level, from the strictest on
    id_pass, ood_pass = id_at[::-1].cumsum(), ood_at[::-1].cumsum()
    enough = int((20 * id_pass >= 19 * len(in_distribution)).argmax())
    return DetectionMetrics(
        auroc=50 * ordered / (len(in_distribution) * len(ood)),
        aupr_in=_average_precision(id_at[::-1], ood_at[::-1]),
        aupr_out=_average_precision(ood_at, id_at),
        fpr_at_95_tpr=100 * int(ood_pass[enough]) / len(ood),
    )


def _average_precision(wanted: Counts, others: Counts) -> float:
    """Percent, from how many of each there are at every level, best level first."""
    found, taken = wanted.cumsum(), (wanted + others).cumsum()
    return 100 * float((wanted * (found / taken)).sum()) / int(found[-1])
