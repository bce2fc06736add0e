"""Locks on files, as several processes meet at them."""

import errno
import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from fusionrun.common.locks import Lock, lock_problem, locked

fork = multiprocessing.get_context("fork")


def hold(path: Path, shared: bool, held: object, leave: object) -> None:
    with locked(path, shared=shared, waiting=lambda: None):
        held.set()  # type: ignore[attr-defined]
        leave.wait(60)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("theirs", "ours", "waits"),
    [(False, False, True), (True, False, True), (False, True, True), (True, True, False)],
)
def test_only_readers_hold_it_together(
    tmp_path: Path, theirs: bool, ours: bool, waits: bool
) -> None:
    held, leave = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(tmp_path / "lock", theirs, held, leave))
    other.start()
    assert held.wait(60)
    waited: list[int] = []

    def waiting() -> None:
        waited.append(1)
        leave.set()  # it is told before it waits

    with locked(tmp_path / "lock", shared=ours, waiting=waiting):
        assert len(waited) == waits
    leave.set()
    other.join(60)


def test_a_killed_process_blocks_nobody(tmp_path: Path) -> None:
    held, leave = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(tmp_path / "lock", False, held, leave))
    other.start()
    assert held.wait(60) and other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join(60)
    with locked(tmp_path / "lock", waiting=lambda: pytest.fail("it is still held")):
        pass


def test_where_no_file_can_be_made(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError),
        locked(tmp_path / "no" / "lock", waiting=lambda: None),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert lock_problem(tmp_path) == ""

    def no_locks(descriptor: object, mode: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / "lock", waiting=lambda: pytest.fail("nobody holds it")):
        pass
    said = lock_problem(tmp_path / "not" / "there")
    assert str(tmp_path) in said and os.strerror(number) in said
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_fault_of_the_file_system_is_no_missing_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def broken(descriptor: object, mode: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError) as caught, locked(tmp_path / "lock"):
        pass
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "lock"))
    assert lock_problem(tmp_path) == ""


def test_who_holds_it_can_be_read_and_shared(tmp_path: Path) -> None:
    first, second, third = (Lock(tmp_path / "lock") for _ in range(3))
    assert first.take()
    first.write("a long text about the first\n")
    first.write("the first\n")
    assert not second.take() and second.read() == "the first"
    assert first.take(shared=True) and second.take(shared=True) and not third.take()
    first.close()
    assert not third.take()  # as long as any is left
    second.close()
    assert third.take() and third.read() == "the first"
    third.close()
