"""A task short of memory waits for neighbours on its GPU, and for nobody else."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusionrun.launch import waiting
from fusionrun.launch.company import Company
from fusionrun.launch.waiting import ATTEMPTS, PATIENCE, attempts
from fusionrun.training.errors import ShortOfMemoryError, StopRequested

GIB = 2.0**30
OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore of it")


class Neighbours:
    """Processes on a GPU of 16 GiB, what they hold by the second; time passes when one sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: Callable[[float], float]) -> None:
        self.now = 0.0
        self.messages: list[str] = []
        self.stops = False
        self.ticks = 0  # a rank without any for runtime.hang_minutes is taken for dead
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(waiting, "time", clock)
        monkeypatch.setattr(waiting, "held_by_others", lambda device: held(self.now) * GIB)
        monkeypatch.setattr(waiting, "total_memory", lambda device: 16 * GIB)

    def tick(self) -> None:
        self.ticks += 1

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, work: Callable[[], None]) -> None:
        context: Any = SimpleNamespace(
            device=torch.device("cpu"), stop_requested=lambda: self.stops
        )
        reporter: Any = SimpleNamespace(message=self.messages.append, waits=self.tick)
        for attempt in attempts(context, reporter, Company(1, context.device)):
            with attempt:
                work()


def failing(times: int, error: Exception) -> tuple[Callable[[], None], list[int]]:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) <= times:
            raise error

    return work, calls


@pytest.mark.parametrize("error", [OUT, ShortOfMemoryError("out of memory with 2 images")])
def test_it_is_done_again_when_a_neighbour_is_done(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    neighbours = Neighbours(monkeypatch, lambda now: 12 if now < 30 else 4)
    work, calls = failing(1, error)
    neighbours.run(work)
    assert len(calls) == 2 and 30 <= neighbours.now < 35
    [said] = neighbours.messages
    assert "out of memory" in said and "12.0 GiB of 16.0 GiB" in said and "10 minutes" in said
    assert "\n" not in said and neighbours.ticks >= 29


def test_alone_on_a_gpu_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours = Neighbours(monkeypatch, lambda now: 0.5)  # contexts
    work, calls = failing(9, OUT)
    with pytest.raises(ShortOfMemoryError, match=r"Tried to allocate 2.00 GiB$"):
        neighbours.run(work)
    assert (len(calls), neighbours.now, neighbours.messages) == (1, 0, [])


def test_patience_and_attempts_end(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours = Neighbours(monkeypatch, lambda now: 12)
    work, calls = failing(9, OUT)
    with pytest.raises(ShortOfMemoryError):
        neighbours.run(work)
    assert len(calls) == 1 and neighbours.now == pytest.approx(PATIENCE, abs=2)
    neighbours = Neighbours(monkeypatch, lambda now: 12 - now)
    work, calls = failing(9, OUT)
    with pytest.raises(ShortOfMemoryError):
        neighbours.run(work)
    assert len(calls) == ATTEMPTS


def test_a_stop_and_other_errors_are_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours = Neighbours(monkeypatch, lambda now: 12)
    neighbours.stops = True
    with pytest.raises(StopRequested):
        neighbours.run(failing(1, OUT)[0])
    with pytest.raises(RuntimeError, match="device-side assert"):
        neighbours.run(failing(1, RuntimeError("CUDA error: device-side assert triggered"))[0])
