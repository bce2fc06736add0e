"""Any images sorted into folders: <root>/train/<class>/*, <root>/test/<class>/*."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusionrun.common.text import plural
from fusionrun.data.datasets.cache import (
    Arrays,
    channel_statistics,
    content_fingerprint,
    load_or_build,
)
from fusionrun.data.datasets.decode import decode_images
from fusionrun.data.datasets.request import Request
from fusionrun.data.errors import DataError

LAYOUT = "<root>/train/<class>/<image files> and <root>/test/<class>/<image files>"
NAMED_FILES = 5  # skipped files that are named in the notes


@dataclass(frozen=True)
class _File:
    path: Path
    label: int


def load_image_folder(request: Request) -> Arrays:
    """Images of any size, resized to cover `image_size` squared and cropped at the centre.

    Each regular file directly inside a class folder is tried, except those whose name starts with
    a dot. Files that cannot be decoded (damaged, empty, no image, too large) are skipped,
    counted and named in the notes; files that cannot be *read* raise DataError, as do a missing
    train or test folder, differing class folders and classes without a usable image.
    """
    if request.image_size < 1:
        raise DataError(f"image_folder: image_size is {request.image_size}; expected at least 1.")
    classes = _classes(request.root)
    listing = hashlib.sha256(f"{request.image_size}".encode())
    files = {part: _list(request.root / part, classes, listing) for part in ("train", "test")}
    # the resolved root is part of the folder's name, so that sets can share one cache_dir
    place = hashlib.sha256(str(request.root.resolve()).encode()).hexdigest()[:12]
    return load_or_build(
        request.cache_dir / f"image_folder-{place}-{request.image_size}",
        listing.hexdigest(),
        lambda: _build(request.root, classes, files, request.image_size, request.progress),
        name="image_folder",
        progress=request.progress,
    )


def _classes(root: Path) -> tuple[str, ...]:
    names: dict[str, set[str]] = {}
    for part in ("train", "test"):
        try:
            with os.scandir(root / part) as entries:
                folders = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
        except OSError as error:
            raise DataError(
                f"{root / part}: cannot be listed ({error.strerror}). Expected {LAYOUT}. "
                "Set data.root to the folder that holds train and test."
            ) from error
        names[part] = folders
    if names["train"] != names["test"]:
        only_train = sorted(names["train"] - names["test"])[:NAMED_FILES]
        only_test = sorted(names["test"] - names["train"])[:NAMED_FILES]
        raise DataError(
            f"{root}: train and test hold different class folders (only in train: {only_train}; "
            f"only in test: {only_test}). Expected {LAYOUT} with the same classes; add or remove "
            "the folders named."
        )
    if len(names["train"]) < 2:
        raise DataError(
            f"{root / 'train'}: found {len(names['train'])} class folder(s), expected at least 2. "
            f"Sort the images as {LAYOUT}."
        )
    return tuple(sorted(names["train"]))


def _list(folder: Path, classes: tuple[str, ...], listing: Any) -> list[_File]:
    """The files of one part in a fixed order; `listing` hashes their names, sizes and times."""
    files = []
    for label, name in enumerate(classes):
        try:
            with os.scandir(folder / name) as entries:
                # stat, once per file, is what makes this the slow part on network disks
                found = sorted(
                    (entry.name, entry.stat())
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_file()
                )
        except OSError as error:
            raise DataError(
                f"{folder / name}: cannot be listed ({error.strerror}). Check its permissions."
            ) from error
        for file, status in found:
            row = f"{folder.name}/{name}/{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
            listing.update(row.encode("utf-8", "surrogateescape"))
            files.append(_File(folder / name / file, label))
    return files


def _build(
    root: Path,
    classes: tuple[str, ...],
    files: dict[str, list[_File]],
    size: int,
    progress: Callable[[str], None],
) -> Arrays:
    everything = files["train"] + files["test"]
    images, reasons = decode_images([file.path for file in everything], size, progress)
    labels = np.array([file.label for file in everything], dtype=np.int64)
    usable = np.array([reason is None for reason in reasons], dtype=bool)
    is_train = np.arange(len(everything)) < len(files["train"])
    for part, mask in (("train", is_train), ("test", ~is_train)):
        counts = np.bincount(labels[usable & mask], minlength=len(classes))
        empty = [classes[label] for label in np.flatnonzero(counts == 0)]
        if empty:
            raise DataError(
                f"{root / part / empty[0]}: holds no usable image ({len(empty)} of {len(classes)} "
                f"classes of {part} are empty). Expected {LAYOUT}, images directly inside the "
                "class folder. Add images or remove the class from train and test."
            )
    # where nothing was skipped, slices avoid a second copy of everything
    split = len(files["train"])
    whole = bool(usable.all())
    train_images = images[:split] if whole else images[usable & is_train]
    test_images = images[split:] if whole else images[usable & ~is_train]
    train_labels, test_labels = labels[usable & is_train], labels[usable & ~is_train]
    mean, std = channel_statistics(train_images)
    skipped = [
        f"{file.path.relative_to(root)} ({reason})"
        for file, reason in zip(everything, reasons, strict=True)
        if reason is not None
    ]
    named = ", ".join(skipped[:NAMED_FILES])
    more = f", and {len(skipped) - NAMED_FILES} more" if len(skipped) > NAMED_FILES else ""
    return Arrays(
        train_images,
        train_labels,
        test_images,
        test_labels,
        classes,
        mean,
        std,
        content_fingerprint(train_labels, train_images, test_labels, test_images),
        (f"{plural(len(skipped), 'file')} skipped: {named}{more}",) if skipped else (),
    )
