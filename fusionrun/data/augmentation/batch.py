"""Augmentation of the batches of several steps at once, each batch from its own step's seed.

Each sample has its own parameters. They are drawn on the host, so the same seed gives the same
batch on every device, and reach the device in one transfer that nothing waits for. Samples of all
these steps that got the same operation are made neighbours (the host knows the order), so an
operation is one call on a slice of them.

Order, as in the usual torchvision pipeline: crop, flip, policy, erasing, mixing.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusionrun.data.augmentation import image_ops as ops
from fusionrun.data.augmentation.policies import (
    Augmentation,
    Draws,
    Numbers,
    draw_mixing,
    draw_operations,
    draw_rectangles,
)

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
    steps: Sequence[tuple[int, int]],
    erase_value: Sequence[int] = (0, 0, 0),
) -> tuple[Tensor, Tensor]:
    """Augmented images (N, 3, H, W) and soft targets (N, num_classes) float32.

    images: (N, 3, H, W) uint8; labels: (N,) int64; both on one device, which is never waited for.
    They are those of some `steps`, one step after another: each one's seed and how many images it
    has. What a step gets doesn't depend on the others, up to `ops.EXACT_PIXELS`. The result is
    uint8, or float32 in 0..255 after mixup. `erase_value` is the colour, 0..255, of what is erased:
    the mean of the data set becomes (nearly) 0 when normalised. CutMix and mixup draw a weight, a
    box and a partner for each sample; the targets carry the weights, without label smoothing.

    Raises ValueError for images that are no such, or aren't larger than the crop padding.
    """
    check_images(images, labels)
    count, _, height, width = images.shape
    padding = augmentation.crop_padding
    if padding >= min(height, width):
        raise ValueError(
            f"crop_padding {padding} is too large to reflect images of {height}x{width} pixels; "
            "expected less than their size"
        )
    draws = Draws(steps)
    if draws.count != count:
        raise ValueError(f"the steps have {draws.count} images; expected {count}, as are given")
    parameters = _DeviceParameters()
    cropped = erased = mixed = None
    if padding or augmentation.flip:
        span = 2 * padding + 1
        corner = draws.each(lambda rng, images: rng.integers(0, span, (2, images)), axis=1)
        cropped = parameters.add(*corner, draws.random() < augmentation.flip)
    drawn = draw_operations(draws, augmentation, height, width)
    operations = [_Operation(*each, parameters, height, width) for each in drawn]
    if augmentation.erasing:
        box = draw_rectangles(draws, augmentation.erasing, height, width)
        erased = parameters.add(*box, *(np.full(count, value) for value in erase_value))
    if augmentation.mixing != "none":
        mixed = parameters.add(*draw_mixing(draws, augmentation, height, width))
    parameters.send(images.device)

    if cropped is not None:
        top, left, flip = parameters.integers[cropped]
        images = ops.crop_flip(images, top, left, flip, padding)
    for operation in operations:
        images = operation.apply(images, parameters)
    if erased is not None:
        rows = parameters.integers[erased]
        colour = rows[4:].T[:, :, None, None].to(torch.uint8)
        images = torch.where(ops.inside_box(height, width, rows[:4]), colour, images)
    targets = one_hot(labels, num_classes)
    if mixed is not None:
        weight = parameters.floats[mixed][1]
        images, targets = _mix(images, targets, parameters.integers[mixed], weight)
    return images, targets


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(N, num_classes) float32. A comparison, because functional.one_hot waits for the device."""
    classes = torch.arange(num_classes, device=labels.device)
    return (labels.unsqueeze(1) == classes).to(torch.float32)


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless images are (N, 3, H, W) uint8 and labels (N,) int64."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        found = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images are {found}; expected (N, 3, H, W) torch.uint8")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        found = f"{tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"labels are {found}; expected ({len(images)},) torch.int64")


class _DeviceParameters:
    """Numbers of every sample, collected on the host and sent to the device as one tensor."""

    def __init__(self) -> None:
        self.integers = torch.empty(0, dtype=torch.int64)  # (rows, N), after `send`
        self.floats = torch.empty(0)  # the same as float32
        self._rows: list[npt.NDArray[np.generic]] = []

    def add(self, *rows: npt.NDArray[np.generic]) -> slice:
        """Each row is (N,); the slice finds them again after `send`."""
        self._rows.extend(rows)
        return slice(len(self._rows) - len(rows), len(self._rows))

    def send(self, device: torch.device) -> None:
        if not self._rows:
            return
        # float64 holds fixed-point integers and factors alike, without loss
        block = torch.from_numpy(np.stack(self._rows).astype(np.float64))
        if device.type == "cuda":  # only from pinned memory is a copy not waited for
            block = block.pin_memory().to(device, non_blocking=True)
        else:
            block = block.to(device)
        self.integers, self.floats = block.to(torch.int64), block.to(torch.float32)


class _Operation:
    """One operation on every image, done in slices of the samples sorted by operation."""

    def __init__(
        self,
        names: npt.NDArray[np.str_],
        chosen: npt.NDArray[np.int64],
        strength: Numbers,
        parameters: _DeviceParameters,
        height: int,
        width: int,
    ) -> None:
        """Which of the `names` each sample gets, and how strong, as policies.py draws them."""
        kernels = ["affine" if name in GEOMETRIC else str(name) for name in names]
        kernel = np.array([kernels.index(each) for each in kernels], dtype=np.uint8)[chosen]
        order = np.argsort(kernel, kind="stable")
        kernel, names, strength = kernel[order], names[chosen[order]], strength[order]
        starts = np.flatnonzero(np.r_[True, kernel[1:] != kernel[:-1]])
        ends = np.r_[starts[1:], len(kernel)]
        self._segments = [  # kernel, first and end of its slice
            (kernels[kernel[start]], int(start), int(end))
            for start, end in zip(starts, ends, strict=True)
            if kernels[kernel[start]] != "identity"
        ]
        # posterize: strength is the number of low bits dropped; solarize: how far below 255 it
        # starts
        bits = np.round(strength).clip(0, 8).astype(np.int64)
        level = np.where(names == "posterize", (0xFF << bits) & 0xFF, np.ceil(255 - strength))
        factor = np.where(names == "hue", strength, 1 + strength)
        # where each sorted sample comes from, and the way back
        self._order = parameters.add(order, np.argsort(order))
        self._matrix = parameters.add(*affine_matrices(names, strength, height, width))
        self._numbers = parameters.add(level, factor)

    def apply(self, images: Tensor, parameters: _DeviceParameters) -> Tensor:
        if not self._segments:
            return images
        order, back = parameters.integers[self._order]
        matrix = parameters.integers[self._matrix].T
        level, factor = parameters.integers[self._numbers][0], parameters.floats[self._numbers][1]
        images = images.index_select(0, order)  # a copy: the slices below may be overwritten
        for kernel, start, end in self._segments:
            part = slice(start, end)
            images[part] = KERNELS[kernel](images[part], matrix[part], level[part], factor[part])
        return images.index_select(0, back)


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


def _mix(images: Tensor, targets: Tensor, numbers: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`numbers` (2 or 6, N) int64 and the own `weight` (N,) float32 of each, see `draw_mixing`."""
    partner, box = numbers[0], numbers[2:]
    others = images.index_select(0, partner)
    if len(box):
        _, _, height, width = images.shape
        images = torch.where(ops.inside_box(height, width, box), others, images)
    else:
        share = weight.view(-1, 1, 1, 1)
        images = images * share + others * (1 - share)
    weight = weight.unsqueeze(1)
    return images, targets * weight + targets.index_select(0, partner) * (1 - weight)
