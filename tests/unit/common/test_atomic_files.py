"""Files that are there whole or not at all, readable as the umask says."""

import errno
import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from fusionrun.common.atomic_files import (
    sweep_temporaries,
    write_atomically,
    write_json,
    write_text,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "file.txt"


@pytest.fixture
def umask() -> Iterator[None]:
    """Whatever the test does to the process's umask ends with it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_writes_and_replaces(path: Path) -> None:
    for text in ("first\n", "second, äöü ✓\n", ""):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
        assert names(path) == ["file.txt"]


class BoomError(Exception):
    pass


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("existed", [True, False])
def test_a_writer_that_raises_leaves_what_was(
    path: Path, error: type[BaseException], existed: bool
) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half of")
        file.flush()
        raise error

    path.parent.mkdir(parents=True)
    if existed:
        path.write_text("old")
    with pytest.raises(error):
        write_atomically(path, write)
    assert names(path) == (["file.txt"] if existed else [])
    assert not existed or path.read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_error_leaves_what_was_and_names_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_text(path, "old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"No space left on device.*file\.txt") as caught:
        write_text(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert names(path) == ["file.txt"]


def test_no_permission_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "inside.txt", "x")


def test_a_reader_never_sees_a_part(path: Path) -> None:
    """A second thread reads as fast as it can while the file changes its length."""
    texts = {"a" * 300_000, "b" * 100, "c" * 200_000}
    write_text(path, "b" * 100)
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(60):
        for text in texts:
            write_text(path, text, durable=False)
    done.set()
    reader.join()
    assert seen <= texts
    assert len(seen) > 1


def test_flushed_to_disk_unless_it_is_not_worth_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size)
    )
    write_text(path, "four", durable=False)
    assert flushed == []
    write_text(path, "four")
    assert flushed == [4]  # all of it, not what a buffer happened to have passed on


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_permissions_follow_the_umask(path: Path, umask: None, mask: int) -> None:
    os.umask(mask)
    for _ in range(2):
        write_text(path, "x")
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_the_umask_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the whole process: reading it means setting it, under all threads' feet."""

    def touched(mask: int) -> int:
        raise AssertionError("os.umask was called")

    monkeypatch.setattr(os, "umask", touched)
    write_text(path, "x")
    assert path.read_text() == "x"


def test_threads_do_not_upset_each_others_permissions(tmp_path: Path, umask: None) -> None:
    def work(k: int) -> None:
        for i in range(100):
            write_text(tmp_path / f"{k}-{i}", "x", durable=False)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert os.umask(0o022) == 0o022
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o644}
    assert len(list(tmp_path.iterdir())) == 400


def test_json(path: Path) -> None:
    value = {"a": [1, 2.5, None], "b": {"c": "ü", "d": True}}
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert path.read_text().endswith("\n")
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"a": number})
    assert json.loads(path.read_text()) == value


def test_sweeps_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(file: BinaryIO) -> None:
        """What a SIGKILL leaves, saved from the clean-up by a second name."""
        temporary = Path(file.name)
        left.append(temporary)
        os.link(temporary, temporary.with_name("kept"))
        raise Killed

    left: list[Path] = []
    for folder in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(Killed):
            write_atomically(folder / "checkpoint.pth", die)
        (folder / "kept").rename(left[-1])
    others = [tmp_path / "a" / "x.tmp", tmp_path / ".hidden", tmp_path / "a" / "b" / "y.pth"]
    for other in others:
        other.write_text("mine")
    assert all(temporary.exists() for temporary in left)
    sweep_temporaries(tmp_path)
    found = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(others)
    sweep_temporaries(tmp_path / "not there")
