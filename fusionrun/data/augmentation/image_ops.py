"""Image operations on a batch, each sample with its own parameter, on any device.

Everything takes and returns uint8 images (N, 3, H, W) unless it says otherwise. Parameters are
tensors on the device of the images, so no function waits for that device. Arithmetic is chosen to
give the same bytes on every device: integers, or float32 in single rounded steps.

The photometric operations are those of torchvision.transforms.v2.functional (and so of PIL).
"""

import torch
from torch import Tensor


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Reflect-pad by `padding`, cut (H, W) at row `top`, column `left`, mirror where `flip` is 1.

    top, left, flip: (N,) int64. One gather: the padded image is never made. padding < H and W.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device) + (top - padding).unsqueeze(1)
    x = torch.arange(width, device=images.device).expand(len(images), width)
    x = torch.where(flip.unsqueeze(1) > 0, width - 1 - x, x) + (left - padding).unsqueeze(1)
    return _gather(images, _reflect(y, height).unsqueeze(2) * width + _reflect(x, width)[:, None])


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside 0..size-1 mirrored at the border pixel, which is not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


def _gather(images: Tensor, source: Tensor) -> Tensor:
    """Pixel `source[n, y, x]` (an index into H*W) of image n, for every channel."""
    flat = images.flatten(2)
    index = source.flatten(1).unsqueeze(1).expand_as(flat)
    return flat.gather(2, index).view_as(images)


FIXED_POINT_BITS = 16
# float32 holds whole numbers below 2^24: up to so many pixels the sum of an image's levels is the
# same in whatever order a device adds, which may depend on how many images there are
EXACT_PIXELS = (1 << 24) // 255


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Nearest-neighbour affine map with black outside.

    matrix (N, 6) int: a, b, c, d, e, f in units of 2^-16 pixel, such that output pixel (x, y)
    comes from floor((a x + b y + c) / 2^16), floor((d x + e y + f) / 2^16). As in PIL.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device, dtype=torch.int32)
    y = torch.arange(height, device=images.device, dtype=torch.int32).unsqueeze(1)
    # 32 bits are enough for images of up to 10,000 pixels a side
    a, b, c, d, e, f = matrix.to(torch.int32).reshape(-1, 6, 1, 1).unbind(1)
    source_x = (a * x + b * y + c) >> FIXED_POINT_BITS
    source_y = (d * x + e * y + f) >> FIXED_POINT_BITS
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    source = source_y.clamp(0, height - 1) * width + source_x.clamp(0, width - 1)
    return _gather(images, source.to(torch.int64)) * inside.unsqueeze(1)


def grey(images: Tensor) -> Tensor:
    """Luma (N, 1, H, W) float32, rounded down: 0.2989 R + 0.5870 G + 0.1140 B (ITU-R BT.601)."""
    r, g, b = images.to(torch.float32).unsqueeze(2).unbind(1)
    # whole numbers below 2^24 are exact in float32; the half keeps whole results whole
    return (r * 2989 + g * 5870 + b * 1140 + 0.5).mul_(1e-4).floor_()


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other, clamped; factor (N,) float32."""
    factor = factor.view(-1, 1, 1, 1)
    return (images * factor + other * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def _divided(numbers: Tensor, by: int) -> Tensor:
    """A GPU multiplies by the reciprocal of the host's number: the last bit may be another."""
    return numbers / torch.full((), by, dtype=numbers.dtype, device=numbers.device)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is black, 1 changes nothing."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 255).to(torch.uint8)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """0 is grey, 1 changes nothing."""
    return _blend(images, grey(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0 is the mean grey of the image (see EXACT_PIXELS), 1 changes nothing."""
    pixels = images.shape[-2] * images.shape[-1]
    mean = _divided(grey(images).sum(dim=(1, 2, 3), keepdim=True), pixels)
    return _blend(images, mean, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is smoothed by a 3x3 kernel, 1 changes nothing, above 1 sharpens. Border pixels stay."""
    if min(images.shape[-2:]) <= 2:
        return images
    output = images.to(torch.float32)
    rows = output[..., :-2] + output[..., 1:-1] + output[..., 2:]
    box = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    centre = output[..., 1:-1, 1:-1]
    smooth = ((box + centre * 4) / 13).round_()
    centre.add_((smooth - centre) * (1 - factor).view(-1, 1, 1, 1))  # a view: changes output
    return output.clamp_(0, 255).to(torch.uint8)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` (N,), a part of the circle in -0.5..0.5, in HSV (Smith 1978)."""
    r, g, b = _divided(images.to(torch.float32), 255).unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)  # several times faster than amax over channels
    span = value - torch.minimum(torch.minimum(r, g), b)
    divisor = torch.where(span == 0, 1.0, span)
    sextant = torch.where(
        value == r,
        (g - b) / divisor,
        torch.where(value == g, (b - r) / divisor + 2, (r - g) / divisor + 4),
    )
    turned = sextant + shift.view(-1, 1, 1) * 6
    # each channel falls from value by up to span: R around 180, G around 300, B around 60 degrees
    offset = torch.arange(5, 0, -2, device=images.device).view(1, 3, 1, 1)
    k = (turned.unsqueeze(1) + offset).remainder_(6)
    fall = torch.minimum(k, 4 - k).clamp_(0, 1)
    output = value.unsqueeze(1) - span.unsqueeze(1) * fall
    return (output.clamp_(0, 1) * 255.999).to(torch.uint8)


def posterize(images: Tensor, mask: Tensor) -> Tensor:
    """Keep the bits of each pixel that are set in `mask` (N,)."""
    return images & mask.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels at or above `threshold` (N,) int."""
    return torch.where(images >= threshold.view(-1, 1, 1, 1), ~images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a constant one stays."""
    low = images.amin(dim=(2, 3), keepdim=True).to(torch.float32)
    span = images.amax(dim=(2, 3), keepdim=True) - low
    constant = span == 0
    scale = torch.where(constant, 1.0, span * (1 / 255))
    low = torch.where(constant, 0.0, low)
    return ((images - low) / scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Flatten the histogram of each channel, rounding as PIL does."""
    count, channels, height, width = images.shape
    flat = images.reshape(count * channels, height * width).to(torch.int64)
    bins = torch.arange(count * channels, device=images.device).unsqueeze(1) * 256
    # one-dimensional and in integers: deterministic on a GPU too
    histogram = torch.zeros(count * channels * 256, dtype=torch.int64, device=images.device)
    index = (flat + bins).flatten()
    histogram.scatter_add_(0, index, torch.ones_like(index))
    histogram = histogram.view(count * channels, 256)
    below = histogram.cumsum(1) - histogram  # pixels darker than each level
    # all pixels but those of the brightest level present share the 255 steps
    brightest = histogram.gather(1, flat.amax(dim=1, keepdim=True))
    step = (height * width - brightest) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    # fewer than 255 such pixels: nothing to spread, the image stays
    return torch.where(step > 0, table.gather(1, flat), flat).to(torch.uint8).view_as(images)


def inside_box(height: int, width: int, box: Tensor) -> Tensor:
    """(N, 1, H, W) bool: pixels with top <= y < bottom and left <= x < right.

    box (4, N) int64: top, bottom, left, right.
    """
    top, bottom, left, right = box.unsqueeze(2).unbind(0)
    y = torch.arange(height, device=box.device)
    x = torch.arange(width, device=box.device)
    rows = (y >= top) & (y < bottom)
    columns = (x >= left) & (x < right)
    return rows[:, None, :, None] & columns[:, None, None, :]
