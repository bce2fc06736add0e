"""The experts' mean answer as the fused one: a fusion without weights."""

import torch
from torch import Tensor

from fusionrun.common.image_classifier import NO_OUTPUT, has_output

from .base import FusionModule


class MeanLogits(FusionModule):
    """mean_k logits_k: nothing of its own learns, and the experts learn through their mean.

    Of a class the mean is over the experts that have an output for it. Training an ensemble
    through its mean: Dutt et al. 2020, "Coupled ensembles of neural networks".
    """

    reads_logits = True

    def fuse(self, features: Tensor) -> Tensor:
        """The experts' logits (N, E, C) -> fused logits (N, C)."""
        outputs = has_output(features)
        counts = outputs.sum(dim=1)
        means = (features * outputs).sum(dim=1) / counts.clamp(min=1)
        return torch.where(counts > 0, means, NO_OUTPUT)
