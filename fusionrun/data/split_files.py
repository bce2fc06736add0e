"""Splits written down and reused: two .npy files and a record of how all follows from them."""

import contextlib
import json
import re
import shutil
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionrun.common.atomic_files import write_atomically, write_json
from fusionrun.common.locks import locked
from fusionrun.common.typed_fields import FieldError, plain, read_json, require
from fusionrun.data.errors import SplitError
from fusionrun.data.index_files import mismatch, read_indices, unfit
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
# names of files that may say who trains on what, as anybody calls them
LIKE_A_SPLIT = re.compile(
    r"(?!\.)(.*hold.?out.*|expert_train.*"
    r"|(.*[^a-z])?(splits?|idx|index|indices|train|val|valid|validation|test|pool)([^a-z].*)?"
    r"\.(npy|npz|txt|json|csv|pkl))",
    re.IGNORECASE,
)
OWN_META_FILE = "split_meta.fusionrun.json"  # where an earlier system has that name


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
    adopted: str  # of which files, in words; "": it was drawn


def record_file(directory: Path) -> Path:
    """Our record of the split in a folder, whether it's there or not.

    An earlier system's preparation leaves a record called the same, which stays as it is.
    """
    path = directory / META_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none, or a damaged one
        return path
    ours = not isinstance(tree, dict) or not tree.keys().isdisjoint(("format_version", "sha256"))
    return path if ours else directory / OWN_META_FILE


def stored_split(directory: Path) -> StoredSplit | None:
    """By the folder's record alone, no index is read; None where there is none that can be read."""
    try:
        meta = read_json(record_file(directory), SplitMeta)
    except (OSError, FieldError):
        return None
    parts = {name: h for name, h in meta.sha256.items() if name not in ("holdout", "pool")}
    adopted = ""
    if meta.holdout_source == "file":
        adopted = (
            f"{directory}: fusion has the {meta.sizes['holdout']} training images of "
            f"{HOLDOUT_FILE}, which was there; the experts have the other {meta.sizes['pool']}"
        )
    return StoredSplit(meta.fingerprint, hash_of_parts(parts), adopted)


def load_splits(
    directory: str | Path,
    labels: npt.NDArray[Any],
    rules: SplitRules,
    *,
    dataset_name: str,
    fingerprint: str,
) -> Splits:
    """As `make_splits`, from what `directory` holds; nothing is written there, no lock either.

    Raises SplitError if there is none, and as `load_or_create_splits`.
    """
    expected = _expected(labels, rules, dataset_name, fingerprint)
    return _load(Path(directory), labels, rules, expected)


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
    overwritten. The holdout that an earlier system left is adopted.

    Raises SplitError if the stored split is damaged, of other data or of other rules.
    """
    directory = Path(directory)
    expected = _expected(labels, rules, dataset_name, fingerprint)
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(directory / ".splits.lock"))
        except OSError as error:
            # a finished split may be read from a folder that we may not write
            if not record_file(directory).is_file():
                raise SplitError(
                    f"{directory}: cannot be written ({error.strerror}). Expected a folder for "
                    "the split files; set data.splits_dir to a writable one."
                ) from error
        if record_file(directory).exists():
            return _load(directory, labels, rules, expected)
        return _create(directory, labels, rules, expected)


def copy_split_files(source: Path, target: Path) -> None:
    """What of the split is stored in the folder `source`, to the empty folder `target`."""
    for path in [source / META_FILE, source / OWN_META_FILE, *_brought(source)]:
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _brought(directory: Path) -> list[Path]:
    """Files that hold a part of a split, or look so; what a crash left doesn't."""
    there = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in there if LIKE_A_SPLIT.fullmatch(path.name) and path.is_file()]


def _expected(
    labels: npt.NDArray[Any], rules: SplitRules, dataset_name: str, fingerprint: str
) -> dict[str, Any]:
    """What the record says if the split is the one wanted."""
    return {
        "format_version": FORMAT_VERSION,
        "dataset": _plain_name(dataset_name),
        "fingerprint": fingerprint,
        "total": len(labels),
        **vars(rules),
    }


def _plain_name(dataset: str) -> str:
    """A plug-in's without its file, which may lie elsewhere by now; the fingerprint tells more."""
    return dataset.rpartition(":")[2]


def _create(
    directory: Path, labels: npt.NDArray[Any], rules: SplitRules, expected: dict[str, Any]
) -> Splits:
    total = len(labels)
    adopted = (directory / HOLDOUT_FILE).exists()
    if adopted:
        _require_size(directory / META_FILE, total)
        holdout = np.sort(read_indices(directory / HOLDOUT_FILE, total))
        if len(holdout) == total:
            raise mismatch(directory / HOLDOUT_FILE, "number of indices", total, f"below {total}")
    else:
        _require_nothing_else(directory)
        holdout = draw_holdout(total, rules)
    pool = np.setdiff1d(np.arange(total), holdout)
    if (directory / POOL_FILE).exists():
        _require_complement(directory / POOL_FILE, pool, holdout, total)
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
        write_json(record_file(directory), plain(meta))
    except OSError as error:
        raise SplitError(
            f"{directory}: the split cannot be written ({error.strerror}). "
            "Set data.splits_dir to a writable folder with free space."
        ) from error
    return splits


def _require_size(record: Path, total: int) -> None:
    """Raise SplitError where an earlier system's record names another number of images."""
    try:
        tree = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    for name in ("total_len", "total", "num_samples", "n_samples"):
        found = tree.get(name, total) if isinstance(tree, dict) else total
        if isinstance(found, int) and found != total:
            raise mismatch(record, name, found, total)


def _require_nothing_else(directory: Path) -> None:
    """Raise SplitError where a split is drawn anew although somebody seems to have brought one."""
    below = next(directory.glob(f"*/{HOLDOUT_FILE}"), None)
    if below is not None:
        raise SplitError(
            f"{directory}: found no {HOLDOUT_FILE}, which lies below it: set "
            f"data.splits_dir={below.parent}, or another folder, where a new one is drawn."
        )
    found = _brought(directory)
    if not found:
        return
    how = f"np.save({HOLDOUT_FILE!r}, indices) makes that of a list of them"
    if found[0].name == POOL_FILE:
        how = f"np.save({HOLDOUT_FILE!r}, np.setdiff1d(np.arange(N), pool)) makes it of the pool"
    raise SplitError(
        f"{found[0]}: found without {HOLDOUT_FILE}, by which a split is adopted. {how}; or set "
        "data.splits_dir to another folder, where a new one is drawn."
    )


def _require_complement(path: Path, pool: Indices, holdout: Indices, total: int) -> None:
    """Raise SplitError unless the file's indices are `pool`, which is all but the holdout."""
    found = read_indices(path, total)
    shared = len(np.intersect1d(found, holdout))
    if shared:
        raise mismatch(path, "samples shared with the holdout", shared, 0)
    if len(found) != len(pool):
        raise SplitError(
            f"{path}: not the complement of {HOLDOUT_FILE}: it has {len(found)} of the other "
            f"{len(pool)} images. Experts divide all of those; without this file in the folder "
            "they are adopted."
        )


def require_fitting_split(
    directory: Path,
    rules: SplitRules,
    *,
    dataset_name: str,
    at_most: int | None,
    fingerprint: str | None,
) -> bool:
    """Whether `directory` holds a split, as far as shows before the data is loaded.

    The training set has `at_most` images; None: it's not known yet, as with the fingerprint.
    Raises SplitError as `load_or_create_splits`.
    """
    record = record_file(directory)
    if not record.exists():
        if not (directory / HOLDOUT_FILE).exists():
            _require_nothing_else(directory)
        elif at_most is not None:
            read_indices(directory / HOLDOUT_FILE, at_most)
        return False
    known = {} if fingerprint is None else {"fingerprint": fingerprint}
    about = {"format_version": FORMAT_VERSION, "dataset": _plain_name(dataset_name)}
    meta, _ = _stored(directory, {**about, **known, **vars(rules)})
    if at_most is not None and meta.total > at_most:
        raise mismatch(record, "total", meta.total, at_most)
    return True


def _stored(directory: Path, expected: dict[str, Any]) -> tuple[SplitMeta, Indices]:
    """The record in `directory`, if it says what is `expected`, and the holdout."""
    path = record_file(directory)
    try:
        meta = read_json(path, SplitMeta)
    except OSError as error:
        raise unfit(path, f"cannot be read ({error.strerror})") from error
    except FieldError as error:
        raise unfit(path, str(error)) from None
    found = {**vars(meta), "dataset": _plain_name(meta.dataset)}
    for field, value in expected.items():
        if found[field] != value:
            problem = mismatch(path, field, found[field], value)
            keeps = f" To keep the holdout, copy {HOLDOUT_FILE} alone into that folder."
            is_rule = field in {rule.name for rule in fields(SplitRules)}
            raise SplitError(f"{problem}{keeps}") if is_rule else problem
    holdout = np.sort(read_indices(directory / HOLDOUT_FILE, meta.total))
    pool = np.sort(read_indices(directory / POOL_FILE, meta.total))
    overlap = len(np.intersect1d(holdout, pool))
    if overlap:
        raise mismatch(directory / POOL_FILE, "samples shared with the holdout", overlap, 0)
    for name, file, indices in (("holdout", HOLDOUT_FILE, holdout), ("pool", POOL_FILE, pool)):
        if len(indices) != meta.sizes.get(name):
            raise mismatch(
                directory / file, "number of indices", len(indices), meta.sizes.get(name)
            )
        if hash_indices(indices) != meta.sha256.get(name):
            raise mismatch(directory / file, "sha256", hash_indices(indices), meta.sha256.get(name))
    return meta, holdout


def _load(
    directory: Path, labels: npt.NDArray[Any], rules: SplitRules, expected: dict[str, Any]
) -> Splits:
    meta, holdout = _stored(directory, expected)
    splits = make_splits(labels, rules, holdout)
    for name, indices in splits.parts.items():
        if hash_indices(indices) != meta.sha256.get(name):
            # the labels are covered by the fingerprint, so this is the record or numpy's generator
            raise mismatch(
                record_file(directory),
                f"sha256.{name}",
                meta.sha256.get(name),
                f"{hash_indices(indices)} (written with numpy {meta.numpy}, "
                f"this is {np.__version__})",
            )
    return splits
