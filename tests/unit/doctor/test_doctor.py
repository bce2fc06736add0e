"""`doctor`: every check on what passes it and on what doesn't; the estimate; the tables."""

import io
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from fusionrun.cli import main
from fusionrun.common.distributed import LaunchError, RankInfo, read_rank_info
from fusionrun.common.text import duration
from fusionrun.components.store import load_component
from fusionrun.doctor import checks, doctor, estimate, machine, step_timing
from fusionrun.doctor.step_timing import Timing
from fusionrun.doctor.tables import estimates_table, findings_table, verdict
from fusionrun.launch import preflight
from fusionrun.launch.preflight import Finding
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.train_task import train_expert, train_row
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.paths import expert_file
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.study import Study, plan_study
from fusionrun.study.tasks import RowTask, Task
from fusionrun.tables.terminal import terminal_table
from fusionrun.training import checkpoint
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.errors import StopRequested, TaskError
from tests.tiny import write_recipe

CPU = torch.device("cpu")

ONE_ROW = """
output_dir: out
rows:
  - {model: resnet, fusion: concatenation}
data: {name: synthetic, num_classes: 4, train_images: 160, test_images: 32, image_size: 16}
models: {resnet: {width: 8, blocks: [1]}}
experts: {count: 2, epochs: 2, batch_size: 16, augmentation: none}
fusion: {epochs: 2, batch_size: 8, augmentation: none}
runtime: {device: cpu, threads: 1}
checkpoint: {every_epochs: 1}
logs: {tensorboard: false}
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory and a folder for scratch files, both empty; no trace of a launcher."""
    (tmp_path / "here").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    outer = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "SLURM_", "FUSIONRUN_")
    for name in [name for name in os.environ if name.startswith(outer)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of ONE_ROW's launch."""
    folder = tmp_path_factory.mktemp("trained")
    study = plan(f"output_dir={folder / 'out'}", folder=folder)
    context = open_context(study, CPU, 1, progress=lambda text: None)
    for task in sorted(study.tasks, key=lambda task: task.kind):
        execute(context, task)
    return folder / "out"


def execute(context: RunContext, task: Task) -> None:
    with TaskLog(context.study.layout.task_log(task.name), task.name) as log:
        reporter = TaskReporter(context.study, task, Record(), log, CPU)
        if isinstance(task, RowTask):
            train_row(context, task, reporter)
        else:
            train_expert(context, task, reporter)


def plan(*overrides: str, text: str = ONE_ROW, folder: Path | None = None) -> Study:
    path = (folder or Path()) / "one.yaml"
    path.write_text(text)
    return plan_study(load_recipe(path, overrides), "one.yaml")


def copy_of(trained: Path) -> Study:
    """The study whose output is a copy of what was trained."""
    shutil.copytree(trained, "out")
    return plan()


def rank_info(ranks: int = 1) -> RankInfo:
    return replace(read_rank_info({}), world_size=ranks, local_world_size=ranks)


def examine(study: Study) -> list[Finding]:
    """All findings but for the timing, which has tests of its own."""
    numbers = estimate.Estimate(ranks=1, rows=[], seconds=0.0, findings=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "estimate", lambda *arguments, **more: numbers)
        scratch = Path(tempfile.mkdtemp())
        return doctor.run_all_checks(study, rank_info(), scratch, 1.0, lambda text: None)[0]


def only(findings: Any, name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def states(findings: Any) -> list[str]:
    return [finding.state for finding in findings]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ------------------------------------------------------------------ folders and disk


def test_writable_folders_pass_and_nothing_is_left() -> None:
    study = plan()
    before = files_below(Path())
    (finding,) = preflight.check_folders(study)
    assert finding.state == "pass" and "out" in finding.found
    assert files_below(Path()) == before


def test_a_file_in_the_way_fails() -> None:
    Path("taken").write_text("")
    findings = list(preflight.check_folders(plan("output_dir=taken/out")))
    assert set(states(findings)) == {"fail"}
    assert "taken is a file" in findings[0].found and "output_dir" in findings[0].advice


def test_what_refuses_files_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert "can't be written to (Permission denied)" in next(preflight.check_folders(plan())).found


def test_folders_that_nothing_is_written_to_need_no_permission(trained: Path) -> None:
    copy_of(trained)
    Path("readable").symlink_to(Path("out/expert_checkpoints").absolute())
    Path("taken").write_text("")
    study = plan("experts.checkpoint_dir=readable", "data.splits_dir=out/splits")
    (finding,) = preflight.check_folders(study)
    assert (finding.state, finding.found) == ("pass", "out")


@pytest.mark.parametrize(("free", "state"), [(0.5, "fail"), (1.1, "warn"), (100.0, "pass")])
def test_disk_space(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = plan()
    need = sum(preflight.expected_bytes(study, 1).values())
    usage = SimpleNamespace(free=free * need)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    (finding,) = preflight.check_disk(study, 1)
    assert finding.state == state
    assert ("free" in finding.advice) == (state == "fail")


def tensor_bytes(value: Any) -> int:
    """Of all tensors in what a checkpoint holds."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    inner = value.values() if isinstance(value, dict) else value
    return sum(map(tensor_bytes, inner)) if isinstance(value, dict | list | tuple) else 0


def test_the_disk_estimate_is_what_a_launch_writes(trained: Path) -> None:
    """All files of weights, and the older resume state that the finished row has removed."""
    expected = sum(preflight.expected_bytes(plan(), 1).values())
    files = [*trained.rglob("*.pth"), trained / "resnet_fusions/concatenation/checkpoint.pth"]
    written = sum(tensor_bytes(checkpoint.load(path)) for path in files)
    assert expected == pytest.approx(written, rel=0.03)
    assert sum(preflight.expected_bytes(copy_of(trained), 1).values()) == 0


def test_experts_on_another_disk_are_counted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = preflight.expected_bytes(plan("experts.checkpoint_dir=elsewhere"), 1)
    assert needs[Path("elsewhere")] == sum(
        everything
        for name, (everything, _) in preflight.weight_bytes(plan()).items()
        if "exp" in name
    )


def test_frozen_experts_have_no_optimizer_state() -> None:
    free = preflight.weight_bytes(plan())["task-0-resnet-concatenation"]
    weights = preflight.weight_bytes(plan("controls=[frozen]"))
    frozen = weights["task-1-resnet-concatenation-frozen"]
    assert free[0] == free[1] == frozen[0] > frozen[1] > 0


# ------------------------------------------------------------------ devices, threads, port


def see_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")


def test_a_gpu_that_is_asked_for_and_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    (finding,) = preflight.check_device(plan("runtime.device=cuda"), 1)
    assert finding.state == "fail" and "runtime.device=auto" in finding.advice


def test_gpus_that_are_there_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    (finding,) = preflight.check_device(plan("runtime.device=auto"), 4)
    assert (finding.state, finding.found) == ("pass", "2 x H100; 4 ranks share them")
    (finding,) = preflight.check_device(plan("runtime.device=cpu"), 4)
    assert (finding.state, finding.found) == ("pass", "CPU")


def test_a_gpu_that_torch_overlooks_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    there = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: "nvidia0" in str(self) or there(self))
    (finding,) = preflight.check_device(plan("runtime.device=auto"), 1)
    assert finding.state == "warn" and "CUDA" in finding.advice


@pytest.mark.parametrize(
    ("ranks", "threads", "state", "advice"),
    [
        (2, "null", "pass", ""),
        (4, "1", "pass", ""),
        (8, "null", "pass", ""),
        (8, "2", "warn", "set runtime.threads=1"),
        (2, "4", "warn", "set runtime.threads=2"),
    ],
)
def test_threads(
    ranks: int, threads: str, state: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    (finding,) = preflight.check_threads(plan(f"runtime.threads={threads}"), ranks)
    assert finding.state == state and finding.advice.startswith(advice)


def test_a_cpu_computes() -> None:
    (finding,) = machine.check_compute([CPU])
    assert finding.state == "pass"


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("wrong", "wrong results"),
        ("nan", "wrong results"),
        ("moody", "other results"),
        ("dead", "broke: illegal memory access"),
    ],
)
def test_a_broken_device_fails(fault: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def compute(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        calls.append(dtype)
        result = torch.ones(8, dtype=torch.float64)
        if dtype == torch.float64:
            return result
        if fault == "dead":
            raise RuntimeError("illegal memory access\nand more")
        factors = {"wrong": 1.01, "nan": float("nan"), "moody": 1 + 1e-7 * len(calls)}
        return result * factors[fault]

    monkeypatch.setattr(machine, "compute", compute)
    (finding,) = machine.check_compute([CPU])
    assert finding.state == "fail" and finding.found.startswith(found)
    assert "don't train on it" in finding.advice


@pytest.mark.parametrize(("free", "state"), [(95, "pass"), (50, "warn")])
def test_gpu_memory_held_by_others(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    assert list(machine.check_gpu_memory([CPU])) == []
    (finding,) = machine.check_gpu_memory([torch.device("cuda", 0)])
    assert (finding.name, finding.state) == ("memory cuda:0", state)


def test_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(machine.check_port()) == ["pass"]

    def refuse(address: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    (finding,) = machine.check_port()
    assert finding.state == "fail" and "Cannot assign" in finding.found and finding.advice


def test_a_busy_machine_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(machine.check_load()) == []
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert states(machine.check_load()) == ["warn"]


# ------------------------------------------------------------------ data and splits


def test_data_and_splits_that_are_fine() -> None:
    findings = examine(plan())
    assert only(findings, "data").found.startswith("synthetic: 160 training and 32 test images")
    splits = only(findings, "splits")
    assert splits.state == "pass" and "`train` writes them" in splits.found
    assert not Path("out").exists()


def test_missing_data_fails_and_the_rest_is_still_checked() -> None:
    findings = examine(plan("data.name=image_folder", "data.root=nowhere"))
    data = only(findings, "data")
    assert data.state == "fail" and "nowhere" in data.found and "data.root" in data.advice
    assert only(findings, "experts").state == "pass"
    assert only(findings, "time").state == "warn"


def test_what_loading_left_out_is_a_warning(trained: Path) -> None:
    context = open_context(copy_of(trained), CPU, 1, progress=lambda text: None)
    data = replace(context.data, notes=("2 files skipped",))
    assert states(checks.check_data(data)) == ["pass", "warn"]


def test_stored_splits_pass_and_stay_as_they_are(trained: Path) -> None:
    study = copy_of(trained)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    splits = only(examine(study), "splits")
    assert splits.state == "pass" and "as stored" in splits.found
    assert before == {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


def test_a_lone_holdout_is_only_read() -> None:
    Path("given").mkdir()
    np.save("given/fusion_holdout_indices.npy", np.arange(40))
    splits = only(examine(plan("data.splits_dir=given")), "splits")
    assert splits.state == "pass" and "from the holdout in given" in splits.found
    assert files_below(Path("given")) == {"fusion_holdout_indices.npy"}


def test_overlapping_split_files_fail(trained: Path) -> None:
    study = copy_of(trained)
    pool, holdout = (
        study.splits_dir / f"{name}_indices.npy" for name in ("expert_train", "fusion_holdout")
    )
    indices = np.load(pool)
    indices[0] = np.load(holdout)[0]
    np.save(pool, indices)
    splits = only(examine(study), "splits")
    assert splits.state == "fail" and "shared with the holdout is 1" in splits.found
    assert str(pool) in splits.found and "set data.splits_dir to another folder" in splits.advice


def test_overlaps_are_proven_not_assumed(trained: Path) -> None:
    study = copy_of(trained)
    splits = open_context(study, CPU, 1, progress=lambda text: None).splits
    leaking = replace(splits, fusion_val=np.append(splits.fusion_val, splits.expert_train[0][:3]))
    (finding,) = checks.check_splits(study, leaking)
    assert finding.state == "fail" and finding.found.startswith("3 images shared by an expert's")
    trained_on = replace(splits, fusion_val=splits.fusion_train[:1])
    (finding,) = checks.check_splits(study, trained_on)
    assert finding.found == "1 image shared by fusion training and validation"


# ------------------------------------------------------------------ experts


def test_missing_experts_will_be_trained() -> None:
    (finding,) = preflight.check_expert_files(plan())
    assert (finding.state, finding.found) == ("pass", "to be trained, 2 epochs each: 2 resnet")


def test_experts_that_should_be_somewhere_and_are_not_are_a_warning() -> None:
    (finding,) = preflight.check_expert_files(plan("experts.checkpoint_dir=typo"))
    assert finding.state == "warn" and "none in typo" in finding.found
    assert "experts.checkpoint_dir" in finding.advice


def test_experts_that_fit(trained: Path) -> None:
    study = copy_of(trained)
    assert states(preflight.check_expert_files(study)) == ["pass"]
    findings = [finding for finding in examine(study) if finding.name == "experts"]
    assert states(findings) == ["pass"] and findings[0].found.startswith("resnet: 2 fit, valid")


def test_a_truncated_expert(trained: Path) -> None:
    study = copy_of(trained)
    path = expert_file(study.checkpoint_dir, "resnet", 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    quick, _ = preflight.check_expert_files(study)
    assert quick.state == "warn" and str(path) in quick.found and quick.advice
    failed, fine = (finding for finding in examine(study) if finding.name == "experts")
    assert failed.state == "fail" and str(path) in failed.found and "remove it" in failed.advice
    assert fine.found.startswith("resnet: 1 fit")


def change(path: Path, **values: Any) -> None:
    checkpoint.save(path, {**checkpoint.load(path), **values})


@pytest.mark.parametrize(
    ("values", "state", "found"),
    [
        ({"num_classes": 7}, "fail", "is for 7 classes"),
        ({"classes": ["a", "b", "c", "d"]}, "fail", "other classes: a, b, c, ... (4); here"),
        ({"mean": [0.1, 0.2, 0.3]}, "warn", "normalised with 0.1 0.2 0.3"),
        ({"image_size": 32}, "warn", "was trained on 32x32 images, here 16x16"),
    ],
)
def test_an_expert_of_other_data(
    values: dict[str, Any], state: str, found: str, trained: Path
) -> None:
    study = copy_of(trained)
    data = open_context(study, CPU, 1, progress=lambda text: None).data
    change(expert_file(study.checkpoint_dir, "resnet", 0), **values)
    finding = next(iter(checks.check_experts(study, data)))
    assert finding.state == state and found in finding.found and finding.advice


def test_a_bare_state_dict_is_fine_where_it_fits(trained: Path) -> None:
    study = copy_of(trained)
    data = open_context(study, CPU, 1, progress=lambda text: None).data
    path = expert_file(study.checkpoint_dir, "resnet", 0)
    checkpoint.save(path, load_component(path, "expert")[1])
    (finding,) = checks.check_experts(study, data)
    assert finding.state == "pass" and "n/a" in finding.found
    weights = checkpoint.load(path)
    weights["classifier.weight"] = weights["classifier.weight"][:, :-1]
    checkpoint.save(path, weights)
    assert "found shape" in next(iter(checks.check_experts(study, data))).found


# ------------------------------------------------------------------ earlier results


def test_a_finished_study_has_nothing_left_to_do(trained: Path) -> None:
    study = copy_of(trained)
    findings = examine(study)
    assert only(findings, "earlier results").found == "3 of 3 tasks done, 0 begun"
    assert only(findings, "time").found == "nothing is left to do"


def test_results_of_other_settings_fail(trained: Path) -> None:
    copy_of(trained)
    earlier, done = (
        finding for finding in examine(plan("fusion.epochs=7")) if finding.name == "earlier results"
    )
    assert done.found == "2 of 3 tasks done, 0 begun"
    assert earlier.state == "fail" and "fusion.epochs: 2 there, 7 in this recipe" in earlier.found
    assert "choose another output_dir" in earlier.advice


def begin_expert(study: Study) -> tuple[Task, Path]:
    """An expert's training, stopped in its second epoch."""
    context = open_context(study, CPU, 1, progress=lambda text: None)
    task = study.expert_task("resnet", 0)
    steps = iter(range(100))
    per_epoch = -(-len(context.splits.expert_train[0]) // 16)
    stopping = replace(context, stop_requested=lambda: next(steps) > per_epoch)
    with pytest.raises(StopRequested):
        execute(stopping, task)
    return task, study.layout.expert_resume("resnet", 0)


def test_what_was_begun_goes_on() -> None:
    study = plan()
    task, resume = begin_expert(study)
    done, findings = checks.finished_epochs(study)
    assert done[task.name] == 1 and states(findings) == ["pass"]
    assert "0 of 3 tasks done, 1 begun" in findings[0].found
    resume.write_bytes(resume.read_bytes()[:100])
    done, findings = checks.finished_epochs(study)
    assert findings[0].state == "warn" and "resumes after epoch 1" in findings[0].advice
    checkpoint.ResumeFile(resume).previous.unlink()
    done, findings = checks.finished_epochs(study)
    assert findings[0].state == "warn" and "starts over" in findings[0].advice
    assert done[task.name] == 0


# ------------------------------------------------------------------ timing


@pytest.fixture(scope="module")
def context(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A study that has its splits and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copytree(trained / "splits", folder / "out/splits")
    study = plan(f"output_dir={folder / 'out'}", folder=folder)
    return open_context(study, CPU, 1, progress=lambda text: None)


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


def fixed_timing(seconds: float, memory: float | None = 2**20, batch: int = 8) -> Timing:
    return Timing(seconds, steps=5, batch=batch, full_batch=8, memory=memory)


def estimate_with(
    context: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: dict[str, Timing | Exception],
    done: dict[str, int] | None = None,
) -> estimate.Estimate:
    """The estimate where timing a kind of task gives `outcomes`."""

    def time_task(context: RunContext, task: Task, *rest: object) -> Timing:
        outcome = outcomes[task.kind]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(estimate, "time_task", time_task)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2)))
    done = done or {task.name: 0 for task in context.study.tasks}
    return estimate.estimate(
        context, done, ranks=2, seconds=1, scratch=Path(), progress=lambda text: None
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
        context, done, ranks=1, seconds=1, scratch=Path(), progress=lambda text: None
    )
    assert len(timed) == 2 and numbers.rows[0].seconds == numbers.rows[1].seconds
    assert numbers.seconds == pytest.approx(
        2 * numbers.rows[0].seconds + 2 * numbers.rows[0].expert_seconds
    )


@pytest.mark.parametrize(
    ("error", "found", "advice"),
    [
        (torch.OutOfMemoryError("CUDA"), "needs more memory", "fusion.batch_size"),
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


@pytest.mark.parametrize(("gpus", "state", "crowd"), [(2, "pass", 1), (1, "fail", 2)])
def test_ranks_that_share_a_gpu(
    gpus: int, state: str, crowd: float, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks of 5 GiB each: one of them fits into 8 GiB, two don't, and each is half as fast."""
    see_gpus(monkeypatch, gpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (6 * 2**30, 9 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 2 * 2**30)
    on_gpu = replace(context, device=torch.device("cuda", 0))
    timing = fixed_timing(1, 5 * 2**30)
    numbers = estimate_with(on_gpu, monkeypatch, {"row": timing, "expert": timing})
    memory = only(numbers.findings, "memory")
    assert memory.state == state and "8.0 GiB free on a GPU" in memory.found
    assert numbers.rows[0].epoch_seconds == pytest.approx(crowd * (28 + 4 / 3))


# ------------------------------------------------------------------ the part that train runs


def test_a_broken_check_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("a", "pass", "fine")
        raise KeyError("b")

    findings = preflight.run_checks([("a", broken), ("c", lambda: [Finding("c", "pass", "")])])
    assert states(findings) == ["pass", "fail", "pass"]
    assert "KeyError" in findings[1].found and findings[1].name == "a"


def test_a_launch_that_can_start_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_below(Path())
    warnings: list[str] = []
    study = plan()
    files = files_below(Path())
    preflight.require_startable(study, rank_info(), warnings.append)
    assert warnings == [] and files_below(Path()) == files and before < files
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    preflight.require_startable(plan("runtime.threads=2"), rank_info(ranks=4), warnings.append)
    assert len(warnings) == 1 and warnings[0].startswith("CPU threads: 4 ranks x 2 threads on 1")


def test_a_launch_that_cannot_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(LaunchError, match=r"disk space: .* free in .*larger disk"):
        preflight.require_startable(plan(), rank_info(), lambda text: None)


def test_a_launch_survives_a_check_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise OverflowError("statvfs")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    warnings: list[str] = []
    preflight.require_startable(plan(), rank_info(), warnings.append)
    assert len(warnings) == 1 and "OverflowError" in warnings[0]


# ------------------------------------------------------------------ the command


def drawn(what: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_doctor_on_a_study_that_is_fine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_recipe(Path())
    assert main(["doctor", str(path), "--ranks", "2", "--seconds", "0.01"]) == 0
    output = capsys.readouterr().out
    assert "fail" not in output and "Ready to train" in output
    table = output[output.index("Estimate for 2 ranks") :]
    for row in load_recipe(path).rows:
        (line,) = [text for text in table.splitlines() if f"{row.model} {row.fusion}" in text]
        # Memory is the whole process's, and the one that runs all tests may need more than a GiB.
        assert "2 x " in line and re.search(r"~[\d.]+ [MG]iB", line) and "n/a" not in line
    assert files_below(Path()) == {"tiny.yaml"}
    assert files_below(tmp_path / "scratch") == set()


def test_doctor_on_a_study_that_would_fail(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("taken").write_text("")
    words = ["data.name=image_folder", "data.root=nowhere", "output_dir=taken/out"]
    assert main(["doctor", str(write_recipe(Path())), *words]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    output = " ".join(captured.out.split())
    assert "-> set output_dir to a folder that you may write to" in output
    assert "fail data" in output and "Set data.root to the folder" in output
    assert "checks failed" in output
    assert files_below(tmp_path / "scratch") == set()


def test_doctor_without_the_gpu_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, 0)
    assert main(["doctor", str(write_recipe(Path(), ONE_ROW)), "runtime.device=cuda"]) == 1
    output = capsys.readouterr().out
    assert "torch sees no GPU" in output and "not measured" in output


@pytest.mark.parametrize(
    "words", [["fusion.epochs=3"], ["R", "--ranks", "0"], ["R", "--seconds", "nan"], ["R", "a.b=1"]]
)
def test_a_wrong_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(write_recipe(Path()))
    assert main(["doctor", *(recipe if word == "R" else word for word in words)]) == 2
    assert capsys.readouterr().err.startswith("fusionrun: ")


def test_under_torchrun_one_rank_checks_for_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", str(write_recipe(Path()))]) == 0
    assert capsys.readouterr().out == ""


def test_an_interrupted_doctor_goes_quietly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "open_context", interrupt)
    console = Console(file=io.StringIO(), width=80)
    code = doctor.doctor(plan(), rank_info(), console, ranks=1, seconds=0.1)
    assert code == doctor.INTERRUPTED and files_below(tmp_path / "scratch") == set()


@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_and_can_be_read_as_plain_text(
    width: int, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        Finding("data", "pass", "cifar100: [50000] images"),
        Finding("disk space", "warn", "little", "do something about that"),
        Finding("experts", "fail", "/a/very/long/path/" * 12, "look [there]"),
    ]
    text = drawn(terminal_table(findings_table("runs/[x].yaml", findings), width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "[50000]" in text and "-> look [there]" in text and "\x1b" not in text
    scaled = {"row": fixed_timing(1, batch=4), "expert": fixed_timing(900)}
    text = drawn(
        terminal_table(estimates_table(estimate_with(context, monkeypatch, scaled)), width), width
    )
    assert max(map(len, text.splitlines())) <= width
    assert "~29s" in text and "5 x 4/8" in text and "~: a smaller batch" in text
    assert verdict(findings).startswith("1 check failed")
    assert verdict(findings[:2]) == "Ready to train; 1 warning above."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.03, "0.03s"),
        (8.06, "8.1s"),
        (59.6, "1m00s"),
        (3720, "1h02m"),
        (505, "8m25s"),
        (599.7, "10m"),
        (3599, "1h00m"),
        (3 * 86400 + 4 * 3600, "3d04h"),
        (86399, "1d00h"),
        (148.4 * 86400, "148d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
