"""Fusion by the element-wise product of normalised features, plain and shifted."""

from torch import Tensor

from .base import ExpertNorms, FusionModule, Tail, product_over_experts


class Multiplicative(FusionModule):
    """tail( prod_k LN_k(f_k) ): a feature counts where all experts respond.

    Multiplicative interaction: Jayakumar et al. 2020.
    """

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        self.norms = ExpertNorms(num_experts, feature_dim)
        self.tail = Tail(feature_dim, feature_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        fused: Tensor = self.tail(product_over_experts(self.factors(self.norms(features))))
        return fused

    def factors(self, normalised: Tensor) -> Tensor:
        """(N, E, D) -> (N, E, D), what is multiplied."""
        return normalised


class MultiplicativeShifted(Multiplicative):
    """tail( prod_k (LN_k(f_k) + 1) ): an expert near zero leaves the others as they are.

    Expanded, the product is 1 plus the products over every subset of experts, so that each
    expert's own feature, and its gradient, passes at first order too.
    """

    def factors(self, normalised: Tensor) -> Tensor:
        """(N, E, D) -> (N, E, D), what is multiplied."""
        return normalised + 1.0
