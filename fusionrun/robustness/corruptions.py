"""The fifteen common corruptions, made on the images' device.

Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", 2019 (arXiv:1903.12261).

Definitions and constants are those published for CIFAR-10-C (github.com/hendrycks/robustness,
make_cifar_c.py), written for batches. Beside the random numbers only rounding differs, by a level
here and there, so accuracies should agree with those on the published files within chance, except
where NOTES says otherwise. Constants in pixels stay what they are at other sizes than 32x32; there
the results aren't those of ImageNet-C.

An image's random numbers follow from (seed, corruption, severity, its number in the set) alone.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fusionrun.common.seeds import derive_seed
from fusionrun.robustness import image_filters as filters
from fusionrun.robustness.counter_rng import CounterRNG, plasma

SEVERITIES = range(1, 6)
# of severity 1 to 5; what they are stands at the function
CONSTANTS: dict[str, tuple[tuple[float, ...], ...]] = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    "elastic_transform": (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
}
NOTES: dict[str, str] = {
    "frost": "drawn texture, no photographs: not comparable with published numbers",
}
# standard deviations of `add_noise`, in units of normalised pixels
NOISE_SIGMAS = (0.0, 0.05, 0.1, 0.2, 0.3)
NOISE_LIMIT = 3.0

MIN_SIZE = 8  # pixels a side; below, some corruptions have nothing left to work on
CHUNK = 256  # images at a time, to stay within the caches


def corrupt(images: Tensor, name: str, severity: int, seed: int, *, first_index: int = 0) -> Tensor:
    """Corrupted copies of images (N, 3, H, W) uint8, of the same shape, type and device.

    `severity` is 1 to 5. Image n draws its random numbers as number `first_index` + n of its set:
    it gets the same ones in any batch and on any device. A pixel may still differ by a level
    where sums of float32 are rounded otherwise.

    Raises ValueError for an unknown name, a severity out of range and unfit images.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r} is unknown; expected one of {list(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity}; expected 1 to 5")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        found = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images are {found}; expected (N, 3, H, W) torch.uint8")
    if min(images.shape[2:]) < MIN_SIZE:
        found = f"{images.shape[2]}x{images.shape[3]}"
        raise ValueError(f"images are {found} pixels; expected at least {MIN_SIZE} a side")
    constants = CONSTANTS[name][severity - 1]
    key = derive_seed(seed, name, severity)
    output = torch.empty_like(images)
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        rng = CounterRNG(key, first_index + start, len(chunk), images.device)
        pixels = chunk.to(torch.float32, memory_format=torch.contiguous_format)
        pixels = CORRUPTIONS[name](pixels, rng, *constants)
        # published images are cut off, not rounded
        output[start : start + CHUNK] = pixels.clamp(0, 255).add(filters.TOLERANCE).to(torch.uint8)
    return output


def add_noise(images: Tensor, sigma: float, seed: int, *, first_index: int = 0) -> Tensor:
    """Normalised images (N, 3, H, W) float32 plus Gaussian noise, clamped to +-3.

    Not the corruption `gaussian_noise`: this one is added after normalisation, at the levels
    NOISE_SIGMAS. Its random numbers follow from the arguments as in `corrupt`.
    """
    rng = CounterRNG(
        derive_seed(seed, "noise", str(sigma)), first_index, len(images), images.device
    )
    noise = rng.normal("pixels", *images.shape[1:])
    return (images + noise * sigma).clamp_(-NOISE_LIMIT, NOISE_LIMIT)


# The functions below take pixels (N, 3, H, W) float32, whole numbers from 0 to 255. What they
# return is still to be clamped and cut off.

# ---------------------------------------------------------------- noise


def gaussian_noise(pixels: Tensor, rng: CounterRNG, sigma: float) -> Tensor:
    """Normal noise of standard deviation `sigma`, as part of the range."""
    return pixels + rng.normal("pixels", *pixels.shape[1:]) * (255 * sigma)


def shot_noise(pixels: Tensor, rng: CounterRNG, photons: float) -> Tensor:
    """Each pixel is a Poisson count, of which white has `photons` on average."""
    rate = torch.arange(256, dtype=torch.float64).unsqueeze(1) * (photons / 255)
    # ten standard deviations above white: no more is left than double precision resolves
    limit = math.ceil(photons + 10 * math.sqrt(photons))
    count = torch.arange(limit, dtype=torch.float64)
    cumulative = (torch.xlogy(count, rate) - rate - torch.lgamma(count + 1)).exp().cumsum(1)
    cumulative.clamp_(max=1)[:, -1] = 1
    # one rising sequence for all levels, so that one search inverts the distribution of each pixel
    steps = (cumulative + torch.arange(256).unsqueeze(1)).flatten().to(pixels.device)
    level = pixels.to(torch.float64)
    chance = rng.uniform("pixels", *pixels.shape[1:])
    place = torch.searchsorted(steps, level + chance, right=True)
    counts = (place - level.to(torch.int64) * limit).clamp_(max=limit - 1)
    return counts.to(torch.float32) * (255 / photons)


def impulse_noise(pixels: Tensor, rng: CounterRNG, amount: float) -> Tensor:
    """That share of all values (not pixels) becomes 0 or 255, with equal probability."""
    chance = rng.uniform("pixels", *pixels.shape[1:])
    white = torch.where(chance < amount / 2, 255.0, pixels)
    return torch.where(chance >= 1 - amount / 2, 0.0, white)


# ---------------------------------------------------------------- blur


def defocus_blur(pixels: Tensor, rng: CounterRNG, radius: float, sigma: float) -> Tensor:
    """A disc of that radius, smoothed by a Gaussian of that standard deviation."""
    return filters.convolve(pixels, filters.disc_kernel(radius, sigma))


def glass_blur(pixels: Tensor, rng: CounterRNG, sigma: float, repeats: float) -> Tensor:
    """Smooth, take each pixel from itself or a neighbour up or to the left, smooth again.

    The paper swaps pixels. In its code the swap of two views copies one way, always from pixels
    that the loop hasn't reached yet, so the published images are made like this.
    """
    height, width = pixels.shape[2:]
    reach = int(4 * sigma + 0.5)
    smooth = [
        filters.gaussian_matrix(n, sigma, reach, filters.nearest).to(pixels)
        for n in (height, width)
    ]
    output = filters.apply_matrices(pixels, *smooth).add(filters.TOLERANCE).floor()
    y = torch.arange(height, device=pixels.device).view(1, height, 1)
    x = torch.arange(width, device=pixels.device).view(1, 1, width)
    inside = (y > 1) & (x > 1)
    for number in range(int(repeats)):
        moves = rng.uniform(f"moves {number}", 2, height, width) < 0.5
        up, left = (moves & inside).to(torch.int64).unbind(1)
        output = filters.gather(output, y - up, x - left)
    return filters.apply_matrices(output, *smooth)


def motion_blur(pixels: Tensor, rng: CounterRNG, radius: float, sigma: float) -> Tensor:
    """A one-sided Gaussian along a line of -45 to 45 degrees."""
    return filters.blur_along(pixels, rng.uniform("angle") * 90 - 45, int(radius), sigma)


def zoom_blur(pixels: Tensor, rng: CounterRNG, end: float) -> Tensor:
    """Mean of the image and its enlargements by 1, 1.01, ... up to `end`."""
    # the end is among them only by a rounding error, but it is in the published images too
    factors = np.arange(1, end, 0.01).tolist()
    return (pixels + sum(_zoom(pixels, factors))) / (len(factors) + 1)


def _zoom(pixels: Tensor, factors: Sequence[float]) -> Iterator[Tensor]:
    """The pixels, enlarged by each factor; all matrices reach a GPU in two copies."""
    rows, columns = (
        torch.stack([filters.zoom_matrix(size, factor) for factor in factors]).to(pixels)
        for size in pixels.shape[2:]
    )
    return (filters.apply_matrices(pixels, *pair) for pair in zip(rows, columns, strict=True))


# ---------------------------------------------------------------- weather


def snow(
    pixels: Tensor,
    rng: CounterRNG,
    mean: float,
    spread: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> Tensor:
    """Flakes are normal noise above a threshold, enlarged and blurred by motion, falling twice.

    `keep` is the weight of the image, the rest is whitened.
    """
    height, width = pixels.shape[2:]
    (layer,) = _zoom(rng.normal("flakes", 1, height, width) * spread + mean, [zoom])
    flakes = torch.where(layer < threshold, 0.0, (layer.clamp(0, 1) * 255).floor())
    angle = rng.uniform("angle") * 90 - 135
    flakes = filters.blur_along(flakes, angle, int(radius), sigma)
    red, green, blue = pixels.unsqueeze(2).unbind(1)
    grey = red * 0.299 + green * 0.587 + blue * 0.114
    whitened = torch.maximum(pixels, grey * 1.5 + 127.5)
    return pixels * keep + whitened * (1 - keep) + flakes + flakes.rot90(2, (2, 3))


def frost(pixels: Tensor, rng: CounterRNG, image_weight: float, frost_weight: float) -> Tensor:
    """Image and ice crystals, blended with the published weights.

    A STAND-IN: the published images show cut-outs of photographs of frost, which don't come with
    this program. Here crystals are drawn: ridges of a plasma, clearer in some
    places than in others. Accuracies are not comparable with published ones.
    """
    height, width = pixels.shape[2:]
    size = _power_of_two(max(height, width))
    ridges = 1 - (2 * plasma(rng, size, 1.6, "ridges") - 1).abs()
    cover = plasma(rng, size, 2.5, "cover")
    ice = (ridges**2 * (0.35 + 0.65 * cover))[:, None, :height, :width].to(torch.float32)
    tint = torch.tensor([0.86, 0.94, 1.0], device=pixels.device).view(1, 3, 1, 1)
    return pixels * image_weight + (70 * tint + 185 * ice) * frost_weight


def fog(pixels: Tensor, rng: CounterRNG, amount: float, decay: float) -> Tensor:
    """A plasma is added, and the sum scaled back to the brightest value of the image."""
    height, width = pixels.shape[2:]
    clouds = plasma(rng, _power_of_two(max(height, width)), decay)[:, None, :height, :width]
    brightest = pixels.amax(dim=(1, 2, 3), keepdim=True)
    thick = pixels + clouds.to(torch.float32) * (255 * amount)
    return thick * (brightest / (brightest + 255 * amount))


def _power_of_two(size: int) -> int:
    """The smallest that is at least `size`."""
    return 1 << (size - 1).bit_length()


# ---------------------------------------------------------------- digital


def brightness(pixels: Tensor, rng: CounterRNG, shift: float) -> Tensor:
    """The value of HSV rises by `shift`; hue and saturation stay."""
    value = pixels.amax(dim=1, keepdim=True)
    risen = (value + 255 * shift).clamp(max=255)
    # at fixed hue and saturation every channel is proportional to the value; black becomes grey
    return torch.where(value > 0, pixels * (risen / value.clamp(min=1)), risen)


def contrast(pixels: Tensor, rng: CounterRNG, factor: float) -> Tensor:
    """Distances from the mean of each channel shrink to `factor`."""
    # sums of whole numbers: the same on every device
    total = pixels.to(torch.int64).sum(dim=(2, 3), keepdim=True).to(torch.float64)
    mean = (total / (pixels.shape[2] * pixels.shape[3])).to(torch.float32)
    return (pixels - mean) * factor + mean


def elastic_transform(
    pixels: Tensor, rng: CounterRNG, amplitude: float, sigma: float, corners: float
) -> Tensor:
    """A random affine map, then a smooth random displacement; all in parts of the shorter side.

    The map moves three points by up to `corners`. The displacement is uniform noise of
    `amplitude`, smoothed with `sigma`.
    """
    height, width = pixels.shape[2:]
    side = min(height, width)
    y, x = _random_affine(rng, height, width, corners * side)
    pixels = filters.sample(pixels, y, x, border_twice=False)
    if not amplitude:
        return pixels
    sigma, reach = sigma * side, int(3 * sigma * side + 0.5)
    smooth = [filters.gaussian_matrix(n, sigma, reach, filters.mirrored) for n in (height, width)]
    noise = rng.uniform("displacement", 2, height, width) * 2 - 1
    move_y, move_x = (filters.apply_matrices(noise, *smooth) * (amplitude * side)).unbind(1)
    y = torch.arange(height, device=pixels.device).view(height, 1) + move_y
    x = torch.arange(width, device=pixels.device) + move_x
    return filters.sample(pixels, y, x, border_twice=True)


def _random_affine(rng: CounterRNG, height: int, width: int, limit: float) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from, y and x (N, H, W), when three points move by up to `limit`."""
    centre_x, centre_y, reach = width // 2, height // 2, min(height, width) // 3
    points = torch.tensor(
        [
            [centre_x + reach, centre_y + reach],
            [centre_x + reach, centre_y - reach],
            [centre_x - reach, centre_y - reach],
        ],
        dtype=torch.float64,
        device=rng.device,
    )
    moved = points + (rng.uniform("corners", 3, 2) * 2 - 1) * limit
    ones = torch.ones_like(moved[..., :1])
    back = torch.linalg.solve(torch.cat([moved, ones], dim=2), points)  # (N, 3, 2)
    y = torch.arange(height, device=rng.device).view(1, height, 1)
    x = torch.arange(width, device=rng.device).view(1, 1, width)
    by_x, by_y, constant = back.view(-1, 3, 2, 1, 1).unbind(1)
    from_x, from_y = (by_x * x + by_y * y + constant).unbind(1)
    return from_y, from_x


def pixelate(pixels: Tensor, rng: CounterRNG, scale: float) -> Tensor:
    """Resized to `scale` and back, with PIL's box filter."""
    height, width = pixels.shape[2:]
    coarse = filters.box_resize(pixels, int(height * scale), int(width * scale))
    return filters.box_resize(coarse, height, width)


def jpeg_compression(pixels: Tensor, rng: CounterRNG, quality: float) -> Tensor:
    """Encoded and decoded as JPEG with colours at half the resolution; on the host, by PIL."""
    from PIL import Image

    output = []
    for image in pixels.to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
        output.append(np.asarray(Image.open(buffer)))
    decoded = torch.from_numpy(np.stack(output)).permute(0, 3, 1, 2)
    return decoded.to(pixels.device, torch.float32)


CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
