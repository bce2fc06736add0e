"""How a launch ends."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast

import pytest
import torch
from torch.distributed import HashStore

from fusionrun.common.distributed import read_rank_info
from fusionrun.common.exit_status import ExitStatus
from fusionrun.launch.shutdown import StopSignals, Watchdog, exit_status, store_results
from fusionrun.monitor.record import RankState, Record
from fusionrun.monitor.snapshot import RankStatus, Snapshot
from fusionrun.study.queue import Queue
from fusionrun.study.stored import stored_study
from tests.tiny import copy_study


def test_a_stop_signal_is_remembered_and_the_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with StopSignals(["SIGTERM", "SIGUSR1"]) as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
        assert stop.requested()
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(["SIGHUP", "SIGTERM"]) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_they_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), StopSignals(["SIGINT"]):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_listens_to_nothing() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def launch() -> None:
        with StopSignals(["SIGTERM"]) as stop:
            found.append((stop.requested(), signal.getsignal(signal.SIGTERM)))

    work: Callable[[], None] = launch
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_a_record_that_somebody_damages_meanwhile_costs_no_result(
    trained_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A launch ends as it would have, and says which tables it couldn't write."""
    out = tmp_path / "out"
    copy_study(trained_study, out)
    study = stored_study(out)
    before = (out / "results.csv").read_text()
    assert [result.fused for result in store_results(study)]
    assert (out / "results.csv").read_text() == before and not capsys.readouterr().err
    (out / "recipe.yaml").write_text("rows: {")
    results = store_results(study)
    assert [result.task for result in results] == [row.name for row in study.rows]
    said = capsys.readouterr().err
    assert "results could not be written: " in said and "recipe.yaml: is not valid YAML" in said


@pytest.mark.parametrize(
    ("limit", "device", "stops"),
    [
        ("auto", "cuda", True),
        ("auto", "cpu", False),
        (None, "cuda", False),
        (29.0, "cpu", True),
        (31.0, "cuda", False),
    ],
)
def test_a_gpu_that_hangs_for_half_an_hour_stops_the_launch(
    limit: float | Literal["auto"] | None,
    device: str,
    stops: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    rank = RankStatus(3, "working", "task-3", heartbeat_age=0.1, memory_bytes=None)
    hanging = RankStatus(**{**vars(rank), "still_seconds": 60 * 30 + 1.0})
    watchdog = Watchdog(limit, read_rank_info({}), torch.device(device))
    watchdog.look(cast(Snapshot, SimpleNamespace(ranks=(rank,))))
    assert not killed
    for _ in range(2):
        watchdog.look(cast(Snapshot, SimpleNamespace(ranks=(hanging,))))
    assert killed == ([signal.SIGTERM] if stops else [])
    assert ("rank 3 (task-3) has made no progress for 1801 s" in capsys.readouterr().err) == stops


@pytest.mark.parametrize(
    ("states", "busy", "expected"),
    [
        (("working", "failed"), (1.0, 0.0), None),
        (("failed", "failed"), (0.0, 0.0), ExitStatus.NOT_STARTED),
        (("finished", "failed"), (0.0, 0.0), ExitStatus.NOT_STARTED),
        (("finished", "failed"), (1.0, 0.0), ExitStatus.ROW_FAILED),
        (("failed", "failed"), (1.0, 0.0), ExitStatus.ROW_FAILED),
        (("finished", "finished"), (0.0, 0.0), ExitStatus.ROW_FAILED),  # before a restart
        (("stopped", "failed"), (1.0, 0.0), ExitStatus.STOPPED),
    ],
)
def test_how_ranks_end_decides_where_not_all_is_done(
    trained_study: Path,
    states: tuple[RankState, ...],
    busy: tuple[float, ...],
    expected: ExitStatus | None,
) -> None:
    study = stored_study(trained_study)
    queue = Queue(study.tasks, HashStore(), 0, 2)
    records = [Record(state, busy_seconds=b) for state, b in zip(states, busy, strict=True)]
    assert exit_status(study, queue, records) == expected
    for task in study.tasks:
        queue.close(task, "done")
    assert exit_status(study, queue, records) == (expected and ExitStatus.DONE)


def test_one_row_that_failed_fails_the_launch(trained_study: Path) -> None:
    study = stored_study(trained_study)
    queue = Queue(study.tasks, HashStore(), 0, 2)
    failed, *others = study.tasks
    queue.close(failed, "loss or gradient was not finite")
    for task in others:
        queue.close(task, "done")
    records = [Record("finished", busy_seconds=1.0) for _ in range(2)]
    assert exit_status(study, queue, records) == ExitStatus.ROW_FAILED
