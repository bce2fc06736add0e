"""Prepared data: several processes, damage, folders that can't be written."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from fusionrun.data.datasets import DataError, cache, load_dataset
from tests.unit.data.cifar_archives import check_cifar, fork, load_in_child, start_children, unpack


@pytest.mark.parametrize("separate_caches", [False, True])
def test_processes_that_start_together_download_once(tmp_path, official, server, separate_caches):
    _, arrays, _ = official["cifar100"]
    results = fork.Queue()
    children = []
    for k in range(4):
        options = {"download": True, "cache_dir": tmp_path / f"cache{k * separate_caches}"}
        children.append(
            fork.Process(target=load_in_child, args=("cifar100", tmp_path / "d", options, results))
        )
        children[-1].start()
    answers = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    assert server.requests == ["/cifar-100-python.tar.gz"]
    assert len({pid for pid, _, _ in answers}) == 4
    expected = int(arrays["train"][0].astype(int).sum())
    assert all(total[0] == expected for _, total, _ in answers)
    assert len({total[1] for _, total, _ in answers}) == 1
    said = [line for _, _, lines in answers for line in lines]
    assert sum("building" in line for line in said) == (4 if separate_caches else 1)
    assert any("waiting for another process" in line for line in said)


def test_a_failure_reaches_every_process(tmp_path, official):
    answers = start_children(3, "cifar100", tmp_path, {})
    assert all("cifar-100-python" in total for _, total, _ in answers)


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_cache(tmp_path, official, monkeypatch):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path, files)

    def die_in_the_second_file():
        original, calls = np.save, []

        def save(file, array):
            calls.append(array)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            original(file, array)

        monkeypatch.setattr(np, "save", save)
        load_dataset("cifar100", root=tmp_path)

    child = fork.Process(target=die_in_the_second_file)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    place = tmp_path / ".fusionrun_cache"
    assert list(place.glob(".cifar100.part-*")), "the build did not get far enough to test this"
    assert not (place / "cifar100").exists()
    check_cifar(load_dataset("cifar100", root=tmp_path), arrays)
    assert not list(place.glob(".cifar100.part-*"))


def test_prepared_images_are_shared_pages_and_private_when_written(tmp_path, official):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path, files)
    data = load_dataset("cifar100", root=tmp_path, cache_dir=tmp_path / "c")
    mapped = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "c" / "cifar100" / "train_images.npy") in mapped
    data.train_images.zero_()
    check_cifar(load_dataset("cifar100", root=tmp_path, cache_dir=tmp_path / "c"), arrays)
    assert not (tmp_path / ".fusionrun_cache").exists()


def damage_truncate(folder):
    path = folder / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-100])


def damage_meta(folder):
    (folder / "meta.json").write_text("{")


def damage_version(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format_version": -1}))


def damage_missing(folder):
    (folder / "test_labels.npy").unlink()


def damage_shape(folder):
    np.save(folder / "test_labels.npy", np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_meta, damage_version, damage_missing, damage_shape]
)
def test_a_damaged_cache_is_built_again(tmp_path, official, damage):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path, files)
    load_dataset("cifar100", root=tmp_path)
    damage(tmp_path / ".fusionrun_cache" / "cifar100")
    lines = []
    check_cifar(load_dataset("cifar100", root=tmp_path, progress=lines.append), arrays)
    assert any("building" in line for line in lines)
    lines.clear()
    check_cifar(load_dataset("cifar100", root=tmp_path, progress=lines.append), arrays)
    assert lines == []


def test_an_unwritable_cache_folder_says_what_to_set(tmp_path, official, monkeypatch):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path, files)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        load_dataset("cifar100", root=tmp_path, cache_dir=tmp_path / "file" / "sub")

    load_dataset("cifar100", root=tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fusionrun.common.locks.os.open", refuse)
    # somebody else's finished cache serves without a lock
    check_cifar(load_dataset("cifar100", root=tmp_path), arrays)


def test_a_full_disk_says_what_to_set_and_leaves_nothing(tmp_path, official, monkeypatch):
    files, _, _ = official["cifar100"]
    unpack(tmp_path, files)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"No space left.*more free space.*data\.cache_dir"):
        load_dataset("cifar100", root=tmp_path)
    left = [p.name for p in (tmp_path / ".fusionrun_cache").iterdir() if not p.is_file()]
    assert left == []


def test_images_that_cannot_be_mapped_are_not_taken_for_damaged(tmp_path, official, monkeypatch):
    files, _, _ = official["cifar100"]
    unpack(tmp_path, files)
    load_dataset("cifar100", root=tmp_path)
    before = (tmp_path / ".fusionrun_cache" / "cifar100").stat().st_mtime_ns

    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(DataError, match=r"don't fit into the memory.*data\.image_size"):
        load_dataset("cifar100", root=tmp_path)
    assert (tmp_path / ".fusionrun_cache" / "cifar100").stat().st_mtime_ns == before


def test_statistics_of_pixels():
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 9, 7), dtype=np.uint8)
    images[:, 1] //= 3
    images[:, 2] = 60
    mean, std = cache.channel_statistics(images)
    pixels = images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert mean == pytest.approx(pixels.mean(1))
    assert std[:2] == pytest.approx(pixels.std(1)[:2])
    assert std[2] == pytest.approx(1 / 255)  # never zero: it is divided by
