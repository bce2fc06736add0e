"""Where cuDNN may try its algorithms out, and for how long."""

import threading
from collections.abc import Iterator

import pytest
import torch

from fusionrun.data.loader import Batch
from fusionrun.training import tuning
from fusionrun.training.tuning import STEPS_WORTH_TUNING, Tuning

FEW, MANY = STEPS_WORTH_TUNING - 1, STEPS_WORTH_TUNING
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Timer:
    """In place of the real one: ends when told to."""

    started: list["Timer"]

    def __init__(self, seconds: float, end: object) -> None:
        assert seconds == tuning.SECONDS
        self.end = end

    def start(self) -> None:
        self.started.append(self)


@pytest.fixture(autouse=True)
def timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Timer]]:
    Timer.started = []
    monkeypatch.setattr(threading, "Timer", Timer)
    before = torch.backends.cudnn.benchmark
    yield Timer.started
    torch.backends.cudnn.benchmark = before


def batches(*sizes: int) -> Iterator[Batch]:
    for size in sizes:
        yield Batch(torch.zeros(size, 3, 8, 8), torch.zeros(size, 2), torch.zeros(size).long())


def seen(task: Tuning, steps: int) -> list[bool]:
    return [torch.backends.cudnn.benchmark for _ in task.over(batches(4, 4, 2), 4, steps)]


def test_only_what_comes_often_is_tuned() -> None:
    torch.backends.cudnn.benchmark = True  # whatever it was
    assert seen(Tuning(CUDA), MANY) == [True, True, False]
    assert not torch.backends.cudnn.benchmark  # validation
    assert seen(Tuning(CUDA), FEW) == [False] * 3


def test_it_ends_in_the_middle_of_a_step_and_for_the_whole_task(timers: list[Timer]) -> None:
    task = Tuning(CUDA)
    assert seen(task, MANY) == [True, True, False]
    for i, _ in enumerate(task.over(batches(4, 4), 4, MANY)):
        assert torch.backends.cudnn.benchmark == (i == 0)
        if i == 0:
            timers[0].end()  # type: ignore[operator]
            assert not torch.backends.cudnn.benchmark
    assert seen(task, MANY) == [False] * 3
    assert len(timers) == 1
    assert seen(Tuning(CUDA), MANY) == [True, True, False]  # another task's


def test_a_cpu_has_nothing_to_tune(timers: list[Timer]) -> None:
    assert seen(Tuning(CPU), MANY) == [False] * 3
    assert timers == []


def test_a_stop_leaves_nothing_behind() -> None:
    for _ in Tuning(CUDA).over(batches(4, 4, 2), 4, MANY):
        assert torch.backends.cudnn.benchmark
        break
    assert not torch.backends.cudnn.benchmark


def test_reproducible_runs_choose_by_rule() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert seen(Tuning(CUDA), MANY) == [False] * 3
    finally:
        torch.use_deterministic_algorithms(False)
