"""Parts of a data set, stratified by class."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fusionrun.data.datasets.cache import Arrays
from fusionrun.data.errors import DataError


def take_subset(arrays: Arrays, train: int | None, test: int | None, seed: int) -> Arrays:
    """At most `train` and `test` images of the set; None: all of them.

    The fingerprint tells subsets apart. Raises DataError when the set has fewer images.
    """
    if train is None and test is None:
        return arrays
    train_part = stratified_subset(arrays.train_labels, train, seed, "data.train_images")
    test_part = stratified_subset(arrays.test_labels, test, seed, "data.test_images")
    return replace(
        arrays,
        train_images=arrays.train_images[train_part],
        train_labels=arrays.train_labels[train_part],
        test_images=arrays.test_images[test_part],
        test_labels=arrays.test_labels[test_part],
        fingerprint=f"{arrays.fingerprint}-{len(train_part)}-{len(test_part)}-{seed}",
    )


def require_enough(name: str, wanted: int | None, there: int | None) -> None:
    """Raise DataError where the field `name` wants more images than there are; None: unknown."""
    if wanted is not None and there is not None and wanted > there:
        raise DataError(f"{name} is {wanted}, but the data set has {there} such images")


def stratified_subset(
    labels: npt.NDArray[np.int64], count: int | None, seed: int, name: str
) -> npt.NDArray[np.int64]:
    """`count` sorted indices, as many of each class as possible, drawn with `seed`."""
    if count is None:
        return np.arange(len(labels))
    require_enough(name, count, len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    turns = np.empty(len(labels), dtype=np.int64)  # a sample's turn within its own class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turns[members] = np.arange(len(members))
    # first everybody's first sample, then everybody's second, ...
    chosen = order[np.argsort(turns[order], kind="stable")][:count]
    return np.sort(chosen)


def proportional_subset(
    labels: npt.NDArray[np.int64], members: npt.NDArray[np.int64], fraction: float, seed: int
) -> npt.NDArray[np.int64]:
    """A sorted random part of `members` that takes the same `fraction` of every class.

    Whole samples: rounded down per class, then the classes with the largest remainders get one
    more until the total fits. A class with two or more samples gives at least one and keeps one.
    """
    rng = np.random.default_rng(seed)
    by_class = {c: members[labels[members] == c] for c in np.unique(labels[members])}
    # equal remainders are served in random order, so that low class numbers gain nothing
    classes = rng.permutation(np.array(list(by_class), dtype=np.int64))
    counts = np.array([len(by_class[c]) for c in classes], dtype=np.int64)
    exact = counts * fraction
    take = np.floor(exact + 1e-9).astype(np.int64)
    missing = round(fraction * len(members)) - int(take.sum())
    take[np.argsort(take - exact, kind="stable")[: max(missing, 0)]] += 1
    take = np.clip(take, np.minimum(counts // 2, 1), np.maximum(counts - 1, 0))
    parts = [rng.permutation(by_class[c])[:n] for c, n in zip(classes, take, strict=True)]
    return np.sort(np.concatenate([*parts, members[:0]]))
