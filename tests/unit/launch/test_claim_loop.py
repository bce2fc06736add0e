"""A rank's experts side by side: each comes out as if alone, whatever becomes of the others."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from fusionrun.common.distributed import read_rank_info
from fusionrun.components.manifest import read_manifest
from fusionrun.launch import broken_process, trainers
from fusionrun.launch.claim_loop import ClaimLoop
from fusionrun.launch.crashes import count_start, crashes_before
from fusionrun.launch.resume import expert_weights
from fusionrun.launch.shutdown import StopSignals
from fusionrun.launch.trainers import expert_trainer
from fusionrun.monitor import record as published
from fusionrun.monitor.record import read_outcome
from fusionrun.study.context import RunContext
from fusionrun.study.planning import plan_study
from fusionrun.study.queue import Queue
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.rows import Member
from fusionrun.study.study import Study
from fusionrun.training import graphs
from fusionrun.training.errors import TaskError
from fusionrun.training.recording import Replay
from fusionrun.training.trainer import Trainer
from tests.tiny import TINY, write_recipe
from tests.unit.training.test_graphs import Record

CPU = torch.device("cpu")
OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
EXPERTS = [f"expert-improved_wide_resnet-{k}" for k in range(3)]
STUDY = (
    "rows=[{model: improved_wide_resnet, fusion: concatenation}]",
    "experts.count=3",
    "experts.epochs=2",
    "models.improved_wide_resnet.dropout=0.3",  # they draw random numbers in turn
    "fusion.epochs=1",
    "fusion.batch_size=16",
    "checkpoint.every_epochs=100",
)


def study_in(folder: Path, *overrides: str) -> Study:
    recipe = load_recipe(
        write_recipe(folder, TINY), [f"output_dir={folder}/out", *STUDY, *overrides]
    )
    return plan_study(recipe, "tiny")


def launch(study: Study, stop: StopSignals | None = None) -> tuple[published.Record, list[int]]:
    """One rank's launch, and how many tasks it had in hand whenever a step was done."""
    record = published.Record()
    queue = Queue(study.tasks, HashStore(), 0, 1)
    loop = ClaimLoop(study, read_rank_info({}), queue, record, stop or StopSignals([]), CPU, 1)
    in_hand: list[int] = []
    step = Trainer.after_step

    def counted(trainer: Trainer) -> None:
        in_hand.append(len(record.in_hand))
        step(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", counted)
        loop.run()
    return record, in_hand


def numbers(study: Study) -> dict[str, Any]:
    """What each task came to, and every number of its CSV that no clock decides."""
    (row,) = study.rows
    found: dict[str, Any] = {
        "row": read_manifest(study.layout.row(row.model, row.variant).manifest).weights
    }
    for k, name in enumerate(EXPERTS):
        weights = expert_weights(study, Member("improved_wide_resnet", k))
        with study.layout.expert_csv("improved_wide_resnet", k).open(newline="") as file:
            rows = list(csv.DictReader(file))
        clocks = ("images_per_second", "seconds", "timestamp")
        found[name] = weights, [[v for c, v in each.items() if c not in clocks] for each in rows]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    study = study_in(tmp_path_factory.mktemp("alone"))
    record, in_hand = launch(study)
    assert (record.state, set(in_hand)) == ("finished", {1})
    return numbers(study)


def at_step(monkeypatch: pytest.MonkeyPatch, name: str, step: int, act: Callable[[], None]) -> None:
    """`act` in place of a certain step of one task's first time."""
    healthy, done = Trainer.train_step, []

    def train_step(trainer: Any, batch: Any) -> Any:
        if name in trainer.reporter._task.name:
            done.append(1)
            if len(done) == step:
                act()
        return healthy(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def raising(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def log(study: Study, name: str) -> str:
    return study.layout.task_log(name).read_text()


@pytest.mark.parametrize("together", [2, 3, 8])
def test_side_by_side_they_come_out_as_alone(
    tmp_path: Path, alone: dict[str, Any], together: int
) -> None:
    study = study_in(tmp_path, f"experts.together={together}")
    record, in_hand = launch(study)
    assert (record.state, max(in_hand)) == ("finished", min(together, 3))
    assert in_hand[-1] == 1  # a row is alone
    assert numbers(study) == alone
    assert record.busy_seconds > 0
    sizes = {2: [2, 2, 1], 3: [3, 3, 3], 8: [3, 3, 3]}[together]
    for name, size in zip(EXPERTS, sizes, strict=True):
        outcome = read_outcome(study.layout.outcome(name))
        assert outcome is not None and outcome.seconds
        assert (outcome.state, outcome.together) == ("done", size)
        lines = log(study, name).splitlines()
        assert all(line.startswith(f"[{name}]") for line in lines) and lines[-1].endswith("done")
        assert sum("epoch " in line for line in lines) == 2
    assert not list(study.layout.crashes("x").parent.glob("*.json"))


@pytest.mark.parametrize("together", [1, 2, 3])
def test_stopped_at_any_step_all_resume(
    tmp_path: Path, alone: dict[str, Any], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, stop = study_in(tmp_path, "experts.together=3"), StopSignals([])
    with monkeypatch.context() as patch:
        at_step(patch, EXPERTS[1], 4 + together, stop.request)
        record, _ = launch(study, stop)
    assert record.state == "stopped"
    assert [each.task for each in record.in_hand] == [1, 2, 3]  # the table shows them as stopped
    for name in EXPERTS:
        assert "stopped; the same command resumes" in log(study, name)
        assert not study.layout.crashes(name).exists()
        assert read_outcome(study.layout.outcome(name)) is None
    again = study_in(tmp_path, f"experts.together={together}")
    assert launch(again)[0].state == "finished"
    assert numbers(again) == alone
    assert all("continues after epoch" in log(again, name) for name in EXPERTS)


def test_one_that_fails_takes_nobody_with_it(
    tmp_path: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(tmp_path, "experts.together=3")
    at_step(monkeypatch, EXPERTS[1], 3, raising(TaskError("a bad day")))
    record, _ = launch(study)
    outcomes = [read_outcome(study.layout.outcome(task.name)) for task in study.tasks]
    assert [each and each.state for each in outcomes] == ["failed", "done", "failed", "done"]
    assert log(study, EXPERTS[1]).endswith("failed: a bad day\n")
    said = f"failed: can't start: {EXPERTS[1]} failed; see {study.layout.task_log(EXPERTS[1])}"
    assert said in log(study, study.rows[0].name)
    assert (record.state, record.in_hand) == ("finished", [])
    for k in (0, 2):
        assert expert_weights(study, Member("improved_wide_resnet", k)) == alone[EXPERTS[k]][0]


@pytest.mark.parametrize(("step", "left"), [(1, 1), (3, 2)])
def test_one_that_finds_no_memory_waits_for_room(
    tmp_path: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, step: int, left: int
) -> None:
    """Nothing of it is trained in smaller parts, as it would be if nobody else gave way."""
    study = study_in(tmp_path, "experts.together=3")
    calls: list[int] = []

    def runs_out(model: nn.Module, images: Any) -> None:
        calls.append(1)
        if len(calls) == step:
            raise OUT

    def build(context: RunContext, task: Any, reporter: Any) -> Trainer:
        trainer = expert_trainer(context, task, reporter)
        if task.name == EXPERTS[1]:
            trainer.model.register_forward_pre_hook(runs_out)
        return trainer

    monkeypatch.setattr(trainers, "expert_trainer", build)
    record, _ = launch(study)
    assert record.state == "finished"
    assert numbers(study) == alone
    text = log(study, EXPERTS[1])
    assert f"this rank trains {left} at a time from now on" in text
    assert f"continues after epoch 0, step {step - 1}" in text
    assert "micro-batches" not in text
    assert all("out of memory" not in log(study, EXPERTS[k]) for k in (0, 2))


def test_memory_that_runs_out_again_and_again_leaves_one_at_a_time(
    tmp_path: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a network is built, of which nothing is saved yet."""

    def build(context: RunContext, *arguments: Any) -> Trainer:
        if context.has_company():
            raise OUT
        return expert_trainer(context, *arguments)

    monkeypatch.setattr(trainers, "expert_trainer", build)
    study = study_in(tmp_path, "experts.together=3")
    assert launch(study)[0].state == "finished"
    assert numbers(study) == alone
    assert "this rank trains 1 at a time from now on" in log(study, EXPERTS[1])


@pytest.mark.parametrize("shortages", [0, 1])
def test_each_replays_a_graph_of_its_own_or_waits_for_room_for_one(
    tmp_path: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, shortages: int
) -> None:
    made, failed = Record(), list[int]()

    def record(*arguments: Any) -> Replay:
        if len(failed) < shortages:
            failed.append(1)
            raise OUT
        return made(*arguments)

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "RECORDS", ("cpu",))
    study = study_in(tmp_path, "experts.together=3")
    assert launch(study)[0].state == "finished"
    assert numbers(study) == alone
    assert made.recorded >= 3 and made.replayed > 3
    assert all("steps are one CUDA graph from now on" in log(study, name) for name in EXPERTS)
    waited = ["this rank trains 2 at a time from now on" in log(study, name) for name in EXPERTS]
    assert waited == [bool(shortages), False, False]


def test_a_device_that_breaks_for_good_ends_all_and_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rank waits for an expert that nobody trains."""
    study = study_in(tmp_path, "experts.together=3")
    monkeypatch.setattr(broken_process, "broken_by", lambda error, device: "an illegal access")
    at_step(monkeypatch, "expert-", 5, raising(RuntimeError("CUDA error")))
    record, _ = launch(study)
    assert record.state == "failed" and "nobody starts it again" in record.note
    states = [read_outcome(study.layout.outcome(name)) for name in EXPERTS]
    assert sorted(each.state for each in states if each) == ["done", "done", "failed"]


def test_those_whose_process_died_are_trained_alone(tmp_path: Path, alone: dict[str, Any]) -> None:
    study = study_in(tmp_path, "experts.together=3")
    for task in study.tasks:
        if task.name in EXPERTS[:2]:
            study.layout.crashes(task.name).parent.mkdir(parents=True, exist_ok=True)
            count_start(study, task, rank=0)
    (line,) = crashes_before(study)
    assert line.startswith(
        f"one of {EXPERTS[0]}, {EXPERTS[1]} (each is trained alone now) took its"
    )
    _, in_hand = launch(study)
    assert set(in_hand) == {1}
    assert numbers(study) == alone
