"""Who trains on what: a holdout for fusion, the rest for the experts. Pure, no I/O."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionrun.data.datasets.subset import proportional_subset
from fusionrun.data.errors import DataError, SplitError

__all__ = ["DataError", "SplitError", "SplitRules", "Splits", "hash_indices", "make_splits"]

Indices = npt.NDArray[np.int64]

KINDS = ("iid", "non_iid")


@dataclass(frozen=True)
class SplitRules:
    """What the index sets follow from, beside the labels. Raises SplitError where it can't be."""

    seed: int
    holdout_fraction: float = 0.2
    val_fraction: float = 0.1
    num_experts: int = 4
    kind: str = "iid"
    shared_fraction: float = 0.4
    unique_fraction: float = 0.15

    def __post_init__(self) -> None:
        for name in ("holdout_fraction", "val_fraction"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise SplitError(
                    f"{name} is {value}; expected a number between 0 and 1, both excluded"
                )
        for name in ("shared_fraction", "unique_fraction"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SplitError(f"{name} is {value}; expected a number from 0 to 1")
        if self.num_experts < 1:
            raise SplitError(f"num_experts is {self.num_experts}; expected at least 1")
        if self.kind not in KINDS:
            raise SplitError(f"kind of split is {self.kind!r}; expected one of {list(KINDS)}")


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
    def parts(self) -> dict[str, Indices]:
        """Every index set under the name that files and messages have for it."""
        experts = range(len(self.expert_train))
        return {
            **{f"expert_{k}_train": self.expert_train[k] for k in experts},
            **{f"expert_{k}_val": self.expert_val[k] for k in experts},
            "fusion_train": self.fusion_train,
            "fusion_val": self.fusion_val,
        }

    @property
    def hash(self) -> str:
        """sha256 of who trains and who is selected on what, in hex; of the numbers alone.

        The same for the same index sets, whatever integer type or byte order holds them, and from
        whichever folder or seed they came.
        """
        return hash_of_parts({name: hash_indices(part) for name, part in self.parts.items()})


def hash_of_parts(hashes: Mapping[str, str]) -> str:
    """sha256 of a split whose parts have these hashes: (name: `hash_indices`)."""
    return hashlib.sha256(json.dumps(dict(hashes), sort_keys=True).encode()).hexdigest()


def hash_indices(indices: npt.NDArray[Any]) -> str:
    """sha256 of the numbers, in their order, whatever integer type and byte order hold them."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def make_splits(
    labels: npt.NDArray[Any], rules: SplitRules, holdout: Indices | None = None
) -> Splits:
    """Split a training set with `labels` (N,) between the experts and their fusion.

    A random part of all samples, the holdout, is kept from the experts; `holdout`, sorted, says
    which, else `draw_holdout`. Of the rest, the pool:
    - "iid": all experts share a random `shared_fraction`; each gets `unique_fraction` of its own
      (less where the pool is too small for that).
    - "non_iid": the classes are cut into `num_experts` consecutive ranges, as equal as possible;
      an expert gets every pool sample of its classes. Labels keep their global meaning.
    `val_fraction` of the holdout, stratified by class, selects models and is never trained on.

    Raises SplitError if the rules leave some part empty or the labels make no sense.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        raise SplitError(
            f"labels: found shape {labels.shape} of {labels.dtype}; expected one integer >= 0 "
            "per training sample."
        )
    if holdout is None:
        holdout = draw_holdout(len(labels), rules)
    pool = np.setdiff1d(np.arange(len(labels)), holdout, assume_unique=True)
    fusion_val = proportional_subset(labels, holdout, rules.val_fraction, rules.seed)
    fusion_train = np.setdiff1d(holdout, fusion_val, assume_unique=True)
    if rules.kind == "iid":
        expert_train = _iid(pool, rules)
        expert_val = (fusion_val,) * rules.num_experts
    else:
        classes = np.arange(labels.max(initial=-1) + 1)
        if rules.num_experts > len(classes):
            raise SplitError(
                f"num_experts is {rules.num_experts} but there are only {len(classes)} classes to "
                "divide. Use fewer experts, or kind iid."
            )
        ranges = [class_range(len(classes), k, rules.num_experts) for k in range(rules.num_experts)]
        expert_train = tuple(pool[np.isin(labels[pool], own)] for own in ranges)
        expert_val = tuple(fusion_val[np.isin(labels[fusion_val], own)] for own in ranges)
    splits = Splits(expert_train, expert_val, fusion_train, fusion_val)
    for name, indices in splits.parts.items():
        if not len(indices):
            raise SplitError(
                f"{name} would be empty: {len(labels)} training samples are too few for "
                f"{rules}. Use more data, fewer experts or other fractions."
            )
    return splits


def class_range(num_classes: int, k: int, num_experts: int) -> range:
    """The classes of expert `k` where each has its own, as equal in number as possible."""
    least, more = divmod(num_classes, num_experts)
    first = k * least + min(k, more)
    return range(first, first + least + (k < more))


def draw_holdout(total: int, rules: SplitRules) -> Indices:
    """Sorted: the first `holdout_fraction` of a seeded permutation."""
    order = np.random.default_rng(rules.seed).permutation(total)
    return np.sort(order[: round(rules.holdout_fraction * total)])


def _iid(pool: Indices, rules: SplitRules) -> tuple[Indices, ...]:
    order = np.random.default_rng(rules.seed).permutation(pool)
    shared = round(rules.shared_fraction * len(pool))
    unique = min(
        round(rules.unique_fraction * len(pool)), (len(pool) - shared) // rules.num_experts
    )
    own = order[shared:]
    return tuple(
        np.sort(np.concatenate([order[:shared], own[k * unique : (k + 1) * unique]]))
        for k in range(rules.num_experts)
    )
