"""What every expert is: a convolutional trunk, a global average pool and its own classifier."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionrun.common.image_classifier import NO_OUTPUT, ImageClassifier, TrainedOn, answered

from .stages import frozen_parts, stages_of

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean, std of RGB in 0..1
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LEAST_SIZE, LARGEST_SIZE = 8, 384  # pixels of a network's own input


class Expert(ImageClassifier):
    """A backbone with its own classifier.

    A new architecture builds its trunk, any module that maps images (N, 3, H, W) to a map
    (N, D, h, w), of which the mean is taken, or to vectors (N, D), and hands it to this
    constructor. The classifier starts Xavier-uniform (Glorot & Bengio 2010) with zero bias. A
    trunk keeps the weights that it comes with; a `new_trunk` is given its first ones here:
    convolutions Kaiming-normal over fan-out (He et al. 2015), batch norms 1 and 0, linear layers
    as the classifier.

    Raises ValueError when `num_classes` or `feature_dim` is not a positive whole number.
    """

    # what the trunk wants its images to be, where that differs from what the data's loader gives
    normalisation: Normalisation | None = None
    input_size: int | None = None  # pixels, height and width
    frozen: tuple[nn.Module, ...] = ()  # parts of the trunk that don't learn
    own_classes: tuple[int, ...] = ()  # that alone have outputs, consecutive; (): all do

    def __init__(
        self, num_classes: int, trunk: nn.Module, feature_dim: int, *, new_trunk: bool = False
    ) -> None:
        super().__init__()
        self.num_classes = whole_number("num_classes", num_classes)
        self.feature_dim = whole_number("feature_dim", feature_dim)
        self.trunk = trunk
        self.classifier = nn.Linear(feature_dim, self.num_classes)
        # of the conversion of images from the data's normalisation to the trunk's; no weights
        self.register_buffer("_scale", None, persistent=False)
        self.register_buffer("_shift", None, persistent=False)
        _initialise(self if new_trunk else self.classifier)

    def stages(self) -> list[list[str]]:
        """The names of the trunk's parameters, by stage, from the images on."""
        return stages_of(self.trunk)

    def freeze(self, count: int) -> None:
        """Keep the trunk's first `count` stages as they are: `frozen` belongs in evaluation mode.

        Raises ValueError where it hasn't so many.
        """
        if not count:
            return
        stages = self.stages()
        if count > len(stages):
            firsts = ", ".join(stage[0].rpartition(".")[0] or stage[0] for stage in stages)
            raise ValueError(
                f"frozen_stages: found {count}, its trunk has {len(stages)}, which begin with "
                f"{firsts}"
            )
        weights = dict(self.trunk.named_parameters())
        for name in (name for stage in stages[:count] for name in stage):
            weights[name].requires_grad_(False)
        self.frozen = tuple(frozen_parts(self.trunk))

    def know(self, trained_on: TrainedOn) -> None:
        """As any classifier; with the data's mean and std images are converted to the trunk's."""
        super().know(trained_on)
        if self.normalisation is None:
            return
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in self.normalisation)
        data_mean, data_std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (trained_on.mean, trained_on.std)
        )
        device = self.classifier.weight.device
        self._scale = (data_std / std).to(device)
        self._shift = ((data_mean - mean) / std).to(device)

    def inputs(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in the data's normalisation -> (N, 3, S, S) in the trunk's.

        Raises ValueError where the trunk has one of its own and nobody said what the data's is.
        """
        if self.normalisation is not None:
            if self._scale is None:
                raise ValueError(
                    "this expert has a normalisation of its own, and doesn't know that of its "
                    "images; tell it: expert.know(TrainedOn(...)), as load_expert does"
                )
            images = images * self._scale + self._shift
        size = self.input_size
        if size is not None and images.shape[2:] != (size, size):
            smaller = size < max(images.shape[2:])  # else antialiasing changes nothing
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=smaller)
        return images

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> feature vectors (N, D), D = `feature_dim`.

        Raises ValueError when the trunk gives something else than it should.
        """
        found = self.trunk(self.inputs(images))
        is_tensor = isinstance(found, Tensor) and found.dim() in (2, 4)
        if not is_tensor or found.shape[1] != self.feature_dim:
            kind = type(found).__name__
            shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {kind}"
            raise ValueError(
                f"{type(self).__name__}: its trunk gives {shown}, expected maps "
                f"(N, {self.feature_dim}, h, w) or vectors (N, {self.feature_dim})"
            )
        features: Tensor = found
        # A mean instead of flatten + pool: it reads either memory format as it lies.
        return features.mean(dim=(2, 3)) if features.dim() == 4 else features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) -> features (N, D) and this expert's own logits (N, C)."""
        features = self.features(images)
        logits = answered(self.classifier, features)
        if self.own_classes:
            around = self.own_classes[0], self.num_classes - 1 - self.own_classes[-1]
            logits = F.pad(logits, around, value=NO_OUTPUT)
        return features, logits

    def answer_only(self, classes: Sequence[int]) -> None:
        """A new classifier with outputs for these consecutive classes alone.

        Logits stay (N, C): those of the others are `NO_OUTPUT`, a probability of 0. Raises
        ValueError for classes that aren't consecutive or that there are not.
        """
        first, last = min(classes, default=-1), max(classes, default=-1)
        if first < 0 or last >= self.num_classes or list(classes) != list(range(first, last + 1)):
            raise ValueError(
                f"own classes must be consecutive numbers from 0 to {self.num_classes - 1}, found "
                f"{list(classes)!r:.60}"
            )
        self.own_classes = tuple(classes)
        self.classifier = nn.Linear(self.feature_dim, len(classes))
        _initialise(self.classifier)

    def class_logits(self, images: Tensor) -> Tensor:
        """As `forward`, the logits alone."""
        logits: Tensor = self(images)[1]
        return logits


def _initialise(network: nn.Module) -> None:
    if next(network.parameters()).is_meta:
        return  # nothing to fill, yet for `normal_` torch would import its compiler: 1 s
    for module in network.modules():
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


def image_size_of(value: object) -> int | None:
    """`value`, None or an int of LEAST_SIZE to LARGEST_SIZE; ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, int) and LEAST_SIZE <= value <= LARGEST_SIZE:  # True is 1: too small
        return value
    kind = "" if type(value) is int else "a whole number, "
    expected = f"{kind}{LEAST_SIZE} to {LARGEST_SIZE} pixels"
    raise ValueError(f"image_size must be {expected}, found {value!r}")


def normalisation_of(value: object) -> Normalisation | None:
    """Of data (None), imagenet, or [mean, std] of three channels each; else ValueError."""
    if value in (None, "data"):
        return None
    if value == "imagenet":
        return IMAGENET
    sizes = [len(v) if isinstance(v, list | tuple) else 0 for v in _listed(value)]
    if sizes == [3, 3]:
        mean, std = (tuple(_number("normalisation", v) for v in part) for part in _listed(value))
        if all(0 <= each <= 1 for each in mean) and all(each > 0 for each in std):
            return mean, std
    raise ValueError(
        f"normalisation must be data, imagenet or [[mean of R, G, B], [std of R, G, B]] of pixels "
        f"in 0..1, each std above 0, found {value!r}"
    )


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


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
