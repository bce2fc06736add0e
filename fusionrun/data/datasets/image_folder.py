"""Any images sorted into folders: <root>/train/<class>/*, <root>/test/<class>/*."""

import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionrun.data.datasets.cache import (
    Arrays,
    channel_statistics,
    content_fingerprint,
    load_or_build,
)
from fusionrun.data.datasets.request import Request
from fusionrun.data.errors import DataError

LAYOUT = "<root>/train/<class>/<image files> and <root>/test/<class>/<image files>"
MAX_PIXELS = 1 << 26  # 67 megapixels: larger ones are skipped, decoding them could exhaust memory
NAMED_FILES = 5  # skipped files that are named in the notes
CHUNK = 128  # files per task of the thread pool


@dataclass(frozen=True)
class _File:
    path: Path
    label: int


def load_image_folder(request: Request) -> Arrays:
    """Images of any size, resized to cover `image_size` squared and cropped at the centre.

    Each regular file directly inside a class folder is tried, except those whose name starts with
    a dot. Files that cannot be decoded (damaged, empty, no image, above MAX_PIXELS) are skipped,
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
    names = {part: _class_folders(root / part) for part in ("train", "test")}
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


def _class_folders(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}). Expected {LAYOUT}. "
            "Set data.root to the folder that holds train and test."
        ) from error


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
    return Arrays(
        train_images,
        train_labels,
        test_images,
        test_labels,
        classes,
        mean,
        std,
        content_fingerprint(train_labels, train_images, test_labels, test_images),
        _notes(root, everything, reasons),
    )


def _notes(root: Path, files: list[_File], reasons: list[str | None]) -> tuple[str, ...]:
    skipped = [
        f"{file.path.relative_to(root)} ({reason})"
        for file, reason in zip(files, reasons, strict=True)
        if reason is not None
    ]
    if not skipped:
        return ()
    more = f", and {len(skipped) - NAMED_FILES} more" if len(skipped) > NAMED_FILES else ""
    named = ", ".join(skipped[:NAMED_FILES])
    plural = "" if len(skipped) == 1 else "s"
    return (f"{len(skipped)} file{plural} skipped: {named}{more}",)


def decode_images(
    paths: list[Path], size: int, progress: Callable[[str], None]
) -> tuple[npt.NDArray[np.uint8], list[str | None]]:
    """Decode into one array (N, 3, size, size); per file None, or why it was skipped.

    Raises DataError for a file that can't be read at all.
    """
    from PIL import Image

    images = np.zeros((len(paths), 3, size, size), dtype=np.uint8)
    starts = range(0, len(paths), CHUNK)

    def decode_chunk(start: int) -> list[str | None]:
        block = enumerate(paths[start : start + CHUNK], start)
        return [_decode(path, size, images[index]) for index, path in block]

    reasons: list[str | None] = []
    said = time.monotonic()
    # PIL releases the GIL while it decodes and resizes, so threads are enough
    with warnings.catch_warnings(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # odd metadata; the pixels are what counts
        for chunk in pool.map(decode_chunk, starts):
            reasons += chunk
            if time.monotonic() - said > 2 or len(reasons) == len(paths):
                progress(f"image_folder: {len(reasons)}/{len(paths)} images")
                said = time.monotonic()
    return images, reasons


def _decode(path: Path, size: int, out: npt.NDArray[np.uint8]) -> str | None:
    """Write the image as RGB into `out` (3, size, size), or return why it is skipped."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        content = path.read_bytes()
    except OSError as error:  # a disk or permission problem must not shrink the data set silently
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Check the disk and the permissions."
        ) from error
    if not content:
        return "empty"
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width}x{image.height} is too large"
            # lets JPEG decode at a fraction of its size where that still covers `size`
            image.draft("RGB", (2 * size, 2 * size))
            rgb = _to_rgb(ImageOps.exif_transpose(image))
            # fit = resize to cover, then crop the centre, in one resampling
            square = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
            out[:] = np.asarray(square).transpose(2, 0, 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "too large"
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # decoders of damaged files raise anything, struct.error included
        return f"damaged: {error}"
    return None


def _to_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
