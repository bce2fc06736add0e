"""Any images sorted into folders: <root>/train/<class>/*, <root>/test/<class>/*."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusionrun.common.text import printable_path
from fusionrun.data.datasets.bit_depth import require_deep, require_known_range
from fusionrun.data.datasets.cache import (
    Arrays,
    ImageFile,
    channel_statistics,
    content_fingerprint,
    load_or_build,
    ready_arrays,
)
from fusionrun.data.datasets.decode import Decoded, decode_images
from fusionrun.data.datasets.folder_layout import LAYOUT
from fusionrun.data.datasets.folder_listing import Listing, Part, list_folders
from fusionrun.data.datasets.folder_notes import decoding_notes
from fusionrun.data.datasets.request import Request
from fusionrun.data.datasets.survey import Survey, image_bytes, require_disk, require_memory
from fusionrun.data.errors import DataError

LOOKED_INTO = 16  # files of each side whose depth is looked at before all are decoded


def load_image_folder(request: Request) -> Arrays:
    """Images of any size, resized to cover `image_size` squared and cropped at the centre.

    Each regular file in a class folder or below it is tried, as folder_listing.py says. Files that
    cannot be decoded (damaged, empty, no image, too large) are skipped, counted and named in the
    notes; files that cannot be *read* raise DataError, as do a missing train or test folder,
    differing class folders, classes without a usable image and too little memory or disk.
    """
    listing = _list(request)

    def build(folder: Path) -> Arrays:
        require_disk("image_folder", _bytes(listing, request), request.cache_dir)
        require_known_range(_sample(listing), request.value_range)
        return _build(listing, request, folder)

    arrays = load_or_build(
        _cache_folder(request),
        listing.key,
        build,
        name="image_folder",
        progress=request.progress,
    )
    # the classes of a cache that an older version made may hold what is no text
    return replace(arrays, classes=listing.classes, notes=(*listing.notes, *arrays.notes))


def survey_image_folder(request: Request) -> Survey:
    """From the listing. Raises DataError for what is wrong with it, and for lack of room."""
    listing = _list(request)
    ready = ready_arrays(_cache_folder(request), listing.key)
    need = _bytes(listing, request)
    if ready is None:
        require_disk("image_folder", need, request.cache_dir)
        require_known_range(_sample(listing), request.value_range)
    return Survey(
        "image_folder",
        len(listing.train.paths),
        len(listing.test.paths),
        classes=listing.classes,
        image_size=request.image_size,
        ready=ready is not None,
        fingerprint=None if ready is None else ready.fingerprint,
        cache_bytes=0 if ready else need,
        notes=listing.notes,
    )


def _list(request: Request) -> Listing:
    """What lies there, if it fits into memory."""
    if request.image_size < 1:
        raise DataError(f"image_folder: image_size is {request.image_size}; expected at least 1.")
    sides = request.train_folder, request.test_folder
    listing = list_folders(request.root, *sides, request.image_size)
    count = len(listing.train.paths) + len(listing.test.paths)
    require_memory("image_folder", count, request.image_size)
    return listing


def _bytes(listing: Listing, request: Request) -> int:
    count = len(listing.train.paths) + len(listing.test.paths)
    return image_bytes(count, request.image_size)


def _sample(listing: Listing) -> list[str]:
    """Some files from everywhere, to be looked into before all are."""
    paths: list[str] = []
    for part in (listing.train, listing.test):
        every = max(1, len(part.paths) // LOOKED_INTO)
        paths += [f"{part.folder}/{path}" for path in part.paths[::every]]
    return paths


def _cache_folder(request: Request) -> Path:
    """The resolved root is part of its name, so that sets can share one cache_dir."""
    place = str(request.root.resolve())
    sides = request.train_folder, request.test_folder
    if sides != ("train", "test"):
        place += "\0".join(("", *sides))
    if request.value_range is not None:
        place += f"\0{request.value_range}"
    digits = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
    return request.cache_dir / f"image_folder-{digits}-{request.image_size}"


def _build(listing: Listing, request: Request, folder: Path) -> Arrays:
    """Decode everything straight into the files of the cache that is made in `folder`."""
    parts, size = (listing.train, listing.test), request.image_size
    paths = [f"{part.folder}/{path}" for part in parts for path in part.paths]
    split = len(listing.train.paths)
    found: list[Decoded] = []
    with (
        ImageFile(folder / "train_images.npy", size) as train_file,
        ImageFile(folder / "test_images.npy", size) as test_file,
    ):
        for block, results in decode_images(paths, size, request.progress, request.value_range):
            to_train = sum(not each.skipped for each in results[: max(0, split - len(found))])
            train_file.append(block[:to_train])
            test_file.append(block[to_train:])
            found += results
    usable = np.array([not each.skipped for each in found])
    train_labels, test_labels = (
        listing.train.labels[usable[:split]],
        listing.test.labels[usable[split:]],
    )
    for part, labels in zip(parts, (train_labels, test_labels), strict=True):
        _require_every_class(part, listing.classes, labels)
    require_deep(paths, [each.deepest for each in found])
    train_images, test_images = train_file.mapped(), test_file.mapped()
    mean, std = channel_statistics(train_images)
    return Arrays(
        train_images,
        train_labels,
        test_images,
        test_labels,
        listing.classes,
        mean,
        std,
        content_fingerprint(train_labels, train_images, test_labels, test_images),
        decoding_notes(listing, found, request.value_range),
    )


def _require_every_class(
    part: Part, classes: tuple[str, ...], labels: npt.NDArray[np.int64]
) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    empty = [classes[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(
            f"{printable_path(part.folder / empty[0])}: holds no usable image ({len(empty)} of "
            f"{len(classes)} classes of {part.folder.name} are empty). Expected {LAYOUT}. Add "
            f"images or remove the class from train and test."
        )
