"""Fusion by a network over all features side by side."""

from torch import Tensor

from .base import ExpertNorms, FusionModule, Tail


class Concatenation(FusionModule):
    """tail( [LN_1(f_1), ..., LN_E(f_E)] ), where the tail's first layer maps E * D to D."""

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        self.norms = ExpertNorms(num_experts, feature_dim)
        self.tail = Tail(num_experts * feature_dim, feature_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        fused: Tensor = self.tail(self.norms(features).flatten(start_dim=1))
        return fused
