"""Out-of-distribution images, of none of a study's classes: is a model less sure of them?

Built-in sets follow from a seed; a folder of the user's own images is read as it is.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusionrun.common.seeds import derive_seed
from fusionrun.data.datasets import load_dataset
from fusionrun.data.datasets.decode import decode_images
from fusionrun.data.errors import DataError
from fusionrun.robustness.counter_rng import CounterRNG, plasma

LAYOUT = "image files directly in it, in folders directly inside it, or both"
SHAPES_CLASSES = 25  # of the synthetic data set: every shape with every texture
SHAPES_SIZE = 16  # pixels a side; below, it can't be drawn
CLOUD_DECAY = 2.0  # of the plasma: between fog and smoke
CHUNK = 256  # images at a time


@dataclass(frozen=True)
class OODImages:
    """Images of none of the study's classes."""

    name: str
    about: str  # what they are, for people
    images: Tensor  # (M, 3, S, S) uint8


def built_in_sets(data_name: str, count: int, size: int, seed: int) -> list[OODImages]:
    """`count` images of each built-in set that is OOD for the data set called `data_name`."""
    return [
        OODImages(name, about, draw(count, size, derive_seed(seed, name)))
        for name, (about, draw) in BUILT_IN.items()
        if name != "shapes" or (data_name != "synthetic" and size >= SHAPES_SIZE)
    ]


def read_ood_images(
    folder: Path,
    count: int,
    size: int,
    seed: int,
    progress: Callable[[str], None] = lambda message: None,
    value_range: tuple[float, float] | None = None,
) -> OODImages:
    """Images in `folder` or in folders directly inside it, of more than `count` a seeded choice.

    Resized to cover `size` squared and cropped at the centre, as a data set from a folder is. Files
    that can't be decoded are skipped and counted. Raises DataError where nothing is left, and for
    files that can't be read.
    """
    paths = _files(folder)
    if len(paths) > count:
        chosen = np.random.default_rng(seed).choice(len(paths), count, replace=False)
        paths = [paths[i] for i in sorted(chosen)]
    blocks = [block for block, _ in decode_images(paths, size, progress, value_range)]
    images = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.uint8)
    if not len(images):
        found = f"{len(paths)} files, none of them an image" if paths else "no file"
        raise DataError(f"{folder}: found {found}; expected {LAYOUT}")
    skipped = len(paths) - len(images)
    about = f"images of {folder}" + (f" ({skipped} other files skipped)" if skipped else "")
    return OODImages(folder.resolve().name, about, torch.from_numpy(images))


def _files(folder: Path) -> list[Path]:
    """Sorted; names that begin with a dot aside."""
    found = []
    try:
        for entry in _visible(folder):
            if entry.is_dir():
                found += [Path(file.path) for file in _visible(entry.path) if file.is_file()]
            elif entry.is_file():
                found.append(Path(entry.path))
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be listed ({error.strerror}); expected {LAYOUT}"
        ) from error
    return sorted(found)


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def uniform_noise(count: int, size: int, seed: int) -> Tensor:
    """(count, 3, size, size) uint8, as all built-in sets are."""
    values = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(values)


def clouds(count: int, size: int, seed: int) -> Tensor:
    """Plasma fractals, each channel its own."""
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    cpu = torch.device("cpu")
    whole = 1 << (size - 1).bit_length()  # plasma is drawn in powers of two
    for start in range(0, count, CHUNK):
        rng = CounterRNG(seed, start, min(CHUNK, count - start), cpu)
        for channel in range(3):
            cloud = plasma(rng, whole, CLOUD_DECAY, f"clouds {channel}")[:, :size, :size]
            images[start : start + CHUNK, channel] = (cloud * 255).round().to(torch.uint8)
    return images


def shapes(count: int, size: int, seed: int) -> Tensor:
    """Every shape with every texture of the package's synthetic data set."""
    data = load_dataset(
        "synthetic",
        root=".",
        image_size=size,
        num_classes=SHAPES_CLASSES,
        train_images=SHAPES_CLASSES,
        test_images=max(count, SHAPES_CLASSES),
        seed=seed,
    )
    return data.test_images[:count]


# name -> (what they are, how `count` of them are drawn from a seed)
BUILT_IN: dict[str, tuple[str, Callable[[int, int, int], Tensor]]] = {
    "uniform_noise": ("every value of every pixel drawn evenly from 0 to 255", uniform_noise),
    "clouds": ("smooth random clouds (plasma fractals) in each colour channel", clouds),
    "shapes": ("textured shapes on a plain background, fusionrun's synthetic images", shapes),
}
