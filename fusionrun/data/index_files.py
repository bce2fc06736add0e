"""Lists of training images in .npy files: ours, and those that people bring."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionrun.data.errors import SplitError
from fusionrun.data.splits import Indices


def unfit(path: Path, problem: str) -> SplitError:
    """Why the file can't be used. It may hold what nothing makes again: it is never to go."""
    return SplitError(
        f"{path}: {problem}. These splits belong to other data or settings, or are damaged. Use "
        "what they were made with, or set data.splits_dir to another folder, where new ones are "
        "made (experts trained on the old ones must then be trained again)."
    )


def mismatch(path: Path, field: str, found: object, expected: object) -> SplitError:
    return unfit(path, f"{field} is {found!r}, expected {expected!r}")


def read_indices(path: Path, total: int) -> Indices:
    """One stored set: unique integers in 0..total-1, in any order; nothing is unpickled.

    Raises SplitError, which says how to save what was found as indices.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(loaded, np.ndarray):
        raise _convertible(path, *_of_archive(path))
    hint = _of_array(loaded)
    if hint is not None:
        raise _convertible(path, f"{loaded.dtype} {loaded.shape}", hint)
    if not len(loaded):
        raise mismatch(path, "number of indices", 0, "at least 1")
    if loaded.min() < 0 or loaded.max() >= total:
        limits = f"{loaded.min()}..{loaded.max()}"
        if loaded.min() >= 1 and loaded.max() == total:
            raise _convertible(path, f"{limits}, as if the first image were 1", "indices - 1")
        raise mismatch(path, "range of indices", limits, f"0..{total - 1}")
    if len(np.unique(loaded)) != len(loaded):
        repeated = len(loaded) - len(np.unique(loaded))
        raise mismatch(path, "number of repeated indices", repeated, 0)
    return loaded.astype(np.int64)


def _convertible(path: Path, found: str, how: str) -> SplitError:
    expected = "integers, one dimension, the first image being 0"
    return unfit(path, f"array is {found}, expected {expected}: np.save({path.name!r}, {how})")


def _of_array(array: npt.NDArray[Any]) -> str | None:
    """How to make indices of it; None: it is indices."""
    flat = "" if array.ndim == 1 else ".ravel()"
    if array.dtype.kind == "b":
        return f"np.flatnonzero(mask{flat})"
    if array.dtype.kind in "iu":
        return f"indices{flat}" if flat else None
    return f"indices{flat}.astype(np.int64)"


def _of_archive(path: Path) -> tuple[str, str]:
    """(what it is, how to make indices of it) of a file that numpy takes for an .npz."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return "a tensor saved by torch", "torch.load(...).numpy()"
    arrays = [name.removesuffix(".npy") for name in names]
    return f"an .npz archive of {', '.join(arrays)[:80]}", f"np.load(...)[{arrays[0]!r}]"


def _unreadable(path: Path, error: Exception) -> SplitError:
    if isinstance(error, OSError):
        return mismatch(path, "content", error.strerror or str(error), "an .npy file of indices")
    with path.open("rb") as file:
        begin = file.read(64)
    if begin.startswith(b"\x93NUMPY") and "bject" in str(error):
        found = "content is Python objects, which are never unpickled, expected integers"
        return unfit(path, f"{found}: np.save({path.name!r}, np.concatenate(...).astype(np.int64))")
    if begin and all(byte in b"0123456789-+.eE,;[] \t\r\n" for byte in begin):
        is_list = begin.lstrip().startswith(b"[")
        how = "json.load(...)" if is_list else "np.loadtxt(..., dtype=np.int64)"
        return _convertible(path, "text", how)
    return mismatch(path, "content", str(error), "an .npy file of indices")
