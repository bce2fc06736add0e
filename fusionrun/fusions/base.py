"""What the fusions share: the interface, one LayerNorm per expert, and the tail."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DROPOUT = 0.2  # of every tail, and of the attention weights


class FusionModule(nn.Module):
    """E feature vectors -> one. A new fusion implements `fuse`.

    One that `reads_logits` is given the experts' logits (N, E, C) instead of their features, and
    what it makes of them is the answer (N, C): its model has no global head and no adapters.

    Raises ValueError when either size is not a positive whole number.
    """

    reads_logits = False

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__()
        for name, value in (("num_experts", num_experts), ("feature_dim", feature_dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, found {value!r}")
        self.num_experts = num_experts
        self.feature_dim = feature_dim

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, E, D) of E experts -> fused vector (N, D).

        Of logits (N, E, C) -> (N, C), where it `reads_logits`.

        Raises ValueError for another shape: one expert too few would broadcast without a sound.
        """
        what, size = ("logits", "C") if self.reads_logits else ("features", self.feature_dim)
        fits = features.dim() == 3 and features.shape[1] == self.num_experts
        if not fits or features.shape[2] != size != "C":
            raise ValueError(
                f"{type(self).__name__} expects {what} of shape "
                f"(N, {self.num_experts}, {size}), found {tuple(features.shape)}"
            )
        return self.fuse(features)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D), checked -> fused vector (N, D)."""
        raise NotImplementedError


class ExpertNorms(nn.Module):
    """LayerNorm (Ba et al. 2016) of each expert's features by its own weight and bias.

    The E norms are kept as (E, D) tensors, so that one kernel normalises all experts.
    """

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_experts, feature_dim))
        self.bias = nn.Parameter(torch.zeros(num_experts, feature_dim))

    def forward(self, features: Tensor) -> Tensor:
        """(N, E, D) -> (N, E, D), in float32 under autocast, because products follow."""
        normalised = F.layer_norm(features, features.shape[-1:])
        return torch.addcmul(self.bias, normalised, self.weight)


class Tail(nn.Sequential):
    """(N, in_features) -> (N, D): linear, ReLU, dropout 0.2, linear.

    Linear layers start Xavier-uniform (Glorot & Bengio 2010) with zero bias, as the heads do.
    """

    def __init__(self, in_features: int, feature_dim: int) -> None:
        super().__init__(
            nn.Linear(in_features, feature_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Linear(feature_dim, feature_dim),
        )
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


def product_over_experts(factors: Tensor) -> Tensor:
    """(N, E, D) -> (N, D), the element-wise product of the E vectors."""
    first, *others = factors.unbind(dim=1)
    # Not torch.prod: to survive zeros its gradient takes two cumulative products and four copies,
    # where a chain of E - 1 multiplications is exact at zeros by itself.
    for factor in others:
        first = first * factor
    return first


def weighted_sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """Weights (E,), vectors (N, E, D) -> (N, D), the sum over experts of softmax(weights)_k v_k."""
    return (weights.softmax(dim=0).unsqueeze(1) * vectors).sum(dim=1)
