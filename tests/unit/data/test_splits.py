"""Split facts by counting."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from fusionrun.data.splits import SplitError, SplitRules, Splits, make_splits


def labels_of(total=1000, classes=10, seed=3):
    return np.random.default_rng(seed).integers(0, classes, total)


def split(labels, **rules):
    return make_splits(labels, SplitRules(**rules))


def same(one: Splits, other: Splits) -> bool:
    def flat(s):
        return [*s.expert_train, *s.expert_val, s.fusion_train, s.fusion_val]

    return all(np.array_equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


# ---------------------------------------------------------------- what the sets are


def test_published_sizes_at_cifar_scale():
    labels = np.repeat(np.arange(100), 500)
    splits = split(labels, seed=42)
    holdout = np.union1d(splits.fusion_train, splits.fusion_val)
    assert len(holdout) == 10_000
    assert len(splits.fusion_val) == 1_000
    assert [len(e) for e in splits.expert_train] == [22_000] * 4
    times_used = Counter(np.concatenate(splits.expert_train).tolist())
    assert Counter(times_used.values()) == {4: 16_000, 1: 24_000}  # shared, unique
    assert not set(times_used) & set(holdout.tolist())
    assert len(times_used) + len(holdout) == 50_000
    # the published procedure, written down a second time
    order = np.random.default_rng(42).permutation(50_000)
    assert holdout.tolist() == sorted(order[:10_000].tolist())
    pool = np.array(sorted(order[10_000:].tolist()))
    shuffled = pool[np.random.default_rng(42).permutation(40_000)]
    second = {*shuffled[:16_000].tolist(), *shuffled[22_000:28_000].tolist()}
    assert set(splits.expert_train[1].tolist()) == second


def test_sets_are_sorted_disjoint_int64():
    splits = split(labels_of(), seed=1)
    for indices in (*splits.expert_train, splits.fusion_train, splits.fusion_val):
        assert indices.dtype == np.int64
        assert (np.diff(indices) > 0).all()
    assert not np.intersect1d(splits.fusion_train, splits.fusion_val).size
    assert all(np.array_equal(v, splits.fusion_val) for v in splits.expert_val)


def test_the_seed_decides():
    labels = labels_of()
    assert same(split(labels, seed=1), split(labels, seed=1))
    assert not same(split(labels, seed=1), split(labels, seed=2))


def test_unique_part_is_capped_by_the_pool():
    splits = split(labels_of(1003), seed=0, shared_fraction=0.5, unique_fraction=0.9)
    times_used = Counter(np.concatenate(splits.expert_train).tolist())
    pool = 1003 - 201
    assert Counter(times_used.values()) == {4: 401, 1: 4 * ((pool - 401) // 4)}


def test_fractions_at_their_limits():
    alone = split(labels_of(), seed=0, shared_fraction=0.0, unique_fraction=0.25)
    assert sum(map(len, alone.expert_train)) == 800
    assert len(np.unique(np.concatenate(alone.expert_train))) == 800
    together = split(labels_of(), seed=0, shared_fraction=1.0, num_experts=3)
    assert [len(e) for e in together.expert_train] == [800] * 3


@pytest.mark.parametrize(("experts", "ranges"), [(4, [3, 3, 2, 2]), (3, [4, 3, 3]), (1, [10])])
def test_non_iid_experts_own_consecutive_classes(experts, ranges):
    labels = labels_of()
    splits = split(labels, seed=42, kind="non_iid", num_experts=experts)
    holdout = np.union1d(splits.fusion_train, splits.fusion_val)
    assert len(splits.expert_train) == experts
    start = 0
    for train, val, width in zip(splits.expert_train, splits.expert_val, ranges, strict=True):
        own = set(range(start, start + width))
        assert set(labels[train].tolist()) == set(labels[val].tolist()) == own
        start += width
        rest = np.isin(labels, list(own))
        rest[holdout] = False
        assert np.array_equal(train, np.flatnonzero(rest)), "not every pool sample of its classes"
        assert set(val.tolist()) <= set(splits.fusion_val.tolist())
    assert sum(map(len, splits.expert_val)) == len(splits.fusion_val)
    same_holdout = split(labels, seed=42)
    assert np.array_equal(same_holdout.fusion_val, splits.fusion_val)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_validation_is_stratified(fraction):
    labels = np.concatenate([labels_of(5000, 20), np.full(400, 20), np.full(12, 21)])
    splits = split(labels, seed=7, val_fraction=fraction)
    holdout = np.union1d(splits.fusion_train, splits.fusion_val)
    had, got = (np.bincount(labels[part], minlength=22) for part in (holdout, splits.fusion_val))
    assert (np.abs(got - had * fraction) <= 1).all()
    assert (got[had >= 2] >= 1).all()
    assert (got[had >= 2] < had[had >= 2]).all()
    assert abs(len(splits.fusion_val) - fraction * len(holdout)) <= 1
    # the odd samples come from the classes that are owed most
    free = had >= 4 / fraction
    owed = (had * fraction - np.floor(had * fraction))[free]
    more = (got > np.floor(had * fraction))[free]
    if more.any() and not more.all():
        assert owed[more].min() >= owed[~more].max() - 1e-9


def test_rare_classes_still_reach_validation():
    labels = np.repeat(np.arange(50), 20)  # about 4 of each in the holdout: 0.4 expected
    splits = split(labels, seed=0)
    holdout = np.union1d(splits.fusion_train, splits.fusion_val)
    had, got = (np.bincount(labels[part], minlength=50) for part in (holdout, splits.fusion_val))
    assert (got[had >= 2] >= 1).all()
    assert (got[had == 1] == 0).all()
    assert (had < 5).any()


def test_validation_is_a_random_part_of_each_class():
    labels = np.repeat(np.arange(4), 1000)
    places = []
    for seed in range(12):
        splits = split(labels, seed=seed)
        holdout = np.union1d(splits.fusion_train, splits.fusion_val)
        places += list(np.searchsorted(holdout, splits.fusion_val) % 200 / 200)
    assert 0.45 < np.mean(places) < 0.55
    assert np.std(places) == pytest.approx(1 / np.sqrt(12), abs=0.03)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"holdout_fraction": 0.0}, "holdout_fraction"),
        ({"holdout_fraction": 1.0}, "holdout_fraction"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"shared_fraction": -0.1}, "shared_fraction"),
        ({"unique_fraction": 2}, "unique_fraction"),
        ({"shared_fraction": 0, "unique_fraction": 0}, "expert_0_train would be empty"),
        ({"num_experts": 0}, "num_experts"),
        ({"kind": "noniid"}, "'iid', 'non_iid'"),
        ({"kind": "non_iid", "num_experts": 11}, "only 10 classes"),
        ({"holdout_fraction": 0.0001}, "would be empty"),
    ],
)
def test_impossible_arguments_are_refused_by_name(changes, named):
    with pytest.raises(SplitError, match=named):
        split(labels_of(), seed=0, **changes)


@pytest.mark.parametrize("labels", [np.zeros((3, 3), int), np.zeros(9), np.array([0, -1, 2])])
def test_labels_must_be_class_numbers(labels):
    with pytest.raises(SplitError, match="labels"):
        split(labels, seed=0)


# ---------------------------------------------------------------- its hash


def test_the_hash_is_of_the_numbers_alone():
    splits = split(labels_of(), seed=42)
    assert len(splits.hash) == 64
    assert splits.hash == split(labels_of(), seed=42).hash
    other_type = Splits(
        tuple(part.astype(">i4") for part in splits.expert_train),
        tuple(part.astype(">i4") for part in splits.expert_val),
        splits.fusion_train.astype("u2"),
        splits.fusion_val.astype("<i8"),
    )
    assert other_type.hash == splits.hash


def test_the_hash_knows_whose_samples_they_are():
    splits = split(labels_of(), seed=42)
    swapped = dataclasses.replace(splits, expert_train=splits.expert_train[::-1])
    assert swapped.hash != splits.hash
    assert split(labels_of(), seed=43).hash != splits.hash
    assert split(labels_of(), seed=42, num_experts=3).hash != splits.hash


@pytest.mark.parametrize("field", ["expert_train", "expert_val", "fusion_train", "fusion_val"])
def test_the_hash_changes_with_one_sample_of_any_part(field):
    splits = split(labels_of(), seed=42)
    part = getattr(splits, field)
    less = part[:-1] if field.startswith("fusion") else (*part[:-1], part[-1][:-1])
    assert dataclasses.replace(splits, **{field: less}).hash != splits.hash
