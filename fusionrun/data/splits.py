"""Who trains on what: a holdout for fusion, the rest for the experts; written down, reused."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionrun.common.atomic_files import write_atomically, write_json
from fusionrun.common.locks import locked
from fusionrun.data.errors import DataError, SplitError

__all__ = ["DataError", "SplitError", "Splits", "load_or_create_splits", "make_splits"]

Indices = npt.NDArray[np.int64]

FORMAT_VERSION = 1
KINDS = ("iid", "non_iid")
POOL_FILE = "expert_train_indices.npy"
HOLDOUT_FILE = "fusion_holdout_indices.npy"
META_FILE = "split_meta.json"


@dataclass(frozen=True)
class Splits:
    """Sorted indices into the training set."""

    expert_train: tuple[Indices, ...]  # per expert; never part of the holdout
    expert_val: tuple[Indices, ...]  # per expert: the part of fusion_val it is selected on
    fusion_train: Indices  # fusion_train and fusion_val together are the holdout
    fusion_val: Indices

    @property
    def everything(self) -> Indices:
        """What the experts or their fusion train on."""
        return np.unique(np.concatenate([*self.expert_train, self.fusion_train]))

    @property
    def hash(self) -> str:
        """sha256 of who trains and who is selected on what, in hex; of the numbers alone.

        The same for the same index sets, whatever integer type or byte order holds them, and from
        whichever folder or seed they came.
        """
        parts = {name: _hash(indices) for name, indices in _named(self).items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Arguments:
    """What the index sets follow from, beside the labels; recorded under the same names."""

    seed: int
    holdout_fraction: float
    val_fraction: float
    num_experts: int
    kind: str
    shared_fraction: float
    unique_fraction: float


def make_splits(
    labels: npt.NDArray[Any],
    *,
    seed: int,
    holdout_fraction: float = 0.2,
    val_fraction: float = 0.1,
    num_experts: int = 4,
    kind: str = "iid",
    shared_fraction: float = 0.4,
    unique_fraction: float = 0.15,
) -> Splits:
    """Split a training set with `labels` (N,) between the experts and their fusion.

    A random `holdout_fraction` of all samples is kept from the experts. Of the rest, the pool:
    - "iid": all experts share a random `shared_fraction`; each gets `unique_fraction` of its own
      (less where the pool is too small for that).
    - "non_iid": the classes are cut into `num_experts` consecutive ranges, as equal as possible;
      an expert gets every pool sample of its classes. Labels keep their global meaning.
    `val_fraction` of the holdout, stratified by class, selects models and is never trained on.

    Raises SplitError if the arguments leave some part empty or make no sense.
    """
    arguments = _Arguments(
        seed,
        holdout_fraction,
        val_fraction,
        num_experts,
        kind,
        shared_fraction,
        unique_fraction,
    )
    labels = _checked(labels, arguments)
    holdout, _ = _cut_holdout(len(labels), seed, holdout_fraction)
    return _derive(labels, holdout, arguments)


def load_or_create_splits(
    directory: str | Path,
    labels: npt.NDArray[Any],
    *,
    dataset_name: str,
    fingerprint: str,
    seed: int,
    holdout_fraction: float = 0.2,
    val_fraction: float = 0.1,
    num_experts: int = 4,
    kind: str = "iid",
    shared_fraction: float = 0.4,
    unique_fraction: float = 0.15,
) -> Splits:
    """As `make_splits`, but reuse what `directory` holds, or write it there.

    The folder gets the pool and the holdout as .npy files and a record of how everything follows
    from them. Any number of processes may call this at once. Stored files are verified, never
    overwritten. A lone fusion_holdout_indices.npy, as earlier systems left it, is adopted.

    Raises SplitError if the stored split is damaged, of other data or of other arguments.
    """
    arguments = _Arguments(
        seed,
        holdout_fraction,
        val_fraction,
        num_experts,
        kind,
        shared_fraction,
        unique_fraction,
    )
    labels = _checked(labels, arguments)
    directory = Path(directory).expanduser()
    with _directory_lock(directory):
        if (directory / META_FILE).exists():
            return _load(directory, labels, dataset_name, fingerprint, arguments)
        return _create(directory, labels, dataset_name, fingerprint, arguments)


@contextlib.contextmanager
def _directory_lock(directory: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(directory / ".splits.lock", waiting=lambda: None))
        except OSError as error:
            # a finished split may be read from a folder that we may not write
            if not (directory / META_FILE).is_file():
                raise SplitError(
                    f"{directory}: cannot be written ({error.strerror}). Expected a folder for "
                    "the split files; set data.splits_dir to a writable one."
                ) from error
        yield


# ---------------------------------------------------------------- what follows from the seed


def _checked(labels: npt.NDArray[Any], arguments: _Arguments) -> Indices:
    """Labels as int64, or SplitError if they or the arguments make no sense."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        raise SplitError(
            f"labels: found shape {labels.shape} of {labels.dtype}; expected one integer >= 0 "
            "per training sample."
        )
    for name in ("holdout_fraction", "val_fraction"):
        value = getattr(arguments, name)
        if not 0 < value < 1:
            raise SplitError(f"{name} is {value}; expected a number between 0 and 1, both excluded")
    for name in ("shared_fraction", "unique_fraction"):
        value = getattr(arguments, name)
        if not 0 <= value <= 1:
            raise SplitError(f"{name} is {value}; expected a number from 0 to 1")
    if arguments.num_experts < 1:
        raise SplitError(f"num_experts is {arguments.num_experts}; expected at least 1")
    if arguments.kind not in KINDS:
        raise SplitError(f"kind of split is {arguments.kind!r}; expected one of {list(KINDS)}")
    return labels.astype(np.int64)


def _cut_holdout(total: int, seed: int, fraction: float) -> tuple[Indices, Indices]:
    """(holdout, pool), sorted: the first `fraction` of a seeded permutation, and the rest."""
    order = np.random.default_rng(seed).permutation(total)
    size = round(fraction * total)
    return np.sort(order[:size]), np.sort(order[size:])


def _derive(labels: Indices, holdout: Indices, arguments: _Arguments) -> Splits:
    pool = np.setdiff1d(np.arange(len(labels)), holdout, assume_unique=True)
    fusion_val = _stratified(labels, holdout, arguments.val_fraction, arguments.seed)
    fusion_train = np.setdiff1d(holdout, fusion_val, assume_unique=True)
    if arguments.kind == "iid":
        expert_train = _iid(pool, arguments)
        expert_val = (fusion_val,) * arguments.num_experts
    else:
        groups = _class_ranges(labels, arguments.num_experts)
        expert_train = tuple(pool[np.isin(labels[pool], classes)] for classes in groups)
        expert_val = tuple(fusion_val[np.isin(labels[fusion_val], classes)] for classes in groups)
    splits = Splits(expert_train, expert_val, fusion_train, fusion_val)
    for name, indices in _named(splits).items():
        if not len(indices):
            raise SplitError(
                f"{name} would be empty: {len(labels)} training samples are too few for "
                f"{arguments}. Use more data, fewer experts or other fractions."
            )
    return splits


def _iid(pool: Indices, arguments: _Arguments) -> tuple[Indices, ...]:
    order = np.random.default_rng(arguments.seed).permutation(pool)
    shared = round(arguments.shared_fraction * len(pool))
    unique = min(
        round(arguments.unique_fraction * len(pool)),
        (len(pool) - shared) // arguments.num_experts,
    )
    own = order[shared:]
    return tuple(
        np.sort(np.concatenate([order[:shared], own[k * unique : (k + 1) * unique]]))
        for k in range(arguments.num_experts)
    )


def _class_ranges(labels: Indices, num_experts: int) -> list[Indices]:
    classes = np.arange(labels.max(initial=-1) + 1)
    if num_experts > len(classes):
        raise SplitError(
            f"num_experts is {num_experts} but there are only {len(classes)} classes to divide. "
            "Use fewer experts, or kind iid."
        )
    return np.array_split(classes, num_experts)


def _stratified(labels: Indices, holdout: Indices, fraction: float, seed: int) -> Indices:
    """A sorted random part of `holdout` that takes the same `fraction` of every class.

    Whole samples: rounded down per class, then the classes with the largest remainders get one
    more until the total fits. A class with two or more samples gives at least one and keeps one.
    """
    rng = np.random.default_rng(seed)
    by_class = {c: holdout[labels[holdout] == c] for c in np.unique(labels[holdout])}
    # equal remainders are served in random order, so that low class numbers gain nothing
    classes = rng.permutation(np.array(list(by_class), dtype=np.int64))
    counts = np.array([len(by_class[c]) for c in classes], dtype=np.int64)
    exact = counts * fraction
    take = np.floor(exact + 1e-9).astype(np.int64)
    missing = round(fraction * len(holdout)) - int(take.sum())
    take[np.argsort(take - exact, kind="stable")[: max(missing, 0)]] += 1
    take = np.clip(take, np.minimum(counts // 2, 1), np.maximum(counts - 1, 0))
    parts = [rng.permutation(by_class[c])[:n] for c, n in zip(classes, take, strict=True)]
    return np.sort(np.concatenate([*parts, holdout[:0]]))


# ---------------------------------------------------------------- what is stored


def _named(splits: Splits) -> dict[str, Indices]:
    experts = range(len(splits.expert_train))
    return {
        **{f"expert_{k}_train": splits.expert_train[k] for k in experts},
        **{f"expert_{k}_val": splits.expert_val[k] for k in experts},
        "fusion_train": splits.fusion_train,
        "fusion_val": splits.fusion_val,
    }


def _hash(indices: npt.NDArray[Any]) -> str:
    """Of the numbers, in their order, whatever integer type and byte order hold them."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def _create(
    directory: Path, labels: Indices, dataset_name: str, fingerprint: str, arguments: _Arguments
) -> Splits:
    total = len(labels)
    adopted = (directory / HOLDOUT_FILE).exists()
    if adopted:
        holdout = np.sort(_read_indices(directory / HOLDOUT_FILE, total))
        pool = np.setdiff1d(np.arange(total), holdout)
    else:
        holdout, pool = _cut_holdout(total, arguments.seed, arguments.holdout_fraction)
    if (directory / POOL_FILE).exists() and (
        not adopted or _hash(np.sort(_read_indices(directory / POOL_FILE, total))) != _hash(pool)
    ):
        raise SplitError(
            f"{directory / POOL_FILE}: found without {META_FILE}, and not the complement of "
            f"{HOLDOUT_FILE}. Delete this file to have it written anew, or point data.splits_dir "
            "to another folder."
        )
    splits = _derive(labels, holdout, arguments)
    sets = {"holdout": holdout, "pool": pool, **_named(splits)}
    meta = {
        "format_version": FORMAT_VERSION,
        "dataset": dataset_name,
        "fingerprint": fingerprint,
        "total": total,
        **vars(arguments),
        "holdout_source": "file" if adopted else "seed",
        "sizes": {name: len(indices) for name, indices in sets.items()},
        "sha256": {name: _hash(indices) for name, indices in sets.items()},
        "numpy": np.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        # in this order: a crash leaves a lone holdout, which the next start adopts
        if not adopted:
            write_atomically(directory / HOLDOUT_FILE, lambda file: np.save(file, holdout))
        if not (directory / POOL_FILE).exists():
            write_atomically(directory / POOL_FILE, lambda file: np.save(file, pool))
        write_json(directory / META_FILE, meta)
    except OSError as error:
        raise SplitError(
            f"{directory}: the split cannot be written ({error.strerror}). "
            "Set data.splits_dir to a writable folder with free space."
        ) from error
    return splits


def _load(
    directory: Path, labels: Indices, dataset_name: str, fingerprint: str, arguments: _Arguments
) -> Splits:
    meta = _read_meta(directory)
    expected = {
        "format_version": FORMAT_VERSION,
        "dataset": dataset_name,
        "fingerprint": fingerprint,
        "total": len(labels),
        **vars(arguments),
    }
    for field, value in expected.items():
        if meta.get(field) != value:
            raise _mismatch(directory / META_FILE, field, meta.get(field), value)
    sizes, hashes = meta.get("sizes"), meta.get("sha256")
    if not isinstance(sizes, dict) or not isinstance(hashes, dict):
        raise _mismatch(directory / META_FILE, "sha256 or sizes", "none", "one entry per set")
    holdout = np.sort(_read_indices(directory / HOLDOUT_FILE, len(labels)))
    pool = np.sort(_read_indices(directory / POOL_FILE, len(labels)))
    overlap = len(np.intersect1d(holdout, pool))
    if overlap:
        raise _mismatch(directory / POOL_FILE, "samples shared with the holdout", overlap, 0)
    for name, path, indices in (
        ("holdout", directory / HOLDOUT_FILE, holdout),
        ("pool", directory / POOL_FILE, pool),
    ):
        if len(indices) != sizes.get(name):
            raise _mismatch(path, "number of indices", len(indices), sizes.get(name))
        if _hash(indices) != hashes.get(name):
            raise _mismatch(path, "sha256", _hash(indices), hashes.get(name))
    splits = _derive(labels, holdout, arguments)
    for name, indices in _named(splits).items():
        if _hash(indices) != hashes.get(name):
            # the labels are covered by the fingerprint, so this is the record or numpy's generator
            raise _mismatch(
                directory / META_FILE,
                f"sha256.{name}",
                hashes.get(name),
                f"{_hash(indices)} (written with numpy {meta.get('numpy')}, "
                f"this is {np.__version__})",
            )
    return splits


def _mismatch(path: Path, field: str, found: object, expected: object) -> SplitError:
    return SplitError(
        f"{path}: {field} is {found!r}, expected {expected!r}. These splits belong to other data "
        f"or settings, or are damaged. Delete the folder {path.parent} to make new ones (experts "
        "trained on the old ones must then be trained again), or point data.splits_dir elsewhere."
    )


def _read_meta(directory: Path) -> dict[str, Any]:
    path = directory / META_FILE
    try:
        meta = json.loads(path.read_bytes())
    except OSError as error:
        raise _mismatch(path, "reading it", error.strerror, "a readable file") from error
    except ValueError as error:
        raise _mismatch(path, "content", str(error), "JSON") from error
    if not isinstance(meta, dict):
        raise _mismatch(path, "content", type(meta).__name__, "a JSON object")
    return meta


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
