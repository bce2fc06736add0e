"""The dual-path loss, over all heads of a model at once."""

import torch
from torch import Tensor
from torch.nn import functional

from fusionrun.common.image_classifier import has_output


def head_losses(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of every head: logits (N, H, C), soft targets (N, C) -> (H,), means over N.

    With targets mixed as lam * a + (1 - lam) * b this equals lam CE(a) + (1 - lam) CE(b), also
    with label smoothing (Szegedy et al. 2016), because cross-entropy is linear in its target.

    A head without outputs for some classes is asked about the others alone: of a target their part
    counts, and an image of none of them adds 0 to the mean.
    """
    outputs = has_output(logits[0]).to(targets.dtype)  # (H, C), of every image the same
    asked = targets @ outputs.T > 0  # (N, H)
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / targets.shape[-1]
    log_probabilities = functional.log_softmax(logits.float(), dim=-1)
    each = (log_probabilities * (targets.unsqueeze(1) * outputs)).sum(dim=-1)
    return -(each * asked).mean(dim=0)


def head_weights(num_experts: int, alpha: float, device: torch.device) -> Tensor:
    """Weights (1 + E,) of L = CE(global) + alpha * sum over experts of CE(expert)."""
    return torch.tensor([1.0] + [alpha] * num_experts, device=device)


def head_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the target that each head's choice gets: (N, H, C), (N, C) -> (H,), sums over N.

    With one-hot targets it counts right answers; on a mixed image a choice earns its part.
    """
    choice = logits.argmax(dim=-1)  # (N, H)
    return targets.gather(1, choice).sum(dim=0)
