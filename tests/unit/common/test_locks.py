"""Locks on files, as several processes meet at them."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from fusionrun.common.locks import locked

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
