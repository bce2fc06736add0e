"""A procedural data set: needs no file and no network, and is hard enough to rank models.

A class is a shape filled with a texture, above 25 classes also with a colour family. Position,
size, phase, contrast, polarity, lighting, background and distractors vary freely, so that no
pixel says much about the class by itself. Shapes and textures are symmetric left to right and hue
families are 90 degrees apart: flips and colour jitter (hue +-0.1 of the circle) keep the class.
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt

from fusionrun.common.seeds import derive_seed
from fusionrun.data.datasets.cache import Arrays, channel_statistics
from fusionrun.data.datasets.request import Request
from fusionrun.data.datasets.survey import Survey, require_memory
from fusionrun.data.errors import DataError

SHAPES = ("disc", "square", "triangle", "cross", "ring")
TEXTURES = ("plain", "rows", "columns", "checks", "ripples")
COLOURS = ("red", "green", "cyan", "violet")  # hues at 0, 90, 180 and 270 degrees
MAX_CLASSES = len(SHAPES) * len(TEXTURES) * len(COLOURS)
GENERATOR_VERSION = 1  # part of the fingerprint: raise it when any pixel changes
CHUNK = 500  # images drawn at a time, to stay within the caches

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def load_synthetic(request: Request) -> Arrays:
    """Draw the set that (seed, num_classes, numbers of images, image_size) define.

    Classes are balanced and in random order. Raises DataError for sizes out of range.
    """
    _require_possible(request)
    train_images, train_labels = _part(request, "train", request.train_images)
    test_images, test_labels = _part(request, "test", request.test_images)
    mean, std = channel_statistics(train_images)
    # of the recipe, not of the pixels: sine and exponential may differ in the last bit between
    # processors, and splits made on one machine must be accepted on the next
    recipe = (
        GENERATOR_VERSION,
        request.seed,
        request.num_classes,
        request.train_images,
        request.test_images,
        request.image_size,
    )
    return Arrays(
        train_images,
        train_labels,
        test_images,
        test_labels,
        _class_names(request.num_classes),
        mean,
        std,
        hashlib.sha256(repr(recipe).encode()).hexdigest()[:16],
    )


def survey_synthetic(request: Request) -> Survey:
    """What would be drawn. Raises DataError as drawing it does."""
    _require_possible(request)
    return Survey(
        "synthetic",
        request.train_images,
        request.test_images,
        classes=_class_names(request.num_classes),
        image_size=request.image_size,
        shared=False,
        ready=True,
    )


def _require_possible(request: Request) -> None:
    """Raise DataError for what can't be drawn or held."""
    if not 2 <= request.num_classes <= MAX_CLASSES:
        raise DataError(
            f"synthetic: num_classes is {request.num_classes}; expected 2 to {MAX_CLASSES}."
        )
    if request.image_size < 16:
        raise DataError(
            f"synthetic: image_size is {request.image_size}; expected at least 16, "
            "or the textures cannot be told apart."
        )
    for name in ("train_images", "test_images"):
        if getattr(request, name) < request.num_classes:
            raise DataError(
                f"synthetic: {name} is {getattr(request, name)}; expected at least one image for "
                f"each of the {request.num_classes} classes."
            )
    count = request.train_images + request.test_images
    require_memory("synthetic", count, request.image_size)


def _class_names(count: int) -> tuple[str, ...]:
    names = tuple(f"{TEXTURES[k // 5 % 5]} {SHAPES[k % 5]}" for k in range(count))
    if count <= 25:
        return names
    return tuple(f"{COLOURS[k // 25]} {name}" for k, name in enumerate(names))


def _part(request: Request, part: str, count: int) -> tuple[npt.NDArray[np.uint8], Ints]:
    rng = np.random.default_rng(derive_seed(request.seed, "synthetic", part))
    labels = rng.permutation(np.arange(count) % request.num_classes)
    size = request.image_size
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        chunk = labels[start : start + CHUNK]
        images[start : start + CHUNK] = _draw(rng, chunk, size, request.num_classes > 25)
    return images, labels


def _draw(
    rng: np.random.Generator, labels: Ints, size: int, coloured: bool
) -> npt.NDArray[np.uint8]:
    """Images (N, 3, size, size) of the classes `labels`. Lengths are in pixels of 32."""
    count = len(labels)
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(32 / size)
    grid_x, grid_y = axis[None, None, :], axis[None, :, None]
    colour = labels // 25 if coloured else rng.integers(0, len(COLOURS), count)
    # a colour gradient with faint waves in any direction, so that texture alone is no clue
    ends = [
        _rgb(
            _uniform(rng, count, 0, 1), _uniform(rng, count, 0, 0.6), _uniform(rng, count, 0.15, 1)
        )
        for _ in range(2)
    ]
    angle = _uniform(rng, count, 0, 2 * math.pi)
    along = (np.cos(angle) * (grid_x - 16) + np.sin(angle) * (grid_y - 16)) / 32 + 0.5
    image = ends[0] + (ends[1] - ends[0]) * along[:, None]
    angle, wavelength = _uniform(rng, count, 0, math.pi), _uniform(rng, count, 4, 14)
    phase = _uniform(rng, count, 0, 2 * math.pi)
    across = np.cos(angle) * grid_x + np.sin(angle) * grid_y
    waves = np.sin(across * (2 * math.pi / wavelength) + phase)
    image = np.asarray(image + (waves * _uniform(rng, count, 0, 0.1))[:, None], dtype=np.float32)
    for _ in range(2):  # distractors: small plain discs of any colour, behind the object
        x, y = _uniform(rng, count, 0, 32), _uniform(rng, count, 0, 32)
        mask = _disc(grid_x - x, grid_y - y, _uniform(rng, count, 1.5, 4))
        hue, value = _uniform(rng, count, 0, 1), _uniform(rng, count, 0.2, 0.9)
        image = _over(image, mask, _rgb(hue, _uniform(rng, count, 0, 0.7), value))

    x, y = _uniform(rng, count, 11, 21), _uniform(rng, count, 11, 21)
    radius = _uniform(rng, count, 8.5, 11.5)
    shape = _shape(labels % 5, grid_x - x, grid_y - y, radius)
    texture = _texture(rng, labels // 5 % 5, grid_x - x, grid_y - y)
    hue = (colour[:, None, None] / len(COLOURS)).astype(np.float32)
    hue = hue + _uniform(rng, count, -0.04, 0.04)
    saturation = _uniform(rng, count, 0.35, 0.9)
    value, contrast = _uniform(rng, count, 0.35, 0.65), _uniform(rng, count, 0.17, 0.3)
    polarity = np.sign(_uniform(rng, count, -1, 1))
    fill = _rgb(hue, saturation, value) * (1 + (polarity * contrast / value * texture)[:, None])
    image = _over(image, shape, fill)

    light = _uniform(rng, count, 0.75, 1.25)[:, None]
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image * light + noise * _uniform(rng, count, 0.01, 0.06)[:, None]
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _uniform(rng: np.random.Generator, count: int, low: float, high: float) -> Floats:
    """(N, 1, 1), one number per image."""
    values = rng.random((count, 1, 1), dtype=np.float32)
    return values * np.float32(high - low) + np.float32(low)


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """(N, 3, 1, 1) from (N, 1, 1) each, hue in turns (Smith 1978, in closed form)."""
    sector = np.array([5, 3, 1], dtype=np.float32).reshape(1, 3, 1, 1)
    k = (sector + hue[:, None] * 6) % 6
    fall = np.minimum(k, 4 - k).clip(0, 1)
    return np.asarray(value[:, None] * (1 - saturation[:, None] * fall), dtype=np.float32)


def _over(image: Floats, mask: Floats, colour: Floats) -> Floats:
    return np.asarray(image + (colour - image) * mask[:, None], dtype=np.float32)


def _edge(distance: Floats) -> Floats:
    """Coverage 0..1 of a pixel at signed `distance` inside the edge, in pixels."""
    return (distance + np.float32(0.5)).clip(0, 1)


def _disc(x: Floats, y: Floats, radius: Floats) -> Floats:
    return _edge(radius - np.sqrt(x * x + y * y))


def _shape(kind: Ints, x: Floats, y: Floats, radius: Floats) -> Floats:
    """Masks (N, size, size) of about equal area; x (N, 1, size) and y (N, size, 1) from centre."""
    mask = np.empty((len(kind), y.shape[1], x.shape[2]), dtype=np.float32)
    for number, name in enumerate(SHAPES):
        rows = np.flatnonzero(kind == number)
        u, v, r = x[rows], y[rows], radius[rows]
        if name == "disc":
            part = _disc(u, v, r * 0.9)
        elif name == "square":
            part = _edge(r * 0.8 - np.maximum(np.abs(u), np.abs(v)))
        elif name == "triangle":  # the tip up
            part = _edge(np.minimum(r * 0.8 - v, (v + r * 1.2) * 0.45 - np.abs(u) * 0.9))
        elif name == "cross":
            arms = np.minimum(np.abs(u), np.abs(v)) - r * 0.36
            part = _edge(-np.maximum(arms, np.maximum(np.abs(u), np.abs(v)) - r * 1.05))
        else:  # ring
            distance = np.sqrt(u * u + v * v)
            part = _edge(r * 0.3 - np.abs(distance - r * 0.8))
        mask[rows] = part
    return mask


def _texture(rng: np.random.Generator, kind: Ints, x: Floats, y: Floats) -> Floats:
    """Waves -1..1, (N, size, size), of random phase and wavelength."""
    count = len(kind)
    rate = 2 * math.pi / _uniform(rng, count, 3.2, 5.5)
    rows = np.sin(y * rate + _uniform(rng, count, 0, 2 * math.pi))  # (N, size, 1)
    columns = np.sin(x * rate + _uniform(rng, count, 0, 2 * math.pi))  # (N, 1, size)
    texture = np.empty((count, y.shape[1], x.shape[2]), dtype=np.float32)
    for number, name in enumerate(TEXTURES):
        mine = np.flatnonzero(kind == number)
        if name == "plain":
            texture[mine] = 1
        elif name == "rows":
            texture[mine] = rows[mine]
        elif name == "columns":
            texture[mine] = columns[mine]
        elif name == "checks":
            texture[mine] = np.sign(rows[mine] * columns[mine])
        else:  # ripples around the centre of the shape
            u, v = x[mine], y[mine]
            texture[mine] = np.sin(np.sqrt(u * u + v * v) * rate[mine])
    return texture
