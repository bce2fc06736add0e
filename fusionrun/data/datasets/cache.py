"""File-based data sets are prepared once, by one process, as .npy files all others map."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionrun.common.locks import locked
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.data.errors import DataError

FORMAT_VERSION = 1
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class CacheMeta:
    """meta.json: what the arrays beside it are."""

    format_version: int
    source_key: str
    shapes: dict[str, list[int]]  # of ARRAYS
    classes: tuple[Any, ...]  # text, but folders' names may hold characters that no recipe may
    mean: Triple
    std: Triple
    fingerprint: str
    notes: tuple[Any, ...]  # as classes


@dataclass(frozen=True)
class Arrays:
    """A data set on the host: images (N, 3, H, W) uint8, labels (N,) int64."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    mean: Triple
    std: Triple
    fingerprint: str
    notes: tuple[str, ...] = ()


class ImageFile:
    """An .npy file of images (N, 3, size, size) uint8 whose N shows only when all are written.

    Used as a context; whatever it holds lies on disk when that ends. Raises OSError.
    """

    HEADER_BYTES = 128  # what numpy's take, whatever N is

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size, self._count = path, size, 0

    def __enter__(self) -> "ImageFile":
        self._file = self._path.open("wb")
        self._file.write(bytes(self.HEADER_BYTES))
        return self

    def append(self, images: npt.NDArray[np.uint8]) -> None:
        """Write images (M, 3, size, size) behind the others."""
        self._file.write(np.ascontiguousarray(images).data)
        self._count += len(images)

    def __exit__(self, *_: object) -> None:
        with self._file:
            shape = (self._count, 3, self._size, self._size)
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            if len(header.getvalue()) != self.HEADER_BYTES:
                raise ValueError(f"a header of numpy's took {len(header.getvalue())} bytes")
            self._file.seek(0)
            self._file.write(header.getvalue())
            self._file.flush()
            os.fsync(self._file.fileno())

    def mapped(self) -> npt.NDArray[np.uint8]:
        """All images, read from the disk as they are used."""
        found: npt.NDArray[np.uint8] = np.load(self._path, mmap_mode="r")
        return found


def content_fingerprint(*arrays: npt.NDArray[Any]) -> str:
    """16 hex digits that change with any byte or shape of the arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def channel_statistics(images: npt.NDArray[np.uint8]) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel of uint8 images (N, 3, H, W), as pixels in 0..1.

    Exact sums over a histogram. A constant channel gets a deviation of one grey level, so that
    normalising never divides by zero.
    """
    histogram = np.zeros((3, 256), dtype=np.int64)
    step = max(1, 2**21 // images[0, 0].size)  # bincount widens to int64: bound the memory
    for start in range(0, len(images), step):
        block = images[start : start + step]
        for channel in range(3):
            histogram[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255.0
    weights = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return (
        (float(mean[0]), float(mean[1]), float(mean[2])),
        (float(std[0]), float(std[1]), float(std[2])),
    )


def load_or_build(
    folder: Path,
    source_key: str,
    build: Callable[[Path], Arrays],
    *,
    name: str,
    progress: Callable[[str], None],
) -> Arrays:
    """The cached data set at `folder`, built first if it is absent, damaged or of another source.

    `source_key` identifies what the cache was made from. `build` is given the folder where its
    arrays may be written already, by their names and ".npy". One process builds, under an exclusive
    lock; the others wait and then map the same pages. A build is written beside `folder` and
    renamed, so a killed one leaves no half cache. Raises DataError where nothing can be written.
    """
    lock = folder.parent / f".{folder.name}.lock"

    def waiting() -> None:
        progress(f"{name}: waiting for another process to prepare the data")

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, shared=True, waiting=waiting):
            ready, _ = _open(folder, source_key)
    except OSError as error:
        # somebody else's finished cache is as good as ours, even where we may not write
        ready, _ = _open(folder, source_key)
        if ready is None:
            raise _cannot_write(folder.parent, error) from error
    if ready is not None:
        return ready
    with locked(lock, waiting=waiting):
        ready, reason = _open(folder, source_key)
        if ready is not None:
            return ready
        progress(f"{name}: building {folder} ({reason})")
        try:
            _build_beside(folder, source_key, build)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise _too_large(folder) from error
            raise _cannot_write(folder.parent, error) from error
        ready, reason = _open(folder, source_key)
    if ready is None:
        raise DataError(f"{folder}: the cache just written cannot be read back ({reason}).")
    return ready


def ready_arrays(folder: Path, source_key: str) -> Arrays | None:
    """What `load_or_build` has only to map; None where it must build first."""
    return _open(folder, source_key)[0]


def _too_large(folder: Path) -> DataError:
    return DataError(
        f"{folder}: the prepared images don't fit into the memory that this process may have. Use "
        "a smaller data.image_size, or raise its limit (ulimit -v)."
    )


def _cannot_write(cache_dir: Path, error: OSError) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DataError(
        f"{cache_dir}: the prepared images cannot be written here ({error.strerror or error}). "
        f"Expected a writable folder{' with more free space' if full else ''}. "
        "Set data.cache_dir to one."
    )


def _open(folder: Path, source_key: str) -> tuple[Arrays | None, str]:
    """The cache mapped into memory, or None and why it cannot be used."""
    try:
        meta = read_json(folder / "meta.json", CacheMeta)
        if meta.format_version != FORMAT_VERSION:
            return None, f"made by another version, format {meta.format_version}"
        if meta.source_key != source_key:
            return None, "the source files have changed"
        # mode "c" is copy-on-write: ranks of a machine share the pages, and torch sees a
        # writable array (it warns about read-only ones)
        images = {
            key: np.load(folder / f"{key}.npy", mmap_mode="c" if "images" in key else None)
            for key in ARRAYS
        }
        if any(list(images[key].shape) != meta.shapes.get(key) for key in ARRAYS):
            return None, "the stored arrays have other shapes than recorded"
        return Arrays(
            **images,
            classes=meta.classes,
            mean=meta.mean,
            std=meta.std,
            fingerprint=meta.fingerprint,
            notes=meta.notes,
        ), ""
    except FileNotFoundError:
        return None, "there is none yet"
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise _too_large(folder) from error
        return None, f"the present one is damaged: {error}"


def _build_beside(folder: Path, source_key: str, build: Callable[[Path], Arrays]) -> None:
    """Build beside `folder`, then rename; the caller holds the exclusive lock."""
    prefix = f".{folder.name}.part-"
    for leftover in folder.parent.glob(f"{prefix}*"):  # of killed builds
        shutil.rmtree(leftover, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        part.chmod(0o755)
        arrays = build(part)
        for key in ARRAYS:
            if (part / f"{key}.npy").exists():
                continue
            with (part / f"{key}.npy").open("wb") as file:
                np.save(file, getattr(arrays, key))
                file.flush()
                os.fsync(file.fileno())
        meta = CacheMeta(
            format_version=FORMAT_VERSION,
            source_key=source_key,
            shapes={key: list(getattr(arrays, key).shape) for key in ARRAYS},
            classes=arrays.classes,
            mean=arrays.mean,
            std=arrays.std,
            fingerprint=arrays.fingerprint,
            notes=arrays.notes,
        )
        (part / "meta.json").write_text(json.dumps(plain(meta), indent=1))
        # Readers hold the shared lock while they open files, and mapped files outlive their name.
        outdated = part.with_name(part.name + "-outdated")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(outdated)
        part.rename(folder)
        shutil.rmtree(outdated, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
