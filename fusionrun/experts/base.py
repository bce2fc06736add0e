"""What every expert is: a convolutional trunk, a global average pool and its own classifier."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fusionrun.common.image_classifier import ImageClassifier


class Expert(ImageClassifier):
    """A backbone with its own classifier.

    A new architecture builds its trunk, any module that maps images (N, 3, H, W) to a map
    (N, D, h, w), and hands it to this constructor. Initialisation: convolutions Kaiming-normal
    over fan-out (He et al. 2015), batch norms 1 and 0, the classifier Xavier-uniform (Glorot &
    Bengio 2010) with zero bias.

    Raises ValueError when `num_classes` is not a positive whole number.
    """

    def __init__(self, num_classes: int, trunk: nn.Module, feature_dim: int) -> None:
        super().__init__()
        self.num_classes = whole_number("num_classes", num_classes)
        self.feature_dim = feature_dim
        self.trunk = trunk
        self.classifier = nn.Linear(feature_dim, self.num_classes)
        self._initialise()

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> feature vectors (N, D), D = `feature_dim`."""
        maps: Tensor = self.trunk(images)
        # A mean instead of flatten + pool: it reads either memory format as it lies.
        return maps.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) -> features (N, D) and this expert's own logits (N, C)."""
        features = self.features(images)
        logits: Tensor = self.classifier(features)
        return features, logits

    def class_logits(self, images: Tensor) -> Tensor:
        """As `forward`, the logits alone."""
        logits: Tensor = self(images)[1]
        return logits

    def _initialise(self) -> None:
        if self.classifier.weight.is_meta:
            return  # nothing to fill, yet for `normal_` torch would import its compiler: 1 s
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


class _FewChannels(nn.Conv2d):
    """A strided 1x1 convolution that skips the pixels itself.

    In channels_last oneDNN's gradient of its weights reads and writes past its memory when there
    are fewer input channels than a vector has floats (16 with AVX-512, 8 with AVX2) and the images
    aren't divisible by the threads; with AVX2 it is wrong besides. Seen with torch 2.14.1;
    tests/unit/experts/test_experts.py shows both.
    """

    def forward(self, x: Tensor) -> Tensor:
        kept = F.avg_pool2d(x, 1, self.stride)  # which, unlike a slice, stays channels_last
        return F.conv2d(kept, self.weight)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution; no bias, because a batch norm follows somewhere and has one."""
    kind = _FewChannels if stride > 1 and in_channels < 16 else nn.Conv2d
    return kind(in_channels, out_channels, 1, stride=stride, bias=False)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the map's size at stride 1; no bias, as above."""
    return nn.Conv2d(
        in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False
    )


# Checks of arguments. They run in the constructors, since the values come from recipes written by
# hand, where "32", 32.0, true or null are easy slips that torch would report from deep inside.


def whole_number(name: str, value: object, minimum: int = 1) -> int:
    """`value` as an int; ValueError naming `name` unless it is an int of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, found {value!r}")
    return value


def depth_of_form(value: object, step: int, offset: int) -> int:
    """The n >= 1 of depth = step * n + offset; ValueError when there is none."""
    depth = whole_number("depth", value)
    blocks, rest = divmod(depth - offset, step)
    if rest or blocks < 1:
        nearest = step * max(1, round((depth - offset) / step)) + offset
        raise ValueError(
            f"depth must be {step}n+{offset} with n at least 1, found {depth}; nearest: {nearest}"
        )
    return blocks


def dropout_rate(value: object) -> float:
    """`value` as a float; ValueError unless it is a number in [0, 1)."""
    number = _number("dropout", value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), found {value!r}")
    return number


def compression_factor(value: object) -> float:
    """`value` as a float; ValueError unless it is a number in (0, 1]."""
    number = _number("compression", value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"compression must lie in (0, 1], found {value!r}")
    return number


def blocks_per_stage(value: Sequence[int]) -> tuple[int, ...]:
    """`value` as a tuple; ValueError unless it is a list or tuple of positive whole numbers."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f"blocks must be a list of block counts such as [2, 2, 2, 2], found {value!r}"
        )
    return tuple(whole_number(f"blocks[{i}]", count) for i, count in enumerate(value))


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, found {value!r}")
    return float(value)
