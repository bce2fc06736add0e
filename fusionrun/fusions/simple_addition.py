"""Fusion by a weighted sum of the features as they come."""

import torch
from torch import Tensor, nn

from .base import FusionModule, Tail, weighted_sum


class SimpleAddition(FusionModule):
    """tail( sum_k softmax(w)_k f_k ), w learnable, ones at first; no norms.

    Softmax-weighted sum: Peters et al. 2018.
    """

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        self.weights = nn.Parameter(torch.ones(num_experts))
        self.tail = Tail(feature_dim, feature_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        fused: Tensor = self.tail(weighted_sum(self.weights, features))
        return fused
