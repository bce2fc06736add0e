"""The study that the doctor's tests examine, and how they do."""

import io
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fusionrun.common.distributed import RankInfo, read_rank_info
from fusionrun.doctor import doctor, estimate, study_checks
from fusionrun.doctor.step_timing import Timing
from fusionrun.launch.checks.finding import Finding
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.train_task import train
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task
from fusionrun.training import checkpoint

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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of ONE_ROW's launch."""
    folder = tmp_path_factory.mktemp("trained")
    study = plan(f"output_dir={folder / 'out'}", folder=folder)
    context = open_context(study, CPU, 1, progress=lambda text: None)
    for task in sorted(study.tasks, key=lambda task: task.kind):
        execute(context, task)
    return folder / "out"


@pytest.fixture(scope="session")
def context(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A study that has its splits and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copytree(trained / "splits", folder / "out/splits")
    study = plan(f"output_dir={folder / 'out'}", folder=folder)
    return open_context(study, CPU, 1, progress=lambda text: None)


def execute(context: RunContext, task: Task) -> None:
    with TaskLog(context.study.layout.task_log(task.name), task.name) as log:
        reporter = TaskReporter(context.study, task, Record(), log, CPU)
        for _ in train(context, task, reporter):
            pass


def plan(*overrides: str, text: str = ONE_ROW, folder: Path | None = None) -> Study:
    path = (folder or Path()) / "one.yaml"
    path.write_text(text)
    return plan_study(load_recipe(path, overrides), "one.yaml")


def examine(study: Study) -> list[Finding]:
    """All findings but for the timing, which has tests of its own."""
    numbers = estimate.Estimate(ranks=1, rows=[], seconds=0.0, findings=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_checks, "estimate", lambda *arguments, **more: numbers)
        scratch = Path(tempfile.mkdtemp())
        return doctor.run_all_checks(study, rank_info(), scratch, 1.0, lambda text: None)[0]


def copy_of(trained: Path) -> Study:
    """The study whose output is a copy of what was trained."""
    shutil.copytree(trained, "out")
    return plan()


def rank_info(ranks: int = 1) -> RankInfo:
    return replace(read_rank_info({}), world_size=ranks, local_world_size=ranks)


def only(findings: Any, name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def change(path: Path, **values: Any) -> None:
    checkpoint.save(path, {**checkpoint.load(path), **values})


def states(findings: Any) -> list[str]:
    return [finding.state for finding in findings]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def see_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))


def fixed_timing(seconds: float, memory: float | None = 2**20, batch: int = 8) -> Timing:
    return Timing(seconds, steps=5, batch=batch, full_batch=8, memory=memory)


def estimate_with(
    context: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: dict[str, Timing | Exception],
    done: dict[str, int] | None = None,
    gpus: int = 0,
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
        context, done, ranks=2, gpus=gpus, seconds=1, scratch=Path(), progress=lambda text: None
    )


def drawn(what: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text
