"""Experts, a fusion and a global head as one trainable model."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusionrun.common.image_classifier import ImageClassifier, answered

from .base import FusionModule
from .branches import Branches, in_turn
from .recompute import can_be_recomputed, recomputed


class FusionOutput(NamedTuple):
    """What one forward pass yields: both paths of the loss, and the features between them."""

    logits: Tensor  # (N, C), of the global head
    expert_logits: Tensor  # (N, E, C), each expert's own
    features: Tensor  # what the fusion read: (N, E, D), adapted to one size, or the expert_logits


class FusionModel(ImageClassifier):
    """Images -> experts -> fusion -> global head, trained end to end.

    `experts` are modules that map images (N, 3, H, W) to features (N, D_k) and logits (N, C) and
    say their `feature_dim`. Where that isn't the fusion's size D, a linear adapter maps D_k to D;
    the expert's logits don't pass it. Adapters and the global head start Xavier-uniform with zero
    bias; a fusion that reads logits needs neither: the head then passes on what it makes of them.
    With `detached` the experts get no gradient from the fused logits: they learn as if there were
    no fusion. The model knows what it was trained on where its experts agree in it.

    Raises ValueError when the experts are not as many as the fusion was built for, when one
    doesn't say its feature size, or when one has another number of classes.
    """

    recomputes: tuple[int, ...] = ()  # experts whose activations training doesn't keep
    branches: Branches = staticmethod(in_turn)  # how experts are computed, see branches.py

    def __init__(
        self,
        experts: Sequence[nn.Module],
        fusion: FusionModule,
        num_classes: int,
        *,
        detached: bool = False,
    ) -> None:
        super().__init__()
        _check_fit(experts, fusion, num_classes)
        self.experts = nn.ModuleList(experts)
        self.fusion = fusion
        self.detached = detached
        size = fusion.feature_dim
        self.global_head = nn.Identity() if fusion.reads_logits else _linear(size, num_classes)
        self.adapters = nn.ModuleList(_adapter(expert, fusion) for expert in experts)
        known = {getattr(expert, "trained_on", None) for expert in experts}
        if len(known) == 1 and (trained_on := known.pop()) is not None:
            self.know(trained_on)

    @property
    def is_adapted(self) -> bool:
        """Whether an expert's features aren't of the fusion's size."""
        return any(isinstance(adapter, nn.Linear) for adapter in self.adapters)

    def recompute_experts(self) -> bool:
        """Train with less memory from now on, see `recomputed`; False: none is to be saved."""
        before = self.recomputes
        experts = enumerate(self.experts)
        self.recomputes = tuple(k for k, expert in experts if can_be_recomputed(expert))
        return self.recomputes != before

    def forward(self, images: Tensor) -> FusionOutput:
        """Images (N, 3, H, W) -> logits (N, C), expert_logits (N, E, C), features (N, E, D)."""
        experts = [
            partial(recomputed, expert) if k in self.recomputes and expert.training else expert
            for k, expert in enumerate(self.experts)
        ]
        # side by side, those that are recomputed would all have their activations in memory
        outputs = (in_turn if self.recomputes else self.branches)(experts, images)
        expert_logits = torch.stack([logits for _, logits in outputs], dim=1)
        read = self.adapted([each[self.fusion.reads_logits] for each in outputs])
        logits = answered(self.global_head, self.fusion(read))
        return FusionOutput(logits, expert_logits, read)

    def adapted(self, features: Sequence[Tensor]) -> Tensor:
        """Every expert's features (N, D_k), or logits -> what the fusion reads (N, E, D)."""
        if self.detached:
            features = [each.detach() for each in features]
        pairs = zip(self.adapters, features, strict=True)
        return torch.stack([adapter(each) for adapter, each in pairs], dim=1)

    def class_logits(self, images: Tensor) -> Tensor:
        """As `forward`, the fused logits alone."""
        logits: Tensor = self(images).logits
        return logits


def _adapter(expert: nn.Module, fusion: FusionModule) -> nn.Module:
    found, size = expert.feature_dim, fusion.feature_dim
    needs_none = fusion.reads_logits or found == size
    return nn.Identity() if needs_none else _linear(int(found), size)  # type: ignore[arg-type]


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Starts Xavier-uniform (Glorot & Bengio 2010) with zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _check_fit(experts: Sequence[nn.Module], fusion: FusionModule, num_classes: int) -> None:
    if len(experts) != fusion.num_experts:
        raise ValueError(
            f"the fusion was built for {fusion.num_experts} experts, found {len(experts)}"
        )
    sizes = [getattr(expert, "feature_dim", None) for expert in experts]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"all experts must say their feature_dim, found {sizes}")
    classes = [getattr(expert, "num_classes", num_classes) for expert in experts]
    if any(count != num_classes for count in classes):
        raise ValueError(f"all experts must have {num_classes} classes, found {classes}")
