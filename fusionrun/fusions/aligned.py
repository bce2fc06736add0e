"""The product and the sum of features that a linear map of each expert's brings into line first.

Experts are trained apart: feature d of one has nothing to do with feature d of another, until
something learns which of them belong together.
"""

import torch
from torch import Tensor, nn

from .multiplicative import Multiplicative
from .simple_addition import SimpleAddition


class AlignmentMap(nn.Linear):
    """A linear map D -> D that starts as the identity with zero bias, and so draws nothing."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__(feature_dim, feature_dim)

    def reset_parameters(self) -> None:
        """As the constructor leaves it."""
        nn.init.zeros_(self.weight)
        with torch.no_grad():  # nn.init.eye_ makes torch import its compiler on the meta device
            self.weight.diagonal().fill_(1)
        nn.init.zeros_(self.bias)


class Maps(nn.ModuleList):
    """A linear map of each expert's features."""

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(AlignmentMap(feature_dim) for _ in range(num_experts))

    def forward(self, features: Tensor) -> Tensor:
        """(N, E, D) -> (N, E, D)."""
        pairs = zip(self, features.unbind(dim=1), strict=True)
        return torch.stack([linear(each) for linear, each in pairs], dim=1)


class AlignedMultiplicative(Multiplicative):
    """tail( prod_k LN_k(A_k f_k + b_k) ), with A_k (D, D) the identity and b_k zero at first."""

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        self.maps = Maps(num_experts, feature_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        return super().fuse(self.maps(features))


class AlignedAddition(SimpleAddition):
    """tail( sum_k softmax(w)_k (A_k f_k + b_k) ), where w starts as ones, A_k and b_k as above."""

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        self.maps = Maps(num_experts, feature_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        return super().fuse(self.maps(features))
