"""Fusion by a weighted sum whose weights each image has of its own."""

from torch import Tensor, nn

from .base import ExpertNorms, FusionModule, Tail


class Gated(FusionModule):
    """tail( sum_k g_k LN_k(f_k) ), g = softmax( W [LN_1(f_1), ..., LN_E(f_E)] + b ).

    A gate over experts: Jacobs et al. 1991; W and b start at zero, so that at first all experts
    weigh the same: Shazeer et al. 2017.
    """

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        self.norms = ExpertNorms(num_experts, feature_dim)
        self.tail = Tail(feature_dim, feature_dim)
        self.gate = nn.Linear(num_experts * feature_dim, num_experts)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        normalised = self.norms(features)
        weights = self.shares(normalised).unsqueeze(2)
        fused: Tensor = self.tail((weights * normalised).sum(dim=1))
        return fused

    def shares(self, normalised: Tensor) -> Tensor:
        """Normalised features (N, E, D) -> each image's weights of the experts (N, E)."""
        logits: Tensor = self.gate(normalised.flatten(start_dim=1))
        return logits.softmax(dim=1)
