"""How a launch ends."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from fusionrun.launch.shutdown import StopSignals


def test_a_stop_signal_is_remembered_and_the_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with StopSignals(["SIGTERM", "SIGUSR1"]) as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
        assert stop.requested()
    assert {number: signal.getsignal(number) for number in before} == before


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
