"""A few real steps, timed."""

from pathlib import Path

import pytest
import torch

from fusionrun.doctor import step_timing
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.paths import expert_file
from fusionrun.training.checkpoint import CheckpointError
from tests.unit.doctor.one_row import CPU, change, copy_of, files_below


@pytest.mark.parametrize("kind", ["row", "expert"])
def test_a_few_real_steps_are_timed(
    kind: str, context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_timing, "PROBE", 100)  # as if there were time for the full batch
    before = files_below(context.study.layout.output_dir)
    task = next(task for task in context.study.tasks if task.kind == kind)
    timing = step_timing.time_task(context, task, 0, 0.2, tmp_path)
    full = 8 if kind == "row" else 16
    assert (timing.batch, timing.full_batch, timing.is_scaled) == (full, full, False)
    assert 1 <= timing.steps <= step_timing.MAX_STEPS
    assert timing.seconds_per_image * full * timing.steps >= 0.2 * 0.99
    assert timing.memory is not None and 2**27 < timing.memory < 2**34
    assert files_below(context.study.layout.output_dir) == before


def test_a_large_batch_is_timed_in_part(context: RunContext, tmp_path: Path) -> None:
    timing = step_timing.time_task(context, context.study.tasks[0], 0, 1e-6, tmp_path)
    assert (timing.steps, timing.batch, timing.full_batch) == (1, 4, 8)
    assert timing.is_scaled and timing.memory is not None


def test_experts_that_are_there_are_timed(trained: Path, tmp_path: Path) -> None:
    study = copy_of(trained)
    context = open_context(study, CPU, 1, progress=lambda text: None)
    step_timing.time_task(context, study.tasks[0], 0, 0.01, tmp_path)
    assert not (tmp_path / "experts").exists()
    change(expert_file(study.checkpoint_dir, "resnet", 0), num_classes=9)
    with pytest.raises(CheckpointError):
        step_timing.time_task(context, study.tasks[0], 0, 0.01, tmp_path)


def test_the_stopwatch_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 103.0, 103.5])
    watch = step_timing.Stopwatch(CPU, seconds=2.5)
    monkeypatch.setattr(step_timing.time, "perf_counter", lambda: next(now))
    assert not watch() and not watch()
    with pytest.raises(step_timing.Enough):
        watch()
    assert (watch.steps, watch.seconds) == (2, 3.5)


def test_the_stopwatch_waits_for_a_gpu_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    watch = step_timing.Stopwatch(torch.device("cuda", 0), seconds=0)
    for _ in range(step_timing.WARM_UP["cuda"]):
        watch()
    assert len(waits) == 1
    with pytest.raises(step_timing.Enough):
        watch()
    assert watch.steps == 1 and len(waits) == 2


def test_activations_are_what_grows_with_the_batch() -> None:
    watch = step_timing.Stopwatch(CPU, seconds=1)
    layer = torch.nn.Linear(1000, 10)
    images = torch.ones(4, 1000)
    with torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor):
        layer(images.requires_grad_()).square().sum()
    watch()
    assert watch.activations == 4 * (4000 + 40)  # the input and what is squared, not the weights
