"""The fifteen corruptions against their published definitions, written out again in numpy.

Where a definition draws random numbers, both sides get the same ones.
"""

import colorsys
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image
from torch import Tensor

from fusionrun.common.seeds import derive_seed
from fusionrun.robustness.corruptions import (
    CHUNK,
    CONSTANTS,
    CORRUPTIONS,
    MIN_SIZE,
    NOISE_SIGMAS,
    NOTES,
    SEVERITIES,
    add_noise,
    corrupt,
)
from fusionrun.robustness.counter_rng import CounterRNG, plasma
from fusionrun.robustness.image_filters import (
    box_resize,
    disc_kernel,
    gaussian_matrix,
    mirrored,
    nearest,
    zoom_matrix,
)
from tests.tiny import ROOT

Floats = npt.NDArray[np.float64]
NAMES = list(CORRUPTIONS)
UNSEEDED = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
}
ALL = [(name, severity) for name in NAMES for severity in SEVERITIES]


def pictures(count: int = 4, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Spectra like those of photographs (amplitude 1 / frequency), colours mostly in step."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1
    white = rng.normal(size=(count, 1, height, width)) + 0.4 * rng.normal(
        size=(count, 3, height, width)
    )
    waves = np.fft.ifft2(np.fft.fft2(white) / frequency).real
    waves -= waves.mean(axis=(2, 3), keepdims=True)
    waves *= 55 / waves.std(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy((waves + 120).clip(0, 255).astype(np.uint8))


def plain(red: int, green: int, blue: int, count: int = 2) -> Tensor:
    colour = torch.tensor([red, green, blue], dtype=torch.uint8)
    return colour.view(1, 3, 1, 1).repeat(count, 1, 32, 32)


def as_rows(image: Tensor) -> npt.NDArray[np.uint8]:
    """(3, H, W) -> (H, W, 3), as the published code has images."""
    return image.permute(1, 2, 0).numpy()


# ---------------------------------------------------------------- random numbers


def splitmix(state: int, count: int) -> list[int]:
    """Steele, Lea and Flood 2014, in Python's unlimited integers."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        found.append(z ^ (z >> 31))
    return found


def counter_rng(count: int = 1, first: int = 0, seed: int = 0) -> CounterRNG:
    return CounterRNG(seed, first, count, torch.device("cpu"))


def test_an_image_has_a_splitmix_sequence_of_its_own() -> None:
    # the sequence everybody's implementation is checked with
    assert splitmix(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = counter_rng(count=3, first=5, seed=11).uniform("here", 2, 7)
    assert found.shape == (3, 2, 7)
    key = derive_seed(11, "here")
    for row, image in enumerate((5, 6, 7)):
        # state before the step that the first number of image n's own seed comes from
        (start,) = splitmix((key + (image - 1) * 0x9E3779B97F4A7C15) % 2**64, 1)
        expected = [(number >> 11) / 2**53 for number in splitmix(start, 14)]
        assert found[row].flatten().tolist() == expected


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_draws_have_their_distribution_and_no_neighbours(kind: str) -> None:
    numbers: Tensor = getattr(counter_rng(count=40, seed=3), kind)("x", 50, 50)
    distribution = {"uniform": "uniform", "normal": "norm"}[kind]
    assert scipy.stats.kstest(numbers.flatten().numpy(), distribution).pvalue > 0.01
    assert len(numbers.unique()) > 0.99 * numbers.numel()
    # rows: images, neighbouring positions, another purpose, another seed
    other: Tensor = getattr(counter_rng(count=40, seed=3), kind)("y", 50, 50)
    reseeded: Tensor = getattr(counter_rng(count=40, seed=4), kind)("x", 50, 50)
    pairs = [
        (numbers[1:], numbers[:-1]),
        (numbers[..., 1:], numbers[..., :-1]),
        (numbers, other),
        (numbers, reseeded),
    ]
    for one, two in pairs:
        correlation = np.corrcoef(one.flatten().numpy(), two.flatten().numpy())[0, 1]
        assert abs(correlation) < 4 / math.sqrt(one.numel())


def test_plasma_is_the_diamond_square_algorithm() -> None:
    size, decay, source = 16, 2.5, counter_rng(count=3, seed=8)
    found = plasma(source, size, decay)
    for image in range(3):
        heights, step, wobble = np.zeros((size, size)), size, 100.0
        while step >= 2:
            half = step // 2
            noise = (2 * source.uniform(f"plasma {step}", 3, size // step, size // step) - 1)[image]
            noise = noise.numpy() * wobble * wobble

            def at(y: int, x: int, heights: Floats = heights) -> float:
                return float(heights[y % size, x % size])

            for y in range(half, size, step):
                for x in range(half, size, step):
                    around = [at(y + a, x + b) for a in (-half, half) for b in (-half, half)]
                    heights[y, x] = sum(around) / 4 + noise[0, y // step, x // step]
            for which, (top, left) in ((1, (0, half)), (2, (half, 0))):
                for y in range(top, size, step):
                    for x in range(left, size, step):
                        around = [
                            at(y - half, x),
                            at(y + half, x),
                            at(y, x - half),
                            at(y, x + half),
                        ]
                        heights[y, x] = sum(around) / 4 + noise[which, y // step, x // step]
            step, wobble = half, wobble / decay
        heights -= heights.min()
        np.testing.assert_allclose(found[image].numpy(), heights / heights.max(), atol=1e-12)


def test_plasma_is_rougher_with_less_decay() -> None:
    def roughness(decay: float) -> float:
        heights = plasma(counter_rng(count=50), 32, decay)
        assert heights.amin() == 0 and heights.amax() == 1
        # of midpoints made last, against the mean of their four neighbours
        around = sum(heights.roll(move, dim) for move in (1, -1) for dim in (1, 2))
        return float((heights - around / 4)[:, ::2, 1::2].abs().mean())

    # each of the four halvings after the first shrinks what is added by the square of the decay
    assert roughness(2) / roughness(3) == pytest.approx((3 / 2) ** 8, rel=0.1)


# ---------------------------------------------------------------- published definitions


def source_of(name: str, severity: int, image: int, seed: int = 0) -> CounterRNG:
    return counter_rng(first=image, seed=derive_seed(seed, name, severity))


def defocus_blur(image: Any, source: CounterRNG, radius: float, sigma: float) -> Any:
    """Kernel by counting and by direct sums, then a direct convolution."""
    disc = np.array(
        [[float(a * a + b * b <= radius**2) for a in range(-4, 5)] for b in range(-4, 5)]
    )
    bell = np.exp(-np.array([1.0, 0, 1]) / (2 * sigma**2))
    kernel = scipy.ndimage.convolve(disc / disc.sum(), np.outer(bell, bell) / bell.sum() ** 2)
    planes = [
        scipy.ndimage.correlate(image[..., k].astype(float), kernel, mode="mirror")
        for k in range(3)
    ]
    return np.stack(planes, axis=-1)


def smoothed(image: Any, sigma: float) -> Any:
    return scipy.ndimage.gaussian_filter(
        image.astype(float), (sigma, sigma, 0), mode="nearest", truncate=4
    )


def glass_blur(image: Any, source: CounterRNG, sigma: float, repeats: int) -> Any:
    """The loop of the published code, with its swap of two views of one array."""
    image = (smoothed(image, sigma) + 1e-3).astype(np.uint8)
    height, width = image.shape[:2]
    for number in range(repeats):
        moves = (source.uniform(f"moves {number}", 2, height, width)[0] < 0.5).int().tolist()
        for y in range(height - 1, 1, -1):
            for x in range(width - 1, 1, -1):
                there = y - moves[0][y][x], x - moves[1][y][x]
                image[y, x], image[there] = image[there], image[y, x]
    return smoothed(image, sigma)


def blurred_along(image: Any, degrees: float, radius: int, sigma: float) -> Any:
    """ImageMagick's motion blur, pixel by pixel."""
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(2 * radius + 1)]
    down, right = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    moves = [(math.ceil(k * down - 0.5), math.ceil(k * right - 0.5)) for k in range(len(weights))]
    output = np.zeros(image.shape)
    height, width = image.shape[:2]
    for y in range(height):
        for x in range(width):
            for (dy, dx), weight in zip(moves, weights, strict=True):
                there = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
                output[y, x] += weight * image[there]
    return np.floor(output / sum(weights) + 0.5)


def motion_blur(image: Any, source: CounterRNG, radius: int, sigma: float) -> Any:
    degrees = -45 + 90 * float(source.uniform("angle")[0])
    return blurred_along(image.astype(float), degrees, radius, sigma)


def zoomed(image: Any, factor: float) -> Any:
    """Each side of its own: the published code has squares only."""
    (top, height), (left, width) = [
        ((size - math.ceil(size / factor)) // 2, math.ceil(size / factor))
        for size in image.shape[:2]
    ]
    part = image[top : top + height, left : left + width].astype(float)
    large = scipy.ndimage.zoom(part, (factor, factor, 1), order=1)
    top, left = [(a - b) // 2 for a, b in zip(large.shape[:2], image.shape[:2], strict=True)]
    return large[top : top + image.shape[0], left : left + image.shape[1]]


def zoom_blur(image: Any, source: CounterRNG, end: float) -> Any:
    factors = np.arange(1, end, 0.01)
    total = image + sum(zoomed(image, factor) for factor in factors)
    return total / (len(factors) + 1)


def snow(image: Any, source: CounterRNG, *constants: float) -> Any:
    mean, spread, zoom, threshold, radius, sigma, keep = constants
    height, width = image.shape[:2]
    layer = source.normal("flakes", 1, height, width)[0, 0].double().numpy() * spread + mean
    layer = zoomed(layer[..., None], zoom)
    layer[layer < threshold] = 0
    layer = (layer.clip(0, 1) * 255).astype(np.uint8).astype(float)
    degrees = -135 + 90 * float(source.uniform("angle")[0])
    layer = blurred_along(layer, degrees, int(radius), sigma)
    grey = image @ np.array([0.299, 0.587, 0.114])
    white = np.maximum(image, grey[..., None] * 1.5 + 0.5 * 255)
    return keep * image + (1 - keep) * white + layer + np.rot90(layer, 2)


def fog(image: Any, source: CounterRNG, amount: float, decay: float) -> Any:
    height, width = image.shape[:2]
    size = {32: 32, 40: 64}[max(height, width)]
    layer = plasma(source, size, decay)[0].numpy()[:height, :width, None]
    high = image.max() / 255
    return (image / 255 + amount * layer) * high / (high + amount) * 255


def brightness(image: Any, source: CounterRNG, shift: float) -> Any:
    output = np.zeros(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        output[place] = colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1))
    return output * 255


def contrast(image: Any, source: CounterRNG, factor: float) -> Any:
    means = image.mean(axis=(0, 1), keepdims=True)
    return (image - means) * factor + means


def elastic_transform(image: Any, source: CounterRNG, *constants: float) -> Any:
    height, width = image.shape[:2]
    side = min(height, width)
    amplitude, sigma, corners = (side * constant for constant in constants)
    middle, reach = np.array([width // 2, height // 2]), side // 3
    old = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    new = old + corners * (2 * source.uniform("corners", 3, 2)[0].numpy() - 1)
    # forward map of the points, then backwards from each pixel of the output
    forward, *_ = np.linalg.lstsq(np.c_[old, np.ones(3)], new, rcond=None)
    y, x = np.mgrid[:height, :width].astype(float)
    places = np.c_[x.ravel() - forward[2, 0], y.ravel() - forward[2, 1]]
    from_x, from_y = (places @ np.linalg.inv(forward[:2])).T.reshape(2, height, width)

    def sample(image: Any, from_y: Any, from_x: Any, mode: str) -> Any:
        planes = [
            scipy.ndimage.map_coordinates(image[..., k], [from_y, from_x], order=1, mode=mode)
            for k in range(3)
        ]
        return np.stack(planes, axis=-1)

    image = sample(image.astype(float), from_y, from_x, "mirror")
    noise = source.uniform("displacement", 2, height, width)[0].numpy() * 2 - 1
    down, right = (
        amplitude * scipy.ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
        for field in noise
    )
    return sample(image, y + down, x + right, "reflect")


def pixelate(image: Any, source: CounterRNG, scale: float) -> Any:
    height, width = image.shape[:2]
    box = Image.Resampling.BOX
    small = Image.fromarray(image).resize((int(width * scale), int(height * scale)), box)
    return np.asarray(small.resize((width, height), box))


def jpeg_compression(image: Any, source: CounterRNG, quality: int) -> Any:
    """What a file has that any program wrote by way of PIL, as the published code did."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


REFERENCES: dict[str, Callable[..., Any]] = {
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
EXACT = {"pixelate", "jpeg_compression"}
TWICE_CUT = {"glass_blur"}  # also to whole numbers on the way, where rounding can cost a level


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_corruption_is_what_was_published(name: str, severity: int) -> None:
    dim = pictures(2, height=24, width=40, seed=1) // 2
    for images in (pictures(3), dim):
        found = corrupt(images, name, severity, seed=0)
        for number, image in enumerate(images):
            constants = CONSTANTS[name][severity - 1]
            source = source_of(name, severity, number)
            expected = REFERENCES[name](as_rows(image), source, *constants)
            off = as_rows(found[number]) - expected.clip(0, 255)
            if name in EXACT:
                assert not off.any()
            else:  # cut off to whole numbers, up to rounding
                within = (off < 0.02) & (off > -1.02)
                assert within.mean() >= (0.99 if name in TWICE_CUT else 1)
                assert off.max() < 2 and off.min() > -3


def test_every_corruption_is_held_to_something() -> None:
    """These by their distribution below; frost has no published texture to be held to."""
    others = {"gaussian_noise", "shot_noise", "impulse_noise", "frost"}
    assert set(NAMES) == set(REFERENCES) | others == set(CONSTANTS)
    assert len(NAMES) == 15
    assert all(len(rows) == len(SEVERITIES) for rows in CONSTANTS.values())
    assert set(NOTES) == {"frost"}


def published_constants() -> dict[str, list[tuple[float, ...]]]:
    """In our words: what never varies is left out, lengths are parts of the image's 32 pixels."""
    tables = json.loads((ROOT / "tests/data/cifar10_c_constants.json").read_text())
    tables.pop("source")
    # of the neighbours of a pixel the nearest alone, of factors from 1 in steps of 0.01 the last
    assert {neighbours for _, neighbours, _ in tables["glass_blur"]} == {1}
    assert {(start, step) for start, _, step in tables["zoom_blur"]} == {(1, 0.01)}
    tables["glass_blur"] = [(sigma, repeats) for sigma, _, repeats in tables["glass_blur"]]
    tables["zoom_blur"] = [(end,) for _, end, _ in tables["zoom_blur"]]
    tables["elastic_transform"] = [
        [pixels / 32 for pixels in row] for row in tables["elastic_transform"]
    ]
    return {name: [tuple(row) for row in rows] for name, rows in tables.items()}


@pytest.mark.parametrize("name", NAMES)
def test_constants_are_the_published_ones(name: str) -> None:
    published = published_constants()
    assert published.keys() == CONSTANTS.keys()
    for found, expected in zip(CONSTANTS[name], published[name], strict=True):
        assert found == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------- noise by its distribution


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_width_and_is_clipped(severity: int) -> None:
    (sigma,) = CONSTANTS["gaussian_noise"][severity - 1]
    grey = corrupt(plain(128, 128, 128, count=40), "gaussian_noise", severity, 0).double()
    # cutting off to whole numbers takes half a level and adds a twelfth to the variance
    count = grey.numel()
    assert abs(float(grey.mean()) - 127.5) < 4 * 255 * sigma / math.sqrt(count)
    assert float(grey.std()) == pytest.approx(math.sqrt((255 * sigma) ** 2 + 1 / 12), rel=0.01)
    dark, bright = (corrupt(plain(v, v, v, 40), "gaussian_noise", severity, 0) for v in (0, 255))
    assert float((dark == 0).double().mean()) == pytest.approx(
        scipy.stats.norm.cdf(1 / (255 * sigma)), abs=0.01
    )
    assert float((bright == 255).double().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("level", [0, 3, 90, 255])
def test_shot_noise_counts_photons(severity: int, level: int) -> None:
    (photons,) = CONSTANTS["shot_noise"][severity - 1]
    found = corrupt(plain(level, level, level, 20), "shot_noise", severity, 0).numpy().ravel()
    count = np.arange(int(photons) + 1)
    chances = scipy.stats.poisson.pmf(count, level / 255 * photons)
    chances[-1] = 1 - chances[:-1].sum()  # what is brighter than white is white
    bytes_ = (count * 255 / photons + 1e-3).astype(np.uint8)
    expected = np.bincount(bytes_, chances * len(found), minlength=256)
    observed = np.bincount(found, minlength=256)
    assert not observed[expected == 0].any()
    if level == 0:
        assert not found.any()
        return
    common = expected >= 5
    statistic = ((observed - expected)[common] ** 2 / expected[common]).sum()
    assert scipy.stats.chi2.sf(statistic, common.sum() - 1) > 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_hits_a_share_of_all_values(severity: int) -> None:
    (amount,) = CONSTANTS["impulse_noise"][severity - 1]
    images = plain(60, 120, 180, count=40)
    found = corrupt(images, "impulse_noise", severity, 0)
    hit = found != images
    assert set(found[hit].tolist()) == {0, 255}
    width = 4 * math.sqrt(amount / hit.numel())
    assert float((found == 0).double().mean()) == pytest.approx(amount / 2, abs=width)
    assert float((found == 255).double().mean()) == pytest.approx(amount / 2, abs=width)
    # values, not pixels: red is hit without green as often as chance has it
    both = float((hit[:, 0] & hit[:, 1]).double().mean())
    assert both < 3 * amount**2


def test_noise_on_normalised_images() -> None:
    images = torch.randn(30, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    assert torch.equal(add_noise(images, 0.0, seed=1), images)
    assert NOISE_SIGMAS == (0.0, 0.05, 0.1, 0.2, 0.3)  # the earlier system's levels
    for sigma in NOISE_SIGMAS[1:]:
        difference = (add_noise(images, sigma, seed=1) - images).double()
        assert float(difference.std()) == pytest.approx(sigma, rel=0.02)
        assert abs(float(difference.mean())) < 4 * sigma / math.sqrt(difference.numel())
    loud = add_noise(images, 5.0, seed=1)
    assert loud.amin() == -3 and loud.amax() == 3
    later = add_noise(images[7:], 0.1, seed=1, first_index=7)
    assert torch.equal(later, add_noise(images, 0.1, seed=1)[7:])
    assert not torch.equal(add_noise(images, 0.1, seed=1), add_noise(images, 0.1, seed=2))


# ---------------------------------------------------------------- filters


@pytest.mark.parametrize("size", [9, 32])
def test_filters_keep_the_sum(size: int) -> None:
    matrices = [
        zoom_matrix(size, 1.13),
        gaussian_matrix(size, 0.4, 2, nearest),
        gaussian_matrix(size, 6.4, 19, mirrored),
    ]
    for matrix in matrices:
        assert matrix.min() >= 0
        np.testing.assert_allclose(matrix.sum(dim=1).numpy(), 1, atol=1e-12)
    for radius, sigma in CONSTANTS["defocus_blur"]:
        kernel = disc_kernel(radius, sigma)
        assert kernel.min() >= 0 and float(kernel.sum()) == pytest.approx(1, abs=1e-12)
        assert torch.equal(kernel, kernel.flip(0)) and torch.equal(kernel, kernel.T)


@pytest.mark.parametrize(
    ("old", "new"), [((12, 30), (8, 20)), ((8, 20), (12, 30)), ((9, 16), (4, 6)), ((7, 9), (16, 3))]
)
def test_box_filter_is_that_of_pil(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Also where the edge of a box meets the centre of a pixel, as at 3 to 2."""
    images = pictures(3, *old)
    found = box_resize(images.to(torch.float32), *new).to(torch.uint8)
    for image, resized in zip(images, found, strict=True):
        expected = Image.fromarray(as_rows(image)).resize(new[::-1], Image.Resampling.BOX)
        np.testing.assert_array_equal(as_rows(resized), np.asarray(expected))


SMOOTH = (
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "contrast",
    "elastic_transform",
    "pixelate",
)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", SMOOTH)
def test_a_plain_image_stays_plain(name: str, severity: int) -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (77, 200, 13)):
        assert torch.equal(corrupt(plain(*colour), name, severity, 0), plain(*colour))


@pytest.mark.parametrize("name", NAMES)
def test_damage_grows_with_severity(name: str) -> None:
    """As far as the published constants do."""
    images = pictures(60)
    if name == "frost":
        # the weight of the image falls too, so what counts is how much of it can't be seen
        damage = [1 - likeness(images, corrupt(images, name, s, 0)) for s in SEVERITIES]
    else:
        damage = [squared_error(images, corrupt(images, name, s, 0)) for s in SEVERITIES]
    assert damage[0] > 0
    if name == "glass_blur":  # smoothing hides some of the shuffling; the last two shuffle twice
        assert max(damage[:3]) < min(damage[3:])
    elif name == "motion_blur":  # from 3 to 4 the kernel is cut off later, but is no wider
        assert damage[0] < damage[1] < damage[2] < damage[4] and damage[3] < damage[4]
    elif name == "elastic_transform":  # from local to global: the error falls, as published
        assert damage == sorted(damage, reverse=True)
    else:
        assert damage == sorted(damage) and len(set(damage)) == len(damage)


def squared_error(clean: Tensor, found: Tensor) -> float:
    return float((clean.double() - found.double()).square().mean())


def likeness(clean: Tensor, found: Tensor) -> float:
    """Mean squared correlation of pixels: 1 where only brightness and contrast differ."""
    pairs = zip(clean.flatten(1).numpy(), found.flatten(1).numpy(), strict=True)
    return float(np.mean([np.corrcoef(one, two)[0, 1] ** 2 for one, two in pairs]))


def test_frost_is_laid_over_the_image() -> None:
    """What can be said of a texture of our own: weights, range, and a pattern for each image."""
    for severity, (image_weight, frost_weight) in zip(SEVERITIES, CONSTANTS["frost"], strict=True):
        dark, light = (corrupt(plain(v, v, v), "frost", severity, 0).double() for v in (0, 100))
        np.testing.assert_allclose((light - dark).numpy(), 100 * image_weight, atol=1.01)
        assert dark.max() <= 255 * frost_weight
        texture = dark / frost_weight
        assert float(texture.std()) > 15
        assert (texture[0] - texture[1]).abs().mean() > 10


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize(("name", "severity"), ALL)
def test_shape_type_and_seed(name: str, severity: int) -> None:
    for shape in ((3, 32, 32), (1, 32, 32), (2, MIN_SIZE, MIN_SIZE), (2, 17, 40)):
        images = pictures(*shape)
        before = images.clone()
        found = corrupt(images, name, severity, seed=4)
        assert found.shape == images.shape and found.dtype == torch.uint8
        assert found.device == images.device
        assert torch.equal(images, before) and found.data_ptr() != images.data_ptr()
        assert torch.equal(corrupt(images, name, severity, seed=4), found)
        layout = images.to(memory_format=torch.channels_last)
        assert torch.equal(corrupt(layout, name, severity, seed=4), found)
    images = pictures(3)
    same = torch.equal(corrupt(images, name, severity, 4), corrupt(images, name, severity, 5))
    assert same == (name in UNSEEDED)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_in_any_batch(name: str) -> None:
    images = pictures(6).repeat(50, 1, 1, 1)[: CHUNK + 9]
    whole = corrupt(images, name, 3, seed=2)
    pieces = [
        corrupt(images[first:end], name, 3, seed=2, first_index=first)
        for first, end in ((0, 1), (1, 100), (100, len(images)))
    ]
    # sums of float32 may be rounded otherwise in a batch of another size
    difference = (torch.cat(pieces).int() - whole.int()).abs()
    assert difference.max() <= 1 and float((difference > 0).double().mean()) < 1e-3
    if name not in UNSEEDED:  # the same picture looks different at another place
        assert not torch.equal(whole[0], whole[6])


def test_what_cannot_be_corrupted_is_refused() -> None:
    images = pictures(2)
    with pytest.raises(ValueError, match=r"'blur' is unknown; expected one of \['gaussian_noise"):
        corrupt(images, "blur", 1, 0)
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"severity is {severity}; expected 1 to 5"):
            corrupt(images, "fog", severity, 0)
    for wrong in (images.float(), images[0], images[:, :1]):
        with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\) torch.uint8"):
            corrupt(wrong, "fog", 1, 0)
    with pytest.raises(ValueError, match="images are 32x7 pixels; expected at least 8 a side"):
        corrupt(images[..., :7], "fog", 1, 0)
