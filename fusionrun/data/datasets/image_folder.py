"""Any images sorted into folders: <root>/train/<class>/*, <root>/test/<class>/*."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fusionrun.common.text import plural, printable_path
from fusionrun.data.datasets.cache import (
    Arrays,
    channel_statistics,
    content_fingerprint,
    is_ready,
    load_or_build,
)
from fusionrun.data.datasets.decode import decode_images
from fusionrun.data.datasets.folder_layout import LAYOUT
from fusionrun.data.datasets.folder_listing import NAMED, Listing, list_folders
from fusionrun.data.datasets.request import Request
from fusionrun.data.datasets.survey import Survey, image_bytes, require_disk, require_memory
from fusionrun.data.errors import DataError


def load_image_folder(request: Request) -> Arrays:
    """Images of any size, resized to cover `image_size` squared and cropped at the centre.

    Each regular file in a class folder or below it is tried, as folder_listing.py says. Files that
    cannot be decoded (damaged, empty, no image, too large) are skipped, counted and named in the
    notes; files that cannot be *read* raise DataError, as do a missing train or test folder,
    differing class folders, classes without a usable image and too little memory or disk.
    """
    listing = _list(request)

    def build() -> Arrays:
        require_disk("image_folder", _bytes(listing, request), request.cache_dir)
        return _build(listing, request.image_size, request.progress)

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
    ready = is_ready(_cache_folder(request), listing.key)
    need = _bytes(listing, request)
    if not ready:
        require_disk("image_folder", need, request.cache_dir)
    return Survey(
        "image_folder",
        len(listing.train.paths),
        len(listing.test.paths),
        classes=listing.classes,
        image_size=request.image_size,
        ready=ready,
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


def _cache_folder(request: Request) -> Path:
    """The resolved root is part of its name, so that sets can share one cache_dir."""
    place = str(request.root.resolve())
    sides = request.train_folder, request.test_folder
    if sides != ("train", "test"):
        place += "\0".join(("", *sides))
    digits = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
    return request.cache_dir / f"image_folder-{digits}-{request.image_size}"


def _build(listing: Listing, size: int, progress: Callable[[str], None]) -> Arrays:
    parts = (listing.train, listing.test)
    paths = [part.folder / path for part in parts for path in part.paths]
    images, reasons = decode_images(paths, size, progress)
    labels = np.concatenate([part.labels for part in parts])
    usable = np.array([reason is None for reason in reasons], dtype=bool)
    is_train = np.arange(len(paths)) < len(listing.train.paths)
    for part, mask in zip(parts, (is_train, ~is_train), strict=True):
        counts = np.bincount(labels[usable & mask], minlength=len(listing.classes))
        empty = [listing.classes[label] for label in np.flatnonzero(counts == 0)]
        if empty:
            raise DataError(
                f"{printable_path(part.folder / empty[0])}: holds no usable image ({len(empty)} of "
                f"{len(listing.classes)} classes of {part.folder.name} are empty). Expected "
                f"{LAYOUT}. Add images or remove the class from train and test."
            )
    # where nothing was skipped, slices avoid a second copy of everything
    split = len(listing.train.paths)
    whole = bool(usable.all())
    train_images = images[:split] if whole else images[usable & is_train]
    test_images = images[split:] if whole else images[usable & ~is_train]
    train_labels, test_labels = labels[usable & is_train], labels[usable & ~is_train]
    mean, std = channel_statistics(train_images)
    skipped = [
        f"{printable_path(path.relative_to(listing.train.folder.parent))} ({reason})"
        for path, reason in zip(paths, reasons, strict=True)
        if reason is not None
    ]
    named = ", ".join(skipped[:NAMED])
    more = f", and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return Arrays(
        train_images,
        train_labels,
        test_images,
        test_labels,
        listing.classes,
        mean,
        std,
        content_fingerprint(train_labels, train_images, test_labels, test_images),
        (f"{plural(len(skipped), 'file')} skipped: {named}{more}",) if skipped else (),
    )
