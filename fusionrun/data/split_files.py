"""Splits written down and reused: two .npy files and a record of how all follows from them."""

import contextlib
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionrun.common.atomic_files import write_atomically, write_json
from fusionrun.common.locks import locked
from fusionrun.common.typed_fields import FieldError, plain, read_json, require
from fusionrun.data.errors import SplitError
from fusionrun.data.splits import (
    Indices,
    SplitRules,
    Splits,
    draw_holdout,
    hash_indices,
    hash_of_parts,
    make_splits,
)

FORMAT_VERSION = 1
POOL_FILE = "expert_train_indices.npy"
HOLDOUT_FILE = "fusion_holdout_indices.npy"
META_FILE = "split_meta.json"


@dataclass(frozen=True)
class SplitMeta:
    """What META_FILE says of the two others."""

    format_version: int
    dataset: str
    fingerprint: str  # of the data's content
    total: int  # training samples
    seed: int  # from here on: the SplitRules
    holdout_fraction: float
    val_fraction: float
    num_experts: int
    kind: str
    shared_fraction: float
    unique_fraction: float
    holdout_source: str  # "seed", or "file": adopted from an earlier system
    sizes: dict[str, int]  # of holdout, pool and every part that follows from them
    sha256: dict[str, str]  # of the same, see `hash_indices`
    numpy: str  # version whose generator drew them
    created: str

    def __post_init__(self) -> None:
        for name, found in (("sizes", self.sizes), ("sha256", self.sha256)):
            require({"holdout", "pool"} <= found.keys(), name, found, "one entry a set of indices")


@dataclass(frozen=True)
class StoredSplit:
    """What identifies the split in a folder."""

    fingerprint: str  # of the data's content
    hash: str  # as `Splits.hash`


def stored_split(directory: Path) -> StoredSplit | None:
    """By the folder's record alone, no index is read; None where there is none that can be read."""
    try:
        meta = read_json(directory / META_FILE, SplitMeta)
    except (OSError, FieldError):
        return None
    parts = {name: h for name, h in meta.sha256.items() if name not in ("holdout", "pool")}
    return StoredSplit(meta.fingerprint, hash_of_parts(parts))


def load_or_create_splits(
    directory: str | Path,
    labels: npt.NDArray[Any],
    rules: SplitRules,
    *,
    dataset_name: str,
    fingerprint: str,
) -> Splits:
    """As `make_splits`, but reuse what `directory` holds, or write it there.

    The folder gets the pool and the holdout as .npy files and a record of how everything follows
    from them. Any number of processes may call this at once. Stored files are verified, never
    overwritten. A lone fusion_holdout_indices.npy, as earlier systems left it, is adopted.

    Raises SplitError if the stored split is damaged, of other data or of other rules.
    """
    directory = Path(directory).expanduser()
    expected = {
        "format_version": FORMAT_VERSION,
        "dataset": dataset_name,
        "fingerprint": fingerprint,
        "total": len(labels),
        **vars(rules),
    }
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(directory / ".splits.lock"))
        except OSError as error:
            # a finished split may be read from a folder that we may not write
            if not (directory / META_FILE).is_file():
                raise SplitError(
                    f"{directory}: cannot be written ({error.strerror}). Expected a folder for "
                    "the split files; set data.splits_dir to a writable one."
                ) from error
        if (directory / META_FILE).exists():
            return _load(directory, labels, rules, expected)
        return _create(directory, labels, rules, expected)


def copy_split_files(source: Path, target: Path) -> None:
    """What of the split is stored in the folder `source`, to the empty folder `target`."""
    for name in (META_FILE, HOLDOUT_FILE, POOL_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _create(
    directory: Path, labels: npt.NDArray[Any], rules: SplitRules, expected: dict[str, Any]
) -> Splits:
    total = len(labels)
    adopted = (directory / HOLDOUT_FILE).exists()
    if adopted:
        holdout = np.sort(_read_indices(directory / HOLDOUT_FILE, total))
    else:
        holdout = draw_holdout(total, rules)
    pool = np.setdiff1d(np.arange(total), holdout)
    if (directory / POOL_FILE).exists() and (
        not adopted
        or not np.array_equal(np.sort(_read_indices(directory / POOL_FILE, total)), pool)
    ):
        raise SplitError(
            f"{directory / POOL_FILE}: found without {META_FILE}, and not the complement of "
            f"{HOLDOUT_FILE}. Move this file away to have it written again, or set data.splits_dir "
            "to another folder."
        )
    splits = make_splits(labels, rules, holdout)
    sets = {"holdout": holdout, "pool": pool, **splits.parts}
    meta = SplitMeta(
        **expected,
        holdout_source="file" if adopted else "seed",
        sizes={name: len(indices) for name, indices in sets.items()},
        sha256={name: hash_indices(indices) for name, indices in sets.items()},
        numpy=np.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        # in this order: a crash leaves a lone holdout, which the next start adopts
        if not adopted:
            write_atomically(directory / HOLDOUT_FILE, lambda file: np.save(file, holdout))
        if not (directory / POOL_FILE).exists():
            write_atomically(directory / POOL_FILE, lambda file: np.save(file, pool))
        write_json(directory / META_FILE, plain(meta))
    except OSError as error:
        raise SplitError(
            f"{directory}: the split cannot be written ({error.strerror}). "
            "Set data.splits_dir to a writable folder with free space."
        ) from error
    return splits


def _load(
    directory: Path, labels: npt.NDArray[Any], rules: SplitRules, expected: dict[str, Any]
) -> Splits:
    path = directory / META_FILE
    try:
        meta = read_json(path, SplitMeta)
    except OSError as error:
        raise _unfit(path, f"cannot be read ({error.strerror})") from error
    except FieldError as error:
        raise _unfit(path, str(error)) from None
    for field, value in expected.items():
        if getattr(meta, field) != value:
            raise _mismatch(path, field, getattr(meta, field), value)
    holdout = np.sort(_read_indices(directory / HOLDOUT_FILE, len(labels)))
    pool = np.sort(_read_indices(directory / POOL_FILE, len(labels)))
    overlap = len(np.intersect1d(holdout, pool))
    if overlap:
        raise _mismatch(directory / POOL_FILE, "samples shared with the holdout", overlap, 0)
    for name, file, indices in (("holdout", HOLDOUT_FILE, holdout), ("pool", POOL_FILE, pool)):
        if len(indices) != meta.sizes.get(name):
            raise _mismatch(
                directory / file, "number of indices", len(indices), meta.sizes.get(name)
            )
        if hash_indices(indices) != meta.sha256.get(name):
            raise _mismatch(
                directory / file, "sha256", hash_indices(indices), meta.sha256.get(name)
            )
    splits = make_splits(labels, rules, holdout)
    for name, indices in splits.parts.items():
        if hash_indices(indices) != meta.sha256.get(name):
            # the labels are covered by the fingerprint, so this is the record or numpy's generator
            raise _mismatch(
                path,
                f"sha256.{name}",
                meta.sha256.get(name),
                f"{hash_indices(indices)} (written with numpy {meta.numpy}, "
                f"this is {np.__version__})",
            )
    return splits


def _mismatch(path: Path, field: str, found: object, expected: object) -> SplitError:
    return _unfit(path, f"{field} is {found!r}, expected {expected!r}")


def _unfit(path: Path, problem: str) -> SplitError:
    return SplitError(
        f"{path}: {problem}. These splits belong to other data or settings, or are damaged. Use "
        "what they were made with, or set data.splits_dir to another folder, where new ones are "
        "made (experts trained on the old ones must then be trained again)."
    )


def _read_indices(path: Path, total: int) -> Indices:
    """One stored set: unique integers in 0..total-1, in any order."""
    try:
        indices = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _mismatch(path, "content", str(error), "an .npy file of indices") from error
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype.kind not in "iu":
        found = f"{getattr(indices, 'dtype', '?')} {getattr(indices, 'shape', '?')}"
        raise _mismatch(path, "array", found, "integers, one dimension")
    if not len(indices):
        raise _mismatch(path, "number of indices", 0, "at least 1")
    if indices.min() < 0 or indices.max() >= total:
        limits = f"{indices.min()}..{indices.max()}"
        raise _mismatch(path, "range of indices", limits, f"0..{total - 1}")
    if len(np.unique(indices)) != len(indices):
        repeated = len(indices) - len(np.unique(indices))
        raise _mismatch(path, "number of repeated indices", repeated, 0)
    return indices.astype(np.int64)
