"""Answers as scores (N, C), the highest of a sample being its answer; one network's or several's.

Tensors do the work, torch itself is not imported: what only needs the methods' names stays light.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 4096  # images: double precision of all would take room on a GPU
UNNORMALISED = 1e-4  # in nats: more than float32 loses in a log-softmax


def check_scores(name: str, scores: "Tensor", dims: str) -> "Tensor":
    """`scores` in double precision; `dims` names its dimensions, a letter each: "NC" or "NEC".

    Raises ValueError: another shape, nothing in it, fewer than two classes, not-a-number or
    infinity.
    """
    if scores.dim() != len(dims) or not scores.numel() or scores.shape[-1] < 2:
        raise ValueError(
            f"{name}: expected shape ({', '.join(dims)}) of at least one sample and two classes, "
            f"found {tuple(scores.shape)}"
        )
    wrong = ~scores.isfinite().flatten(start_dim=1).all(dim=1)
    if wrong.any():
        raise ValueError(
            f"{name}: {int(wrong.sum())} of {len(wrong)} samples hold values that are not finite, "
            f"the first is sample {int(wrong.int().argmax())}; the model that made them diverged"
        )
    return scores.double()


def log_probabilities(logits: "Tensor") -> "Tensor":
    """Log-softmax of (N, C) logits in double precision. Raises ValueError."""
    return check_scores("logits", logits, "NC").log_softmax(dim=-1)


def mean_logits(expert_logits: "Tensor") -> "Tensor":
    """The experts' mean logits: (N, E, C) -> (N, C). Raises ValueError."""
    return check_scores("expert logits", expert_logits, "NEC").mean(dim=1)


def mix_probabilities(expert_logits: "Tensor", weights: "Tensor | None" = None) -> "Tensor":
    """Log of the experts' weighted mean probability: (N, E, C), (E,) -> (N, C).

    Without `weights` all experts weigh the same. Raises ValueError.
    """
    each = check_scores("expert logits", expert_logits, "NEC").log_softmax(dim=-1)
    experts = each.shape[1]
    if weights is None:
        return each.logsumexp(dim=1) - math.log(experts)
    weights = weights.double()
    convex = weights.shape == (experts,) and bool((weights >= 0).all())
    if not convex or not abs(float(weights.sum()) - 1) <= UNNORMALISED:
        raise ValueError(
            f"weights: expected {experts}, none negative, that sum to one, found {weights.tolist()}"
        )
    return (each + weights.log().unsqueeze(-1)).logsumexp(dim=1)


def averaged_accuracy(expert_logits: "Tensor", labels: "Tensor") -> float | None:
    """Percent right of the mean of probabilities: (N, E, C), (N,); None: no experts, not finite."""
    if not expert_logits.numel() or not bool(expert_logits.isfinite().all()):
        return None
    right = 0
    for start in range(0, len(labels), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        right += int((mix_probabilities(expert_logits[part]).argmax(dim=-1) == labels[part]).sum())
    return 100 * right / len(labels)
