"""Fusion by the product of normalised features plus their weighted sum."""

import torch
from torch import Tensor, nn

from .base import ExpertNorms, FusionModule, Tail, product_over_experts, weighted_sum


class MultiplicativeAddition(FusionModule):
    """tail( prod_k LN_k(f_k) + sum_k softmax(w)_k LN_k(f_k) ), w learnable, ones at first.

    The sum carries each expert's gradient where the product, close to zero, does not.
    Multiplicative interaction: Jayakumar et al. 2020; softmax-weighted sum: Peters et al. 2018.
    """

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        self.norms = ExpertNorms(num_experts, feature_dim)
        self.weights = nn.Parameter(torch.ones(num_experts))
        self.tail = Tail(feature_dim, feature_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        normalised = self.norms(features)
        product = product_over_experts(normalised)
        fused: Tensor = self.tail(product + weighted_sum(self.weights, normalised))
        return fused
