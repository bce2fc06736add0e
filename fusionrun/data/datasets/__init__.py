"""Load a data set by name; everything ends as uint8 tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusionrun.common.plugins import failure_of, is_plugin, load_plugin
from fusionrun.common.text import nearest
from fusionrun.data.datasets import cifar, image_folder, synthetic
from fusionrun.data.datasets.cache import Arrays, channel_statistics, content_fingerprint
from fusionrun.data.datasets.request import Request, say_nothing
from fusionrun.data.datasets.subset import require_enough, take_subset
from fusionrun.data.datasets.survey import Survey
from fusionrun.data.errors import DataError

__all__ = [
    "DATASETS",
    "Arrays",
    "DataError",
    "Dataset",
    "Request",
    "Survey",
    "as_arrays",
    "load_dataset",
    "survey_dataset",
]

DATASETS: dict[str, Callable[[Request], Arrays]] = {
    "cifar100": cifar.load_cifar100,
    "cifar10": cifar.load_cifar10,
    "image_folder": image_folder.load_image_folder,
    "synthetic": synthetic.load_synthetic,
}
# the same names: what is known before loading
SURVEYS: dict[str, Callable[[Request], Survey]] = {
    "cifar100": cifar.survey_cifar100,
    "cifar10": cifar.survey_cifar10,
    "image_folder": image_folder.survey_image_folder,
    "synthetic": synthetic.survey_synthetic,
}


@dataclass(frozen=True)
class Dataset:
    """A data set in host memory; tensors of file-based sets are shared between processes."""

    name: str
    train_images: Tensor  # (N, 3, H, W) uint8
    train_labels: Tensor  # (N,) int64
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of the pixels in 0..1, per channel
    std: tuple[float, float, float]
    fingerprint: str  # hex digits that identify the content; splits remember them
    notes: tuple[str, ...]  # what the reader of a report should know, e.g. skipped files


def load_dataset(
    name: str,
    *,
    root: str | Path,
    cache_dir: str | Path | None = None,
    download: bool = False,
    image_size: int = 32,
    num_classes: int = 20,
    train_images: int | None = None,
    test_images: int | None = None,
    seed: int = 42,
    train_folder: str = "train",
    test_folder: str = "test",
    value_range: tuple[float, float] | None = None,
    progress: Callable[[str], None] = say_nothing,
) -> Dataset:
    """Load the data set `name` of DATASETS, or FILE.py:NAME, a function of a Request.

    `root` holds the source files. Sets read from files are prepared once in `cache_dir` (default
    `<root>/.fusionrun_cache`) and shared by every process that loads them. `train_images` and
    `test_images` say how many to use: None is all (of "synthetic": 4000 and 1000), otherwise a
    subset drawn with `seed`, stratified by class. `num_classes` means something to "synthetic"
    only, `train_folder` and `test_folder`, below `root`, to "image_folder"; so does
    `value_range`, the values that are black and white in images deeper than 8 bits.

    Raises DataError for an unknown name, and for files that are missing, damaged or unwritable.
    """
    request = _request(
        root=root,
        cache_dir=cache_dir,
        download=download,
        image_size=image_size,
        num_classes=num_classes,
        train_images=train_images,
        test_images=test_images,
        seed=seed,
        train_folder=train_folder,
        test_folder=test_folder,
        value_range=value_range,
        progress=progress,
    )
    arrays = _load(name, request)
    if name != "synthetic":  # which is drawn in the size that is wanted
        arrays = take_subset(arrays, train_images, test_images, seed)
    return Dataset(
        name=name,
        train_images=torch.from_numpy(arrays.train_images),
        train_labels=torch.from_numpy(arrays.train_labels),
        test_images=torch.from_numpy(arrays.test_images),
        test_labels=torch.from_numpy(arrays.test_labels),
        classes=arrays.classes,
        mean=arrays.mean,
        std=arrays.std,
        fingerprint=arrays.fingerprint,
        notes=arrays.notes,
    )


def _load(name: str, request: Request) -> Arrays:
    try:
        arrays = find_loader(name)(request)
    except MemoryError as error:
        raise DataError(
            f"{name}: loading it took more memory than this process may have ({error}). Use a "
            "smaller data.image_size or fewer images, or raise the limit (ulimit -v)."
        ) from error
    except Exception as error:
        if not is_plugin(name) or isinstance(error, DataError):
            raise
        raise DataError(f"data set {name!r}: {failure_of(error)}") from None
    if not isinstance(arrays, Arrays):
        kind = type(arrays).__name__
        raise DataError(f"data set {name!r}: found {kind}, expected what as_arrays returns")
    _require_differences(name, arrays.train_images)
    return arrays


def _require_differences(name: str, images: npt.NDArray[np.uint8]) -> None:
    """Raise DataError when all images are one and the same, of which nothing can be learned."""
    if any((image != images[0]).any() for image in images[1:]):  # mostly the first one is
        return
    if len(images) > 1:
        low, high = int(images[0].min()), int(images[0].max())
        pixels = f"every pixel is {low}" if low == high else f"pixels from {low} to {high}"
        raise DataError(
            f"{name}: all {len(images):,} training images are the same one ({pixels} of 255), so "
            "nothing can be learned from them. Look at the files; where theirs are deeper than 8 "
            "bits, data.range says which values are black and white."
        )


def survey_dataset(name: str, **arguments: Any) -> Survey:
    """What `load_dataset` with these arguments will load, in seconds: nothing is decoded.

    Raises DataError for what loading would stumble over later, as far as it shows: files missing,
    sorted otherwise or half fetched, sizes out of range, too little memory or disk.
    """
    find_loader(name)
    survey = SURVEYS.get(name)
    if survey is None:
        return Survey(name)
    request = _request(**arguments)
    found = replace(survey(request), cache_dir=request.cache_dir)
    train, test = arguments.get("train_images"), arguments.get("test_images")
    if name == "synthetic" or (train is None and test is None):
        return found
    require_enough("data.train_images", train, found.train_images)
    require_enough("data.test_images", test, found.test_images)
    return replace(
        found,
        train_images=found.train_images if train is None else train,
        test_images=found.test_images if test is None else test,
        shared=False,  # what is taken of the images is a copy
        fingerprint=None,
    )


def _request(
    root: str | Path,
    cache_dir: str | Path | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    **others: Any,
) -> Request:
    root = Path(root).expanduser()
    return Request(
        root=root,
        cache_dir=Path(cache_dir).expanduser() if cache_dir else root / ".fusionrun_cache",
        train_images=4000 if train_images is None else train_images,
        test_images=1000 if test_images is None else test_images,
        **others,
    )


def find_loader(name: str) -> Callable[[Request], Arrays]:
    """What loads the data set `name`, of DATASETS or of a plug-in. Raises DataError."""
    if is_plugin(name):
        try:
            found = load_plugin(name)
        except ValueError as error:
            raise DataError(f"data set {error}") from None
        if not callable(found):
            raise DataError(f"data set {name!r} is {found!r}, expected a function of a Request")
        return found
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; {nearest(name, DATASETS)}")
    return DATASETS[name]


def as_arrays(
    train_images: npt.NDArray[np.uint8],
    train_labels: npt.NDArray[np.int64],
    test_images: npt.NDArray[np.uint8],
    test_labels: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> Arrays:
    """A data set of a plug-in: images (N, 3, H, W) uint8, labels (N,) int64 from 0 to C - 1.

    Statistics and fingerprint are computed here. Raises DataError for other shapes or values.
    """
    sides = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    for side, (images, labels) in sides.items():
        found = f"{side} images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}"
        if (
            images.dtype != np.uint8
            or images.shape != (len(labels), *train_images.shape[1:])
            or train_images.shape[1:2] != (3,)
            or images.ndim != 4
            or labels.dtype != np.int64
            or not len(labels)
        ):
            raise DataError(f"found {found}; expected (N, 3, H, W) uint8 and (N,) int64")
        if labels.min() < 0 or labels.max() >= len(classes):
            span = f"{labels.min()} to {labels.max()}"
            raise DataError(f"{side} labels: found {span}, expected 0 to {len(classes) - 1}")
    mean, std = channel_statistics(train_images)
    arrays = (train_images, train_labels, test_images, test_labels)
    return Arrays(*arrays, tuple(classes), mean, std, content_fingerprint(*arrays))
