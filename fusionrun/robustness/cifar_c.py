"""CIFAR-10-C and CIFAR-100-C as published: the test set, corrupted and stored as .npy files.

They come from their authors (Hendrycks and Dietterich 2019) and are never fetched. A folder holds
<corruption>.npy, uint8 (50000, 32, 32, 3), severity 1 first and 10,000 images of each, in the
order of the test set, and labels.npy (50000,).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusionrun.data.errors import DataError
from fusionrun.robustness.corruptions import CORRUPTIONS, SEVERITIES

IMAGES = 10_000  # of each severity
SHAPE = (len(SEVERITIES) * IMAGES, 32, 32, 3)
ADVICE = "Unpack the published archive there again, or move the folder away to go without it."


@dataclass(frozen=True)
class CorruptedImages:
    """The test set in one state."""

    name: str  # one of CORRUPTIONS
    severity: int  # 1 to 5
    images: Tensor  # (10000, 3, 32, 32) uint8
    labels: Tensor  # (10000,) int64


def corrupted_names(folder: Path) -> tuple[str, ...]:
    """The corruptions that have a file in `folder`; none where there is no such folder.

    In the order of CORRUPTIONS; other files, such as the four extra corruptions, don't count.
    Raises DataError for a folder that can't be read.
    """
    try:
        present = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}). {ADVICE}") from error
    return tuple(name for name in CORRUPTIONS if f"{name}.npy" in present)


def read_corrupted(folder: Path, num_classes: int) -> Iterator[CorruptedImages]:
    """Every corruption in `folder` at severity 1 to 5; files are mapped and read as they are used.

    All files are checked before the first images. Raises DataError for labels that don't fit
    `num_classes` and for damaged or missing files.
    """
    files = {name: _open(folder / f"{name}.npy") for name in corrupted_names(folder)}
    for name, array in files.items():
        if array.shape != SHAPE or array.dtype != np.uint8:
            found = f"{array.shape} {array.dtype}"
            raise DataError(f"{folder / name}.npy: holds {found}; expected {SHAPE} uint8. {ADVICE}")
    if not files:
        return
    labels = _labels(folder / "labels.npy", num_classes)
    for name, array in files.items():
        for severity in SEVERITIES:
            part = array[(severity - 1) * IMAGES : severity * IMAGES]
            images = torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2)))
            yield CorruptedImages(name, severity, images, labels)


def _labels(path: Path, num_classes: int) -> Tensor:
    labels = _open(path)
    if labels.shape != SHAPE[:1] or labels.dtype.kind not in "iu":
        found = f"{labels.shape} {labels.dtype}"
        raise DataError(f"{path}: holds {found}; expected {SHAPE[:1]} of integers. {ADVICE}")
    each = np.array(labels, dtype=np.int64).reshape(len(SEVERITIES), IMAGES)
    if (each != each[0]).any():
        raise DataError(
            f"{path}: severities have different labels; expected the same {IMAGES} five times. "
            f"{ADVICE}"
        )
    # all classes are in the test set, so CIFAR-10-C can't pass for CIFAR-100-C either
    present = np.unique(each[0])
    if not np.array_equal(present, np.arange(num_classes)):
        raise DataError(
            f"{path}: holds {len(present)} classes, {present[0]} to {present[-1]}; expected "
            f"{num_classes}, 0 to {num_classes - 1}. Is this the folder of another data set?"
        )
    return torch.from_numpy(each[0])


def _open(path: Path) -> npt.NDArray[Any]:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read as .npy ({reason}). {ADVICE}") from error
