"""Networks that answer together without any fusion, by the mean of their probabilities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionrun.common.image_classifier import ImageClassifier


class Ensemble(ImageClassifier):
    """The mean of several networks' probabilities (Lakshminarayanan et al. 2017, deep ensembles).

    `experts` are modules that map images (N, 3, H, W) to features (N, D) and logits (N, C). It
    knows what it was trained on where they agree in it. Raises ValueError for fewer than two.
    """

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(experts) < 2:
            raise ValueError(f"an ensemble has two networks or more, found {len(experts)}")
        self.experts = nn.ModuleList(experts)
        known = {getattr(expert, "trained_on", None) for expert in experts}
        if len(known) == 1 and (trained_on := known.pop()) is not None:
            self.know(trained_on)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) -> features (N, E, D), log of the mean probabilities (N, C)."""
        features, logits = zip(*(expert(images) for expert in self.experts), strict=True)
        each = torch.stack(logits, dim=1).float().log_softmax(dim=-1)
        return torch.stack(features, dim=1), each.logsumexp(dim=1) - math.log(len(self.experts))

    def class_logits(self, images: Tensor) -> Tensor:
        """As `forward`, the answers alone: their softmax is the mean of the probabilities."""
        answers: Tensor = self(images)[1]
        return answers
