"""Augmentation of whole batches: each sample its own parameters, all of them from one seed.

Parameters are drawn on the host, so the same seed gives the same batch on every device, and reach
the device in one transfer that nothing waits for. Samples that got the same operation are made
neighbours (the host knows the order), so an operation is one call on a slice of the batch.

Order, as in the usual torchvision pipeline: crop, flip, policy, erasing, mixing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusionrun.data.augmentation import image_ops as ops

Numbers = npt.NDArray[np.float64]
Slots = npt.NDArray[np.int64]

POLICIES = ("none", "color_jitter", "randaugment", "trivialaugment")
MIXINGS = ("none", "cutmix", "mixup")
MAGNITUDE_BINS = 31


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch. Raises ValueError for values out of range."""

    policy: str = "none"  # one of POLICIES
    num_ops: int = 2  # randaugment: operations per image, one after another
    magnitude: int = 9  # randaugment: strength, 0..30
    crop_padding: int = 4  # pixels of reflect padding around a random crop
    flip: float = 0.5  # probability of a horizontal mirror image
    erasing: float = 0.0  # probability of an erased rectangle
    mixing: str = "none"  # one of MIXINGS
    mixing_alpha: float = 1.0  # of the Beta(alpha, alpha) that a mixing weight is drawn from

    def __post_init__(self) -> None:
        for name, allowed in (("policy", POLICIES), ("mixing", MIXINGS)):
            if getattr(self, name) not in allowed:
                found = getattr(self, name)
                raise ValueError(f"augmentation {name} is {found!r}; expected one of {allowed}")
        for name in ("flip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation {name} is {getattr(self, name)}; expected 0 to 1")
        if not 0 <= self.magnitude < MAGNITUDE_BINS or self.num_ops < 0 or self.crop_padding < 0:
            raise ValueError(
                f"augmentation {self}: expected magnitude 0..{MAGNITUDE_BINS - 1}, "
                "num_ops >= 0 and crop_padding >= 0"
            )
        if self.mixing_alpha <= 0:
            raise ValueError(f"augmentation mixing_alpha is {self.mixing_alpha}; expected > 0")


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(crop_padding=0, flip=0.0),
    "crop_flip": Augmentation(),
    "color_jitter": Augmentation("color_jitter", erasing=0.25),
    "randaugment": Augmentation("randaugment", 2, 9, erasing=0.1),
    "randaugment_strong": Augmentation("randaugment", 3, 14, erasing=0.3),
    "trivialaugment": Augmentation("trivialaugment", erasing=0.25),
}

# Operations of both policies, with their strength at the last bin (0 at the first) and whether
# the sign is random. RandAugment: Cubuk et al. 2020; wide TrivialAugment: Müller and Hutter 2021;
# ranges as torchvision.transforms.v2 has them. Translations of RandAugment are parts of the image,
# those of TrivialAugment pixels.
RANDAUGMENT: dict[str, tuple[float, bool]] = {
    "identity": (0.0, False),
    "shear_x": (0.3, True),
    "shear_y": (0.3, True),
    "translate_x": (150 / 331, True),
    "translate_y": (150 / 331, True),
    "rotate": (30.0, True),
    "brightness": (0.9, True),
    "saturation": (0.9, True),
    "contrast": (0.9, True),
    "sharpness": (0.9, True),
    "posterize": (4.0, False),
    "solarize": (255.0, False),
    "autocontrast": (0.0, False),
    "equalize": (0.0, False),
}
TRIVIALAUGMENT: dict[str, tuple[float, bool]] = {
    "identity": (0.0, False),
    "shear_x": (0.99, True),
    "shear_y": (0.99, True),
    "translate_x": (32.0, True),
    "translate_y": (32.0, True),
    "rotate": (135.0, True),
    "brightness": (0.99, True),
    "saturation": (0.99, True),
    "contrast": (0.99, True),
    "sharpness": (0.99, True),
    "posterize": (6.0, False),
    "solarize": (255.0, False),
    "autocontrast": (0.0, False),
    "equalize": (0.0, False),
}
# torchvision's ColorJitter: factors 1 +- 0.2, hue +- 0.1 of the circle, in random order
COLOR_JITTER: dict[str, float] = {
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.1,
}

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
# what runs on a slice: images, matrix (n, 6), level (n,), factor (n,) -> images
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
KERNELS: dict[str, Kernel] = {
    "affine": lambda images, matrix, level, factor: ops.affine(images, matrix),
    "brightness": lambda images, matrix, level, factor: ops.brightness(images, factor),
    "saturation": lambda images, matrix, level, factor: ops.saturation(images, factor),
    "contrast": lambda images, matrix, level, factor: ops.contrast(images, factor),
    "sharpness": lambda images, matrix, level, factor: ops.sharpness(images, factor),
    "hue": lambda images, matrix, level, factor: ops.hue(images, factor),
    "posterize": lambda images, matrix, level, factor: ops.posterize(images, level),
    "solarize": lambda images, matrix, level, factor: ops.solarize(images, level),
    "autocontrast": lambda images, matrix, level, factor: ops.autocontrast(images),
    "equalize": lambda images, matrix, level, factor: ops.equalize(images),
}


def augment(
    images: Tensor,
    labels: Tensor,
    *,
    augmentation: Augmentation,
    num_classes: int,
    seed: int,
    erase_value: Sequence[int] = (0, 0, 0),
) -> tuple[Tensor, Tensor]:
    """Augmented images (N, 3, H, W) and soft targets (N, num_classes) float32.

    images: (N, 3, H, W) uint8; labels: (N,) int64; both on one device, which is never waited for.
    The result is uint8, or float32 in 0..255 after mixup. `erase_value` is the colour, 0..255, of
    erased rectangles (Zhong et al. 2020); the mean colour of the data set becomes (nearly) 0 when
    normalised. CutMix (Yun et al. 2019) and mixup (Zhang et al. 2018) draw a weight, a box and a
    partner for each sample; the targets carry the weights, without label smoothing.

    Raises ValueError for images of another type or shape, or no larger than the crop padding.
    """
    _check(images, labels, augmentation)
    count, _, height, width = images.shape
    rng = np.random.default_rng(seed)
    parcel = _Parcel(count)
    geometry = _plan_crop(rng, parcel, augmentation)
    steps = _plan_policy(rng, parcel, augmentation, height, width)
    erased = _plan_erasing(rng, parcel, augmentation, height, width, erase_value)
    mixed = _plan_mixing(rng, parcel, augmentation, height, width)
    parcel.send(images.device)

    if geometry is not None:
        top, left, flip = parcel.whole(geometry)
        images = ops.crop_flip(images, top, left, flip, augmentation.crop_padding)
    for step in steps:
        images = _apply_step(images, step, parcel)
    if erased is not None:
        rows = parcel.whole(erased)
        box = ops.inside_box(height, width, rows[:4])
        images = torch.where(box, rows[4:].T[:, :, None, None].to(torch.uint8), images)
    targets = one_hot(labels, num_classes)
    if mixed is not None:
        images, targets = _mix(images, targets, mixed, parcel, augmentation.mixing)
    return images, targets


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(N, num_classes) float32. A comparison, because functional.one_hot waits for the device."""
    classes = torch.arange(num_classes, device=labels.device)
    return (labels.unsqueeze(1) == classes).to(torch.float32)


def _check(images: Tensor, labels: Tensor, augmentation: Augmentation) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        found = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images are {found}; expected (N, 3, H, W) torch.uint8")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        found = f"{tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"labels are {found}; expected ({len(images)},) torch.int64")
    if augmentation.crop_padding >= min(images.shape[2:]):
        raise ValueError(
            f"crop_padding {augmentation.crop_padding} is too large to reflect images of "
            f"{images.shape[2]}x{images.shape[3]} pixels; expected less than their size"
        )


@dataclass
class _Parcel:
    """Per-sample numbers collected on the host and sent to the device as one tensor."""

    count: int
    rows: list[npt.NDArray[np.generic]] = field(default_factory=list)
    integers: Tensor = field(default_factory=lambda: torch.empty(0))
    floats: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, *rows: npt.NDArray[np.generic]) -> slice:
        """Each row is (count,); the slice finds them again after `send`."""
        self.rows.extend(rows)
        return slice(len(self.rows) - len(rows), len(self.rows))

    def send(self, device: torch.device) -> None:
        if not self.rows:
            return
        # float64 holds fixed-point integers and factors alike, without loss
        block = torch.from_numpy(np.stack(self.rows).astype(np.float64))
        if device.type == "cuda":  # only from pinned memory is a copy not waited for
            block = block.pin_memory().to(device, non_blocking=True)
        else:
            block = block.to(device)
        self.integers, self.floats = block.to(torch.int64), block.to(torch.float32)

    def whole(self, rows: slice) -> Tensor:
        """(rows, count) int64."""
        return self.integers[rows]

    def real(self, rows: slice) -> Tensor:
        """(rows, count) float32."""
        return self.floats[rows]


def _plan_crop(
    rng: np.random.Generator, parcel: _Parcel, augmentation: Augmentation
) -> slice | None:
    padding = augmentation.crop_padding
    if not padding and not augmentation.flip:
        return None
    top, left = rng.integers(0, 2 * padding + 1, (2, parcel.count))
    return parcel.add(top, left, rng.random(parcel.count) < augmentation.flip)


# ---------------------------------------------------------------- policies


@dataclass(frozen=True)
class _Step:
    """One operation on every image, with the samples sorted by operation."""

    segments: tuple[tuple[str, int, int], ...]  # kernel, first and end of its slice
    order: slice  # of the parcel: where each sorted sample comes from, and the way back
    matrix: slice
    level: slice
    factor: slice


def _plan_policy(
    rng: np.random.Generator,
    parcel: _Parcel,
    augmentation: Augmentation,
    height: int,
    width: int,
) -> list[_Step]:
    count = parcel.count
    if augmentation.policy == "none" or not count:
        return []
    if augmentation.policy == "color_jitter":
        return _plan_color_jitter(rng, parcel)
    wide = augmentation.policy == "trivialaugment"
    table = TRIVIALAUGMENT if wide else RANDAUGMENT
    steps = []
    for _ in range(1 if wide else augmentation.num_ops):
        chosen = rng.integers(0, len(table), count)
        bins = rng.integers(0, MAGNITUDE_BINS, count)
        if not wide:
            bins = np.full(count, augmentation.magnitude)
        signs = np.where(rng.random(count) < 0.5, -1.0, 1.0)
        strength = np.zeros(count)
        for number, (name, (limit, signed)) in enumerate(table.items()):
            mine = chosen == number
            if not wide and name.startswith("translate"):
                limit *= width if name == "translate_x" else height
            strength[mine] = (limit * bins * (signs if signed else 1) / (MAGNITUDE_BINS - 1))[mine]
        names = np.array(list(table))[chosen]
        steps.append(_plan_step(parcel, names, strength, height, width))
    return steps


def _plan_color_jitter(rng: np.random.Generator, parcel: _Parcel) -> list[_Step]:
    """Four steps; a random order of the four operations for every sample."""
    names, limits = np.array(list(COLOR_JITTER)), np.array(list(COLOR_JITTER.values()))
    order = rng.random((parcel.count, len(names))).argsort(axis=1)
    strength = rng.uniform(-1, 1, (parcel.count, len(names))) * limits
    rows = np.arange(parcel.count)
    return [
        _plan_step(parcel, names[order[:, k]], strength[rows, order[:, k]], 0, 0)
        for k in range(len(names))
    ]


def _plan_step(
    parcel: _Parcel, names: npt.NDArray[np.str_], strength: Numbers, height: int, width: int
) -> _Step:
    """Turn an operation and its strength per sample into sorted slices and kernel parameters."""
    kernels = np.where(np.isin(names, GEOMETRIC), "affine", names)
    order = np.argsort(kernels, kind="stable")
    names, kernels, strength = names[order], kernels[order], strength[order]
    starts = np.flatnonzero(np.r_[True, kernels[1:] != kernels[:-1]])
    ends = np.r_[starts[1:], len(kernels)]
    segments = tuple(
        (str(kernels[start]), int(start), int(end))
        for start, end in zip(starts, ends, strict=True)
        if kernels[start] != "identity"
    )
    # posterize: strength is the number of low bits dropped; solarize: how far below 255 it starts
    bits = np.round(strength).clip(0, 8).astype(np.int64)
    level = np.where(names == "posterize", (0xFF << bits) & 0xFF, np.ceil(255 - strength))
    factor = np.where(names == "hue", strength, 1 + strength)
    return _Step(
        segments,
        parcel.add(order, np.argsort(order)),
        parcel.add(*affine_matrices(names, strength, height, width)),
        parcel.add(level),
        parcel.add(factor),
    )


def affine_matrices(
    names: npt.NDArray[np.str_], strength: Numbers, height: int, width: int
) -> Numbers:
    """(6, N) fixed-point numbers for `ops.affine`.

    Shears leave the upper left corner where it is and take the tangent; translations are cut to
    whole pixels; rotations are in degrees, counter-clockwise, around the centre.
    """
    shear_x = np.where(names == "shear_x", strength, 0.0)
    shear_y = np.where(names == "shear_y", strength, 0.0)
    move_x = np.trunc(np.where(names == "translate_x", strength, 0.0))
    move_y = np.trunc(np.where(names == "translate_y", strength, 0.0))
    angle = np.radians(np.where(names == "rotate", strength, 0.0))
    cos, sin = np.cos(angle), np.sin(angle)
    # from output to input pixel centres; only one of the terms is at work in each sample
    a, b, d, e = cos, shear_x - sin, shear_y + sin, cos
    half_x, half_y = (width - 1) / 2, (height - 1) / 2
    rotated = names == "rotate"
    c = np.where(rotated, half_x - a * half_x - b * half_y, shear_x / 2) - move_x
    f = np.where(rotated, half_y - d * half_x - e * half_y, shear_y / 2) - move_y
    # half a pixel more, because the device rounds down
    return np.round(np.stack([a, b, c + 0.5, d, e, f + 0.5]) * (1 << ops.FIXED_POINT_BITS))


def _apply_step(images: Tensor, step: _Step, parcel: _Parcel) -> Tensor:
    if not step.segments:
        return images
    order, back = parcel.whole(step.order)
    matrix = parcel.whole(step.matrix).T
    (level,), (factor,) = parcel.whole(step.level), parcel.real(step.factor)
    images = images.index_select(0, order)  # a copy: the slices below may be overwritten
    for kernel, start, end in step.segments:
        part = slice(start, end)
        images[part] = KERNELS[kernel](images[part], matrix[part], level[part], factor[part])
    return images.index_select(0, back)


# ---------------------------------------------------------------- erasing and mixing


def _plan_erasing(
    rng: np.random.Generator,
    parcel: _Parcel,
    augmentation: Augmentation,
    height: int,
    width: int,
    value: Sequence[int],
) -> slice | None:
    """Area 2-33 % of the image, aspect 0.3-3.3, the first of ten draws that fits."""
    if not augmentation.erasing:
        return None
    count, tries = parcel.count, 10
    area = height * width * rng.uniform(0.02, 0.33, (count, tries))
    aspect = np.exp(rng.uniform(math.log(0.3), math.log(3.3), (count, tries)))
    rows, columns = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (rows < height) & (columns < width)
    first = np.arange(count), fits.argmax(axis=1)
    # no rectangle where nothing fits or the sample is not chosen
    chosen = fits.any(axis=1) & (rng.random(count) < augmentation.erasing)
    rows, columns = rows[first] * chosen, columns[first] * chosen
    top = np.floor(rng.random(count) * (height - rows + 1))
    left = np.floor(rng.random(count) * (width - columns + 1))
    colour = np.tile(np.asarray(value, dtype=np.float64)[:, None], (1, count))
    return parcel.add(top, top + rows, left, left + columns, *colour)


def _plan_mixing(
    rng: np.random.Generator,
    parcel: _Parcel,
    augmentation: Augmentation,
    height: int,
    width: int,
) -> slice | None:
    """Rows: partner, own weight, and for cutmix the box that comes from the partner."""
    if augmentation.mixing == "none":
        return None
    count = parcel.count
    partner = rng.permutation(count)
    weight = rng.beta(augmentation.mixing_alpha, augmentation.mixing_alpha, count)
    if augmentation.mixing == "mixup":
        return parcel.add(partner, weight)
    side = np.sqrt(1 - weight)
    rows, columns = (height * side).astype(np.int64), (width * side).astype(np.int64)
    y, x = rng.integers(0, height, count), rng.integers(0, width, count)
    top, bottom = (y - rows // 2).clip(0, height), (y + rows // 2).clip(0, height)
    left, right = (x - columns // 2).clip(0, width), (x + columns // 2).clip(0, width)
    # the weight is that of the pixels really kept, after the box was cut at the border
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return parcel.add(partner, weight, top, bottom, left, right)


def _mix(
    images: Tensor, targets: Tensor, rows: slice, parcel: _Parcel, mixing: str
) -> tuple[Tensor, Tensor]:
    numbers = parcel.whole(rows)
    partner, weight = numbers[0], parcel.real(rows)[1]
    others = images.index_select(0, partner)
    if mixing == "mixup":
        share = weight.view(-1, 1, 1, 1)
        images = images * share + others * (1 - share)
    else:
        box = ops.inside_box(images.shape[2], images.shape[3], numbers[2:])
        images = torch.where(box, others, images)
    weight = weight.unsqueeze(1)
    return images, targets * weight + targets.index_select(0, partner) * (1 - weight)
