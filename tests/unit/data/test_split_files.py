"""Every way a stored split can fit, and fail to."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusionrun.data.errors import DataError
from fusionrun.data.split_files import (
    StoredSplit,
    copy_split_files,
    load_or_create_splits,
    load_splits,
    stored_split,
)
from fusionrun.data.splits import SplitError, SplitRules
from tests.unit.data.test_splits import labels_of, same, split

POOL, HOLDOUT, META = (
    "expert_train_indices.npy",
    "fusion_holdout_indices.npy",
    "split_meta.json",
)


def load(
    directory,
    labels=None,
    *,
    dataset_name="toy",
    fingerprint="abc",
    by=load_or_create_splits,
    **rules,
):
    return by(
        directory,
        labels_of() if labels is None else labels,
        SplitRules(**{"seed": 42, **rules}),
        dataset_name=dataset_name,
        fingerprint=fingerprint,
    )


# ---------------------------------------------------------------- stored and reused


def test_files_and_what_they_say(tmp_path):
    directory = tmp_path / "deep" / "splits"
    splits = load(directory)
    assert same(splits, split(labels_of(), seed=42))
    assert splits.hash == split(labels_of(), seed=42).hash == load(directory).hash
    assert stored_split(directory) == StoredSplit("abc", splits.hash, adopted="")
    assert stored_split(tmp_path) is None
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
    for part in (str(tmp_path / META), f"{field} is {found}", "splits_dir to another folder"):
        assert part in message
    assert "elete" not in message  # an adopted holdout can't be made again
    if not {"dataset_name", "fingerprint", "labels"} & changes.keys():  # it's of the same images
        assert f"copy {HOLDOUT} alone into that folder" in message
        (tmp_path / "new").mkdir()
        shutil.copy(tmp_path / HOLDOUT, tmp_path / "new")
        kept = load(tmp_path / "new", **changes)
        holdout = np.union1d(kept.fusion_train, kept.fusion_val)
        assert np.array_equal(holdout, np.load(tmp_path / HOLDOUT))


def test_a_plugin_is_the_same_wherever_its_file_lies(tmp_path):
    first = load(tmp_path, dataset_name="my_parts.py:stripes")
    edit_meta(tmp_path, dataset="my_parts.py:stripes")  # as earlier versions stored it
    assert same(load(tmp_path, dataset_name="/elsewhere/parts.py:stripes"), first)
    with pytest.raises(SplitError, match="dataset is 'stripes', expected 'dots'"):
        load(tmp_path, dataset_name="my_parts.py:dots")


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
    "not json": (lambda d: (d / META).write_text("{"), META, "is not JSON"),
    "json list": (lambda d: (d / META).write_text("[]"), META, "found a list"),
    "newer format": (lambda d: edit_meta(d, format_version=99), META, "format_version is 99"),
    "no hashes": (lambda d: edit_meta(d, sha256=None), META, "sha256"),
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
    assert "set data.splits_dir to another folder" in str(error.value)
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


EARLIER_RECORD = {"dataset": "X", "subset": "train", "total_len": 1000, "generated_at_unix": 17e8}


def test_the_folder_of_an_earlier_systems_preparation_is_adopted(tmp_path):
    """Both parts and a record of its own, which has our record's name and stays as it is."""
    holdout = np.arange(0, 1000, 5)
    np.save(tmp_path / HOLDOUT, holdout)
    np.save(tmp_path / POOL, np.setdiff1d(np.arange(1000), holdout)[::-1])
    (tmp_path / META).write_text(json.dumps(EARLIER_RECORD))
    brought = {path: path.read_bytes() for path in tmp_path.iterdir()}
    splits = load(tmp_path)
    found = stored_split(tmp_path)
    assert "fusion has the 200 training images of fusion_holdout" in found.adopted
    assert "the experts have the other 800" in found.adopted and found.hash == splits.hash
    assert np.array_equal(np.union1d(splits.fusion_train, splits.fusion_val), holdout)
    assert {path: path.read_bytes() for path in brought} == brought
    assert same(load(tmp_path), splits)
    (tmp_path / "copy").mkdir()
    copy_split_files(tmp_path, tmp_path / "copy")
    assert stored_split(tmp_path / "copy").hash == splits.hash


def brought(directory, *, pool=None, record=None):
    np.save(directory / HOLDOUT, np.arange(0, 1000, 5))
    if pool is not None:
        np.save(directory / POOL, pool)
    if record is not None:
        (directory / META).write_text(json.dumps(record))


REFUSED = {
    "other data": (lambda d: brought(d, record={"total_len": 50_000}), META, "total_len is 50000"),
    "overlap": (lambda d: brought(d, pool=np.arange(1000)), POOL, "with the holdout is 200"),
    "part": (lambda d: brought(d, pool=np.arange(1, 1000, 5)), POOL, "200 of the other 800"),
    "everything": (lambda d: np.save(d / HOLDOUT, np.arange(1000)), HOLDOUT, "below 1000"),
    "text": (
        lambda d: (d / "fusion_holdout_indices.txt").write_text("1\n2\n"),
        "holdout",
        "np.save",
    ),
    "npz": (lambda d: np.savez(d / "holdout.npz", np.arange(5)), "holdout.npz", "np.save"),
    "json": (lambda d: (d / "my_holdout.json").write_text("[1, 2]"), "my_holdout.json", "np.save"),
    "pool": (lambda d: np.save(d / POOL, np.arange(800)), POOL, "np.setdiff1d"),
    "two texts": (lambda d: (d / "val.txt").write_text("1\n2\n"), "val.txt", "np.save"),
    "capitals": (lambda d: np.save(d / "Test_IDX.npy", np.arange(5)), "Test_IDX.npy", "np.save"),
    "record alone": (
        lambda d: (d / META).write_text(json.dumps({**EARLIER_RECORD, "holdout": [1, 2]})),
        META,
        "np.save",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adopted_is_refused_and_stays(tmp_path, name):
    """Drawing another split beside it would put the experts' images into the holdout."""
    bring, file, message = REFUSED[name]
    bring(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SplitError) as error:
        load(tmp_path)
    assert file in str(error.value) and message in str(error.value)
    assert "elete" not in str(error.value) and "emove" not in str(error.value)
    (tmp_path / ".splits.lock").unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_split_in_a_folder_below_is_pointed_at(tmp_path):
    below = tmp_path / "cifar100"
    below.mkdir()
    np.save(below / HOLDOUT, np.arange(0, 1000, 5))
    with pytest.raises(SplitError, match=f"set data.splits_dir={below}"):
        load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".splits.lock", "cifar100"]


def test_other_files_in_the_folder_are_nobodys_split(tmp_path):
    for name in ("README.txt", "recipe.yaml", "status.json", "results.csv"):
        (tmp_path / name).write_text("")
    load(tmp_path)


def test_a_split_is_read_without_leaving_a_trace(tmp_path):
    first = load(tmp_path)
    (tmp_path / ".splits.lock").unlink()
    before = sorted(tmp_path.iterdir())
    assert same(load(tmp_path, by=load_splits), first)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(SplitError, match="No such file"):
        load(tmp_path / "none", by=load_splits)
    assert not (tmp_path / "none").exists()


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
    assert same(load(tmp_path), split(labels_of(), seed=42))


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


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    """As this format's first version wrote it, field by field."""
    load(tmp_path)
    meta = json.loads((tmp_path / META).read_text())
    assert list(meta) == [
        *("format_version", "dataset", "fingerprint", "total", "seed", "holdout_fraction"),
        *("val_fraction", "num_experts", "kind", "shared_fraction", "unique_fraction"),
        *("holdout_source", "sizes", "sha256", "numpy", "created"),
    ]
    edit_meta(tmp_path, added_by_a_later_version=[1])
    assert same(load(tmp_path), split(labels_of(), seed=42))
