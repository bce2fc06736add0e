"""Parts of your own in a recipe: an architecture, a fusion and a data set, a few lines each.

    cd examples
    fusionrun train plugin_recipe.yaml

Everything else works with them as with the built-in ones: doctor, evaluate, report, load_model.
"""

import numpy as np
import torch
from torch import Tensor, nn

from fusionrun import Arrays, Expert, FusionModule, Request, as_arrays


class Patches(Expert):
    """Patches of 4x4 pixels, then depthwise and pointwise convolutions (ConvMixer, 2022).

    Arguments after `num_classes` are the recipe's `models.<name>`. The trunk maps images
    (N, 3, H, W) to a map (N, D, h, w); pooling and the classifier are the base class's.
    """

    def __init__(self, num_classes: int, width: int = 32, depth: int = 2) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=4), nn.GELU()]
        for _ in range(depth):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, groups=width),
                nn.GELU(),
                nn.BatchNorm2d(width),
                nn.Conv2d(width, width, 1),
                nn.GELU(),
            ]
        super().__init__(num_classes, nn.Sequential(*layers, nn.BatchNorm2d(width)), width)


class Gated(FusionModule):
    """sum_k g_k(f) f_k: how much each expert counts is read from all experts' features."""

    def __init__(self, num_experts: int, feature_dim: int) -> None:
        super().__init__(num_experts, feature_dim)
        self.gate = nn.Linear(num_experts * feature_dim, num_experts)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (N, E, D) -> fused vector (N, D)."""
        weights = self.gate(features.flatten(start_dim=1)).softmax(dim=1)
        return torch.einsum("ne,ned->nd", weights, features)


def stripes(request: Request) -> Arrays:
    """Noisy stripes in four directions: which way do they run?

    A data set is a function of what the recipe's `data` says, here of sizes and the seed. It
    returns images (N, 3, H, W) uint8 and labels (N,) int64, for training and for testing.
    """
    rng = np.random.default_rng(request.seed)
    size = request.image_size
    y, x = np.mgrid[:size, :size]
    directions = np.stack([x, y, x + y, x - y])

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(4, size=count)
        phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
        waves = np.sin(directions[labels] + phase)
        noise = rng.normal(0, 1.5, (count, 3, size, size))
        pixels = 128 + 40 * (waves[:, None] + noise)
        return pixels.clip(0, 255).astype(np.uint8), labels

    classes = ["vertical", "horizontal", "rising", "falling"]
    return as_arrays(*draw(request.train_images), *draw(request.test_images), classes)
