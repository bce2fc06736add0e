"""Fusion by self-attention among the experts."""

from torch import Tensor, nn

from .base import DROPOUT, ExpertNorms, FusionModule, Tail

HEADS = 8


class TransformerBase(FusionModule):
    """tail( mean over tokens of attention(LN_1(f_1), ..., LN_E(f_E)) ).

    One multi-head self-attention (Vaswani et al. 2017) with 8 heads over E tokens, dropout 0.2 on
    its weights. No residual, no positional code, no output norm: only the attention of a
    transformer layer, so the order of the experts matters through their norms alone.

    Raises ValueError when the 8 heads do not divide `feature_dim`.
    """

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        if feature_dim % HEADS:
            raise ValueError(
                f"TransformerBase splits the feature size D among {HEADS} attention heads; "
                f"D must be a multiple of {HEADS}, found D = {feature_dim}"
            )
        self.norms = ExpertNorms(num_experts, feature_dim)
        self.attention = nn.MultiheadAttention(
            feature_dim, HEADS, dropout=DROPOUT, batch_first=True
        )
        self.tail = Tail(feature_dim, feature_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        tokens = self.norms(features)
        # Asking for the attention weights would rule out the fused kernel.
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        fused: Tensor = self.tail(attended.mean(dim=1))
        return fused
