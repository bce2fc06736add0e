"""The arithmetic of the estimate."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from fusionrun.doctor import estimate
from fusionrun.doctor.step_timing import Timing
from fusionrun.doctor.tables import estimates_table
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.tasks import Task
from fusionrun.tables.terminal import terminal_table
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.errors import TaskError
from tests.unit.doctor.one_row import (
    CPU,
    drawn,
    estimate_with,
    fixed_timing,
    only,
    plan,
    see_gpus,
    states,
)


def test_the_arithmetic(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of 160 images: 70 an expert, 28 for fusion, 4 for validation; 32 test images."""
    numbers = estimate_with(
        context, monkeypatch, {"row": fixed_timing(1), "expert": fixed_timing(3)}
    )
    (row,) = numbers.rows
    assert row.epoch_seconds == pytest.approx(28 + 4 / 3)
    assert row.seconds == pytest.approx(2 * (28 + 4 / 3) + (4 + 2 * 32) / 3)
    assert (row.experts_left, row.expert_seconds) == (2, pytest.approx(2 * 3 * (70 + 4 / 3)))
    # two ranks: the experts side by side, then the row
    assert numbers.seconds == pytest.approx(row.expert_seconds + row.seconds)
    assert only(numbers.findings, "memory").state == "pass"


def test_only_what_is_left_is_estimated(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [task.name for task in context.study.tasks]
    done = dict(zip(names, (1, 2, 2), strict=True))
    numbers = estimate_with(context, monkeypatch, {"row": fixed_timing(1)}, done)
    (row,) = numbers.rows
    assert (row.experts_left, row.expert_seconds) == (0, None)
    assert numbers.seconds == row.seconds == pytest.approx(28 + 4 / 3 + (4 + 2 * 32) / 3)
    numbers = estimate_with(context, monkeypatch, {}, dict.fromkeys(names, 2))
    assert numbers.seconds == 0 and numbers.findings == []


def test_rows_that_cost_the_same_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "rows=[{model: resnet, fusion: concatenation}, {model: resnet, fusion: concatenation, "
    study = plan(rows + "seed: 7}]", "data.train_images=400")
    context = open_context(study, CPU, 1, progress=lambda text: None)
    timed: list[str] = []

    def time_task(context: RunContext, task: Task, *rest: object) -> Timing:
        timed.append(task.name)
        return fixed_timing(1)

    monkeypatch.setattr(estimate, "time_task", time_task)
    done = {task.name: 0 for task in study.tasks}
    numbers = estimate.estimate(
        context, done, ranks=1, gpus=0, seconds=1, scratch=Path(), progress=lambda text: None
    )
    assert len(timed) == 2 and numbers.rows[0].seconds == numbers.rows[1].seconds
    assert numbers.seconds == pytest.approx(
        2 * numbers.rows[0].seconds + 2 * numbers.rows[0].expert_seconds
    )


@pytest.mark.parametrize(
    ("error", "found", "advice"),
    [
        (torch.OutOfMemoryError("CUDA"), "needs more memory", "fusion.batch_size"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), "needs more memory", "fusion.batch_size"),
        (TaskError("made with other settings. Set them back"), "made with other", "Set them back"),
        (ValueError("odd\nand long"), "its first steps fail: ValueError: odd", "in training, too"),
    ],
)
def test_a_row_that_would_fail(
    error: Exception, found: str, advice: str, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = estimate_with(context, monkeypatch, {"row": error, "expert": fixed_timing(3)})
    finding = only(numbers.findings, "task-0-resnet-concatenation")
    assert finding.state == "fail" and finding.found.startswith(found) and advice in finding.advice
    assert numbers.seconds is None and numbers.rows[0].seconds is None
    assert "n/a" in drawn(terminal_table(estimates_table(numbers)), 100)


def test_a_row_that_breaks_the_gpu_ends_the_timing(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after it would fail by its fault; so would asking the GPU what is free."""
    error = torch.AcceleratorError("CUDA error: device-side assert triggered")

    def broken(device: torch.device) -> float:
        raise error

    monkeypatch.setattr(estimate, "free_memory", broken)
    numbers = estimate_with(context, monkeypatch, {"row": error, "expert": AssertionError()})
    row, time = numbers.findings
    assert row.name == "task-0-resnet-concatenation" and row.state == "fail"
    assert "device-side assert" in row.found
    assert (time.name, time.state) == ("time", "warn") and "broke this process" in time.found
    assert numbers.seconds is None and numbers.rows[0].expert_seconds is None


def test_an_unreadable_expert_is_said_once(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {"row": CheckpointError("damaged"), "expert": fixed_timing(1)}
    numbers = estimate_with(context, monkeypatch, outcomes)
    assert [finding.name for finding in numbers.findings] == ["memory"]
    assert numbers.seconds is None


@pytest.mark.parametrize(
    ("memory", "batch", "state"),
    [(2**20, 8, "pass"), (2**60, 8, "fail"), (2**60, 4, "warn"), (None, 8, None)],
)
def test_memory_of_all_ranks_together(
    memory: float | None,
    batch: int,
    state: str | None,
    context: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timing = fixed_timing(1, memory, batch)
    numbers = estimate_with(context, monkeypatch, {"row": timing, "expert": timing})
    assert states(numbers.findings) == ([] if state is None else [state])


@pytest.mark.parametrize(
    ("gpus", "micro_batch", "state", "crowd"),
    [(2, None, "pass", 1), (1, None, "fail", 2), (1, "auto", "warn", 2)],
)
def test_ranks_that_share_a_gpu(
    gpus: int,
    micro_batch: Literal["auto"] | None,
    state: str,
    crowd: float,
    context: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two ranks of 5 GiB each: one of them fits into 8 GiB, two don't, and each is half as fast.

    Where micro-batches may shrink, they would: no launch fails by it.
    """
    see_gpus(monkeypatch, gpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (6 * 2**30, 9 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 2 * 2**30)
    recipe = replace(
        context.study.recipe, fusion=replace(context.study.recipe.fusion, micro_batch=micro_batch)
    )
    study = replace(context.study, recipe=recipe)
    on_gpu = replace(context, study=study, device=torch.device("cuda", 0))
    timing = fixed_timing(1, 5 * 2**30)
    outcomes: dict[str, Timing | Exception] = {"row": timing, "expert": timing}
    numbers = estimate_with(on_gpu, monkeypatch, outcomes, gpus=gpus)
    memory = only(numbers.findings, "memory")
    assert memory.state == state and "8.0 GiB free on a GPU" in memory.found
    assert numbers.rows[0].epoch_seconds == pytest.approx(crowd * (28 + 4 / 3))
