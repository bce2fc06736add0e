"""Linear filters and resampling of whole batches, as image libraries define them.

A separable filter is two matrices, which have its border rule built in. Products are of float32,
which torch computes in full precision unless it is told otherwise. Convolutions of a GPU may round
to ten bits (TF32), so blurs are sums of shifted images.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# position beyond the border, size -> the pixel that stands there
Border = Callable[[Tensor, int], Tensor]
FAINT = 1e-6  # part of a kernel that can't move a byte
# in levels: rounding errors of float32 must not cost a whole one where a result is cut off
TOLERANCE = 1e-3


def nearest(position: Tensor, size: int) -> Tensor:
    """The border pixel goes on: a a | a b c | c c."""
    return position.clamp(0, size - 1)


def mirrored(position: Tensor, size: int) -> Tensor:
    """A mirror at the outer edge, again and again: b a | a b c | c b."""
    turn = position.remainder(2 * size)
    return torch.minimum(turn, 2 * size - 1 - turn)


def apply_matrices(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, C, H, W), (H', H), (W', W) -> (N, C, H', W'), type and device those of the pixels."""
    rows, columns = rows.to(pixels), columns.to(pixels)
    # a matrix on the right is one product for the whole batch
    return ((pixels @ columns.T).mT @ rows.T).mT


def gaussian_matrix(size: int, sigma: float, reach: int, border: Border) -> Tensor:
    """(size, size) float64: a Gaussian of 2 * reach + 1 pixels."""
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.to(torch.float64) / sigma) ** 2)
    weights /= weights.sum()
    matrix = torch.zeros(size, size, dtype=torch.float64)
    here = torch.arange(size)
    for offset, weight in zip(offsets, weights, strict=True):
        matrix[here, border(here + offset, size)] += weight
    return matrix


def zoom_matrix(size: int, factor: float) -> Tensor:
    """(size, size) float64: the middle enlarged by `factor` >= 1, linearly between pixels.

    The middle ceil(size / factor) pixels become round(that * factor), first on first and last on
    last (scipy.ndimage.zoom); what is more than `size` is cut off on both sides.
    """
    kept = math.ceil(size / factor)
    enlarged = round(kept * factor)
    place = torch.arange(size, dtype=torch.float64) + (enlarged - size) // 2
    place = place * ((kept - 1) / (enlarged - 1))
    lower = place.to(torch.int64).clamp(max=kept - 2)
    part = place - lower
    first, here = (size - kept) // 2, torch.arange(size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[here, first + lower] = 1 - part
    matrix[here, first + lower + 1] = part
    return matrix


def box_matrix(old: int, new: int) -> Tensor:
    """(new, old) float64: each pixel the mean of those whose centres it covers (PIL's BOX)."""
    scale = old / new
    centre = (torch.arange(new, dtype=torch.float64).unsqueeze(1) + 0.5) * scale
    distance = (torch.arange(old) + 0.5 - centre) / max(scale, 1)
    inside = ((distance > -0.5) & (distance <= 0.5)).to(torch.float64)
    return inside / inside.sum(dim=1, keepdim=True)


def box_resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Whole numbers (N, C, H, W) to the new size; PIL rounds after each of the two passes."""
    rows = box_matrix(pixels.shape[2], height).to(pixels)
    columns = box_matrix(pixels.shape[3], width).to(pixels)
    return _rounded((_rounded(pixels @ columns.T).mT @ rows.T).mT)


def _rounded(values: Tensor) -> Tensor:
    """Halves go up, also those that float32 puts just below."""
    return values.add(0.5 + TOLERANCE).floor_()


def disc_kernel(radius: float, sigma: float) -> Tensor:
    """A disc smoothed by a Gaussian of 3x3 pixels: odd and square, float64, of sum 1."""
    reach = int(radius) + 1
    offsets = torch.arange(-reach, reach + 1)
    disc = (offsets**2 + offsets.unsqueeze(1) ** 2 <= radius**2).to(torch.float64)
    # what the disc leaves free around it is as wide as the Gaussian, so no border matters
    smooth = gaussian_matrix(len(offsets), sigma, 1, nearest)
    return smooth @ (disc / disc.sum()) @ smooth.T


def convolve(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Pixels (N, C, H, W) with an odd, square and symmetric kernel; mirrored at border pixels."""
    reach, (height, width) = len(kernel) // 2, pixels.shape[2:]
    padded = functional.pad(pixels, (reach, reach, reach, reach), mode="reflect")
    output = torch.zeros_like(pixels)
    for y, row in enumerate(kernel.tolist()):
        for x, weight in enumerate(row):
            if weight > FAINT:
                output += padded[:, :, y : y + height, x : x + width] * weight
    return output


def gather(pixels: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Pixel (y, x) of each image, for every channel; beyond the border the nearest one.

    y and x are int64 and broadcast to (N, H, W).
    """
    height, width = pixels.shape[2:]
    source = nearest(y, height) * width + nearest(x, width)
    index = source.expand(len(pixels), height, width).flatten(1).unsqueeze(1)
    flat = pixels.flatten(2)
    return flat.gather(2, index.expand_as(flat)).view_as(pixels)


def sample(pixels: Tensor, y: Tensor, x: Tensor, *, border_twice: bool) -> Tensor:
    """Pixels (N, C, H, W) at places (N, H, W), linearly between pixels, mirrored at the border.

    The mirror stands at the outer edge, where the border pixel appears twice, or in the middle of
    the border pixel.
    """
    height, width = pixels.shape[2:]
    if border_twice:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    else:
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return functional.grid_sample(
        pixels,
        grid.to(pixels.dtype),
        padding_mode="reflection",
        align_corners=not border_twice,
    )


def blur_along(pixels: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """One-sided Gaussian of 2 * radius + 1 pixels along a line, an angle (N,) for each image.

    As ImageMagick's MotionBlurImage: places are rounded to whole pixels, x to the right and y
    down, the nearest pixel stands for those beyond the border, and the result is rounded.
    """
    angle = torch.deg2rad(degrees).view(-1, 1, 1)
    down, right = angle.sin(), angle.cos()
    y = torch.arange(pixels.shape[2], device=pixels.device).view(1, -1, 1)
    x = torch.arange(pixels.shape[3], device=pixels.device).view(1, 1, -1)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(2 * radius + 1)]
    total = sum(weights)
    output = torch.zeros_like(pixels)
    for step, weight in enumerate(weights):
        if weight / total > FAINT:
            move_y = (step * down - 0.5).ceil().to(torch.int64)
            move_x = (step * right - 0.5).ceil().to(torch.int64)
            output += gather(pixels, y + move_y, x + move_x) * (weight / total)
    return output.add_(0.5).floor_()
