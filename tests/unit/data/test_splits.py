"""Split facts by counting, and every way a stored split can fail to fit."""

import dataclasses
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fusionrun.data.splits import (
    DataError,
    SplitError,
    Splits,
    load_or_create_splits,
    make_splits,
)

POOL, HOLDOUT, META = (
    "expert_train_indices.npy",
    "fusion_holdout_indices.npy",
    "split_meta.json",
)


def labels_of(total=1000, classes=10, seed=3):
    return np.random.default_rng(seed).integers(0, classes, total)


def load(directory, labels=None, **changes):
    arguments = {"dataset_name": "toy", "fingerprint": "abc", "seed": 42, **changes}
    return load_or_create_splits(directory, labels_of() if labels is None else labels, **arguments)


def same(one: Splits, other: Splits) -> bool:
    def flat(s):
        return [*s.expert_train, *s.expert_val, s.fusion_train, s.fusion_val]

    return all(np.array_equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


# ---------------------------------------------------------------- what the sets are


def test_published_sizes_at_cifar_scale():
    labels = np.repeat(np.arange(100), 500)
    splits = make_splits(labels, seed=42)
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
    splits = make_splits(labels_of(), seed=1)
    for indices in (*splits.expert_train, splits.fusion_train, splits.fusion_val):
        assert indices.dtype == np.int64
        assert (np.diff(indices) > 0).all()
    assert not np.intersect1d(splits.fusion_train, splits.fusion_val).size
    assert all(np.array_equal(v, splits.fusion_val) for v in splits.expert_val)


def test_the_seed_decides():
    labels = labels_of()
    assert same(make_splits(labels, seed=1), make_splits(labels, seed=1))
    assert not same(make_splits(labels, seed=1), make_splits(labels, seed=2))


def test_unique_part_is_capped_by_the_pool():
    splits = make_splits(labels_of(1003), seed=0, shared_fraction=0.5, unique_fraction=0.9)
    times_used = Counter(np.concatenate(splits.expert_train).tolist())
    pool = 1003 - 201
    assert Counter(times_used.values()) == {4: 401, 1: 4 * ((pool - 401) // 4)}


def test_fractions_at_their_limits():
    alone = make_splits(labels_of(), seed=0, shared_fraction=0.0, unique_fraction=0.25)
    assert sum(map(len, alone.expert_train)) == 800
    assert len(np.unique(np.concatenate(alone.expert_train))) == 800
    together = make_splits(labels_of(), seed=0, shared_fraction=1.0, num_experts=3)
    assert [len(e) for e in together.expert_train] == [800] * 3


@pytest.mark.parametrize(("experts", "ranges"), [(4, [3, 3, 2, 2]), (3, [4, 3, 3]), (1, [10])])
def test_non_iid_experts_own_consecutive_classes(experts, ranges):
    labels = labels_of()
    splits = make_splits(labels, seed=42, kind="non_iid", num_experts=experts)
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
    same_holdout = make_splits(labels, seed=42)
    assert np.array_equal(same_holdout.fusion_val, splits.fusion_val)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_validation_is_stratified(fraction):
    labels = np.concatenate([labels_of(5000, 20), np.full(400, 20), np.full(12, 21)])
    splits = make_splits(labels, seed=7, val_fraction=fraction)
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
    splits = make_splits(labels, seed=0)
    holdout = np.union1d(splits.fusion_train, splits.fusion_val)
    had, got = (np.bincount(labels[part], minlength=50) for part in (holdout, splits.fusion_val))
    assert (got[had >= 2] >= 1).all()
    assert (got[had == 1] == 0).all()
    assert (had < 5).any()


def test_validation_is_a_random_part_of_each_class():
    labels = np.repeat(np.arange(4), 1000)
    places = []
    for seed in range(12):
        splits = make_splits(labels, seed=seed)
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
        make_splits(labels_of(), seed=0, **changes)


@pytest.mark.parametrize("labels", [np.zeros((3, 3), int), np.zeros(9), np.array([0, -1, 2])])
def test_labels_must_be_class_numbers(labels):
    with pytest.raises(SplitError, match="labels"):
        make_splits(labels, seed=0)


# ---------------------------------------------------------------- its hash


def test_the_hash_is_of_the_numbers_alone(tmp_path):
    splits = make_splits(labels_of(), seed=42)
    assert len(splits.hash) == 64
    assert splits.hash == make_splits(labels_of(), seed=42).hash == load(tmp_path).hash
    assert load(tmp_path).hash == splits.hash  # read back
    other_type = Splits(
        tuple(part.astype(">i4") for part in splits.expert_train),
        tuple(part.astype(">i4") for part in splits.expert_val),
        splits.fusion_train.astype("u2"),
        splits.fusion_val.astype("<i8"),
    )
    assert other_type.hash == splits.hash


def test_the_hash_knows_whose_samples_they_are():
    splits = make_splits(labels_of(), seed=42)
    swapped = dataclasses.replace(splits, expert_train=splits.expert_train[::-1])
    assert swapped.hash != splits.hash
    assert make_splits(labels_of(), seed=43).hash != splits.hash
    assert make_splits(labels_of(), seed=42, num_experts=3).hash != splits.hash


@pytest.mark.parametrize("field", ["expert_train", "expert_val", "fusion_train", "fusion_val"])
def test_the_hash_changes_with_one_sample_of_any_part(field):
    splits = make_splits(labels_of(), seed=42)
    part = getattr(splits, field)
    less = part[:-1] if field.startswith("fusion") else (*part[:-1], part[-1][:-1])
    assert dataclasses.replace(splits, **{field: less}).hash != splits.hash


# ---------------------------------------------------------------- stored and reused


def test_files_and_what_they_say(tmp_path):
    directory = tmp_path / "deep" / "splits"
    splits = load(directory)
    assert same(splits, make_splits(labels_of(), seed=42))
    visible = {p.name for p in directory.iterdir() if not p.name.startswith(".")}
    assert visible == {POOL, HOLDOUT, META}
    holdout, pool = np.load(directory / HOLDOUT), np.load(directory / POOL)
    assert np.array_equal(holdout, np.union1d(splits.fusion_train, splits.fusion_val))
    assert np.array_equal(np.union1d(pool, holdout), np.arange(1000))
    meta = json.loads((directory / META).read_text())
    for field, value in {
        "dataset": "toy",
        "fingerprint": "abc",
        "total": 1000,
        "seed": 42,
        "holdout_fraction": 0.2,
        "kind": "iid",
        "num_experts": 4,
    }.items():
        assert meta[field] == value
    assert meta["sizes"]["holdout"] == 200
    assert meta["sizes"]["expert_3_train"] == 440
    assert set(meta["sizes"]) == set(meta["sha256"])
    assert meta["format_version"] >= 1
    assert meta["created"].startswith("20")


def test_stored_splits_are_reused_untouched(tmp_path):
    first = load(tmp_path)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()}
    assert same(load(tmp_path), first)
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()} == before


MISMATCHES = [
    ({"dataset_name": "other"}, "dataset", "'toy'"),
    ({"fingerprint": "def"}, "fingerprint", "'abc'"),
    ({"labels": labels_of(1001)}, "total", "1000"),
    ({"seed": 43}, "seed", "42"),
    ({"holdout_fraction": 0.3}, "holdout_fraction", "0.2"),
    ({"val_fraction": 0.2}, "val_fraction", "0.1"),
    ({"num_experts": 3}, "num_experts", "4"),
    ({"kind": "non_iid"}, "kind", "'iid'"),
    ({"shared_fraction": 0.5}, "shared_fraction", "0.4"),
    ({"unique_fraction": 0.1}, "unique_fraction", "0.15"),
]


@pytest.mark.parametrize(("changes", "field", "found"), MISMATCHES)
def test_a_split_of_something_else_is_refused(tmp_path, changes, field, found):
    load(tmp_path)
    with pytest.raises(SplitError) as error:
        load(tmp_path, **changes)
    message = str(error.value)
    for part in (str(tmp_path / META), f"{field} is {found}", "Delete the folder", "splits_dir"):
        assert part in message


def edit_meta(directory, **fields):
    meta = json.loads((directory / META).read_text())
    (directory / META).write_text(json.dumps({**meta, **fields}))


def replace(name, change):
    def damage(directory):
        np.save(directory / name, change(np.load(directory / name)))

    return damage


DAMAGES = {
    "truncated": (lambda d: (d / POOL).write_bytes((d / POOL).read_bytes()[:-9]), POOL, "content"),
    "empty file": (lambda d: (d / HOLDOUT).write_bytes(b""), HOLDOUT, "content"),
    "pool missing": (lambda d: (d / POOL).unlink(), POOL, "No such file"),
    "holdout missing": (lambda d: (d / HOLDOUT).unlink(), HOLDOUT, "No such file"),
    "pickled": (replace(POOL, lambda a: a.astype(object)), POOL, "content"),
    "floats": (replace(POOL, lambda a: a.astype(float)), POOL, "float64"),
    "matrix": (replace(POOL, lambda a: a.reshape(2, -1)), POOL, "integers, one dimension"),
    "out of range": (replace(POOL, lambda a: a + 500), POOL, "range of indices"),
    "negative": (replace(HOLDOUT, lambda a: a - 999), HOLDOUT, "range of indices"),
    "repeated": (replace(POOL, lambda a: np.r_[a[:-1], a[0]]), POOL, "repeated indices is 1"),
    "many missing": (replace(POOL, lambda a: a[:-200]), POOL, "number of indices is 600"),
    "one missing": (replace(HOLDOUT, lambda a: a[1:]), HOLDOUT, "number of indices is 199"),
    "no index": (replace(HOLDOUT, lambda a: a[:0]), HOLDOUT, "expected 'at least 1'"),
    "not json": (lambda d: (d / META).write_text("{"), META, "expected 'JSON'"),
    "json list": (lambda d: (d / META).write_text("[]"), META, "a JSON object"),
    "newer format": (lambda d: edit_meta(d, format_version=99), META, "format_version is 99"),
    "no hashes": (lambda d: edit_meta(d, sha256=None), META, "sha256"),
    "foreign record": (lambda d: (d / META).write_text('{"total": 1000}'), META, "format_version"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(tmp_path, name):
    damage, file, message = DAMAGES[name]
    load(tmp_path)
    damage(tmp_path)
    with pytest.raises(SplitError) as error:
        load(tmp_path)
    assert str(tmp_path / file) in str(error.value)
    assert message in str(error.value)
    assert "Delete" in str(error.value)
    assert isinstance(error.value, DataError)


def test_samples_in_both_parts_are_found(tmp_path):
    load(tmp_path)
    holdout = np.load(tmp_path / HOLDOUT)
    replace(POOL, lambda a: np.r_[a[1:], holdout[0]])(tmp_path)
    with pytest.raises(SplitError, match="shared with the holdout is 1"):
        load(tmp_path)


def test_exchanged_samples_are_found(tmp_path):
    load(tmp_path)
    pool, holdout = np.load(tmp_path / POOL), np.load(tmp_path / HOLDOUT)
    pool[0], holdout[0] = holdout[0], pool[0]
    np.save(tmp_path / POOL, pool)
    np.save(tmp_path / HOLDOUT, holdout)
    with pytest.raises(SplitError, match="sha256"):
        load(tmp_path)


def test_other_labels_under_the_same_name_are_found(tmp_path):
    load(tmp_path)
    with pytest.raises(SplitError, match=r"sha256\.\w+ is"):
        load(tmp_path, np.roll(labels_of(), 1))


def test_files_in_another_integer_type_or_order_are_still_the_same_split(tmp_path):
    first = load(tmp_path)
    replace(POOL, lambda a: a[::-1].astype(np.int32))(tmp_path)
    replace(HOLDOUT, lambda a: a.astype(">u2"))(tmp_path)
    assert same(load(tmp_path), first)


# ---------------------------------------------------------------- files of an earlier system


def test_a_lone_holdout_file_is_adopted(tmp_path):
    theirs = np.random.default_rng(99).permutation(1000)[:150].astype(np.int32)
    np.save(tmp_path / HOLDOUT, theirs)
    kept = (tmp_path / HOLDOUT).read_bytes()
    splits = load(tmp_path)
    assert (tmp_path / HOLDOUT).read_bytes() == kept
    holdout = np.union1d(splits.fusion_train, splits.fusion_val)
    assert np.array_equal(holdout, np.sort(theirs))
    pool = np.load(tmp_path / POOL)
    assert np.array_equal(pool, np.setdiff1d(np.arange(1000), theirs))
    assert set(np.concatenate(splits.expert_train).tolist()) <= set(pool.tolist())
    assert json.loads((tmp_path / META).read_text())["holdout_source"] == "file"
    assert same(load(tmp_path), splits)


def test_both_files_without_a_record_are_adopted_if_they_fit(tmp_path):
    first = load(tmp_path)
    (tmp_path / META).unlink()
    assert same(load(tmp_path), first)
    (tmp_path / META).unlink()
    replace(POOL, lambda a: a[1:])(tmp_path)
    with pytest.raises(SplitError, match="not the complement"):
        load(tmp_path)


def test_a_lone_pool_file_is_not_guessed_from(tmp_path):
    load(tmp_path)
    (tmp_path / META).unlink()
    (tmp_path / HOLDOUT).unlink()
    with pytest.raises(SplitError, match=POOL):
        load(tmp_path)


def test_an_adopted_file_must_fit_the_data(tmp_path):
    np.save(tmp_path / HOLDOUT, np.arange(990, 1010))
    with pytest.raises(SplitError, match=r"990\.\.1009"):
        load(tmp_path)
    assert not (tmp_path / META).exists()
    assert not (tmp_path / POOL).exists()


# ---------------------------------------------------------------- several processes, bad folders


def _load_in_child(directory, results):
    splits = load(directory)
    results.put((os.getpid(), [int(e.sum()) for e in splits.expert_train]))


def test_processes_that_start_together_agree(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [
        context.Process(target=_load_in_child, args=(tmp_path / "s", results)) for _ in range(6)
    ]
    for child in children:
        child.start()
    answers = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    assert len({pid for pid, _ in answers}) == 6
    assert all(sums == answers[0][1] for _, sums in answers)
    assert not list((tmp_path / "s").glob(".*.npy.*")), "temporary files were left"


@pytest.mark.parametrize("files_written", [1, 2])
def test_a_start_after_a_crash_finishes_the_job(tmp_path, monkeypatch, files_written):
    calls = []
    original = Path.replace

    def fails_later(self, target):
        calls.append(target)
        if len(calls) > files_written:
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "replace", fails_later)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.npy"))) == files_written
    assert not list(tmp_path.glob(".*.npy.*")), "temporary files were left"
    assert same(load(tmp_path), make_splits(labels_of(), seed=42))


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "splits").write_text("")
    with pytest.raises(SplitError, match=r"data\.splits_dir"):
        load(tmp_path / "splits")


def test_a_finished_split_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    first = load(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fusionrun.common.locks.os.open", refuse)
    assert same(load(tmp_path), first)
    with pytest.raises(SplitError, match="Permission denied"):
        load(tmp_path / "another")
