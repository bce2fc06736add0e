"""How a launch ends."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionrun.launch.shutdown import StopSignals, store_results
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
