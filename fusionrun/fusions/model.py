"""Experts, a fusion and a global head as one trainable model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusionrun.common.image_classifier import ImageClassifier

from .base import FusionModule


class FusionOutput(NamedTuple):
    """What one forward pass yields: both paths of the loss, and the features between them."""

    logits: Tensor  # (N, C), of the global head
    expert_logits: Tensor  # (N, E, C), each expert's own
    features: Tensor  # (N, E, D), what the fusion read


class FusionModel(ImageClassifier):
    """Images -> experts -> fusion -> global head, trained end to end.

    `experts` are modules that map images (N, 3, H, W) to features (N, D) and logits (N, C) and
    say their `feature_dim`. The global head starts Xavier-uniform with zero bias. With `detached`
    the experts get no gradient from the fused logits: they learn as if there were no fusion. The
    model knows what it was trained on where its experts agree in it.

    Raises ValueError when the experts are not as many as the fusion was built for, when their
    feature sizes differ from the fusion's, or when one has another number of classes.
    """

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
        self.global_head = nn.Linear(fusion.feature_dim, num_classes)
        nn.init.xavier_uniform_(self.global_head.weight)
        nn.init.zeros_(self.global_head.bias)
        known = {getattr(expert, "trained_on", None) for expert in experts}
        if len(known) == 1 and (trained_on := known.pop()) is not None:
            self.know(trained_on)

    def forward(self, images: Tensor) -> FusionOutput:
        """Images (N, 3, H, W) -> logits (N, C), expert_logits (N, E, C), features (N, E, D)."""
        outputs: list[tuple[Tensor, Tensor]] = [expert(images) for expert in self.experts]
        features = torch.stack([features for features, _ in outputs], dim=1)
        expert_logits = torch.stack([logits for _, logits in outputs], dim=1)
        logits = self.global_head(self.fusion(features.detach() if self.detached else features))
        return FusionOutput(logits, expert_logits, features)

    def class_logits(self, images: Tensor) -> Tensor:
        """As `forward`, the fused logits alone."""
        logits: Tensor = self(images).logits
        return logits


def _check_fit(experts: Sequence[nn.Module], fusion: FusionModule, num_classes: int) -> None:
    if len(experts) != fusion.num_experts:
        raise ValueError(
            f"the fusion was built for {fusion.num_experts} experts, found {len(experts)}"
        )
    sizes = [getattr(expert, "feature_dim", None) for expert in experts]
    if any(size != fusion.feature_dim for size in sizes):
        raise ValueError(
            f"all experts must have the fusion's feature size {fusion.feature_dim}, found {sizes}"
        )
    classes = [getattr(expert, "num_classes", num_classes) for expert in experts]
    if any(count != num_classes for count in classes):
        raise ValueError(f"all experts must have {num_classes} classes, found {classes}")
