"""Fusion beside the cheap alternatives, all from one pass over the same images."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fusionrun.evaluation.statistics.metrics import mix_logits, mix_probabilities


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of logits (N, C) (or probabilities) whose largest entry is the label (N,)."""
    return 100 * float((logits.argmax(dim=-1) == labels).double().mean())


def compare(
    logits: Tensor,
    labels: Tensor,
    before: Tensor,
    *,
    val_accuracies: list[float],
    before_val_accuracies: list[float],
) -> Mapping[str, float | list[float]]:
    """Accuracies in percent of fusion and its alternatives on the same images.

    `logits` (N, 1 + E, C): the fused head, then the tuned experts'; `before` (N, E, C): the
    experts as they were before fusion training. The best expert is chosen by its *validation*
    accuracy: choosing it on these images would flatter it.
    """
    experts = logits[:, 1:]
    each = [accuracy(experts[:, k], labels) for k in range(experts.shape[1])]
    each_before = [accuracy(before[:, k], labels) for k in range(before.shape[1])]
    best = int(torch.tensor(val_accuracies).argmax())
    best_before = int(torch.tensor(before_val_accuracies).argmax())
    return {
        "fused": accuracy(logits[:, 0], labels),
        "best_expert": each[best],
        "mean_probabilities": accuracy(mix_probabilities(experts), labels),
        "mean_logits": accuracy(mix_logits(experts), labels),
        "before_best_expert": each_before[best_before],
        "before_mean_probabilities": accuracy(mix_probabilities(before), labels),
        "before_mean_logits": accuracy(mix_logits(before), labels),
        "experts": each,
        "before_experts": each_before,
    }
