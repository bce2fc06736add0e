"""A row of different experts, trained from experts that are there: stopped, resumed, loaded."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionrun.components.manifest import Manifest, read_manifest
from fusionrun.components.starting_experts import load_experts
from fusionrun.components.store import load_expert, load_model, state_hash
from fusionrun.data.loader import Batch, ResidentLoader
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.fusions.branches import in_threads
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.train_task import train as execute
from fusionrun.launch.trainers import expert_groups, row_trainer
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.rows import Member
from fusionrun.study.tasks import Task
from fusionrun.training.errors import StopRequested
from fusionrun.training.inference import collect_logits
from fusionrun.training.optim import Schedule, annealed_restart, cosine_to_tenth, warm_restarts
from tests.tiny import copy_study

MIXED = "{model: [densenet, resnet], fusion: concatenation, NAME}"


@pytest.fixture
def out(trained_study: Path, tmp_path: Path) -> Path:
    """A copy of a study that has resnet's and densenet's experts."""
    return copy_study(trained_study, tmp_path / "out")


def context_of(out: Path, row: str, *overrides: str) -> RunContext:
    recipe = load_recipe(out / "recipe.yaml", [f"rows=[{row}]", "controls=[]", *overrides])
    study = plan_study(recipe, "recipe")
    return open_context(study, torch.device("cpu"), 1, progress=lambda text: None)


def train(context: RunContext, stop: Callable[[], bool] = lambda: False) -> str:
    """Train the only row, or until `stop`; returns its log."""
    (task,) = context.study.row_tasks
    return run(context, task, stop)


def run(context: RunContext, task: Task, stop: Callable[[], bool] = lambda: False) -> str:
    """Execute the task, or until `stop`; returns its log."""
    path = context.study.layout.task_log(task.name)
    with TaskLog(path, task.name) as log:
        device = context.device
        with closing(TaskReporter(context.study, task, Record(), log, device)) as reporter:
            for _ in execute(replace(context, stop_requested=stop), task, reporter):
                pass
    return path.read_text()


def manifest_of(context: RunContext) -> tuple[Path, Manifest]:
    (row,) = context.study.rows
    files = context.study.layout.row(row.model, row.variant)
    return files.directory, read_manifest(files.manifest)


def test_a_stopped_row_ends_as_if_it_had_not_been_stopped(out: Path) -> None:
    whole = context_of(out, MIXED.replace("NAME", "name: whole"))
    log = train(whole)
    _, expected = manifest_of(whole)
    steps = itertools.count(1)
    stopped = context_of(out, MIXED.replace("NAME", "name: stopped"))
    with pytest.raises(StopRequested):
        train(stopped, lambda: next(steps) > 3)  # within an epoch
    assert "continues after epoch" in train(stopped)
    directory, found = manifest_of(stopped)
    assert found.weights == expected.weights  # whatever the row is called
    assert found.settings == expected.settings
    assert found.settings["model"] == "densenet 0, resnet 1" == ", ".join(found.members)
    for k, model in enumerate(("densenet", "resnet")):
        assert f"{model} {k} starts from" in log
    assert "for features of size 10: experts " in log  # densenet's are the larger ones
    model = load_model(directory)
    assert state_hash(model.state_dict()) == found.weights
    assert found.components["adapters"].file == "fusion/adapters_best.pth"
    sizes = [load_expert(directory / f"experts/expert_{k}_best.pth").feature_dim for k in range(2)]
    assert sizes == [10, 8] and found.feature_dim == 10


@pytest.mark.parametrize("control", ["", "frozen", "detached"])
def test_cores_that_others_leave_now_and_then_change_no_bit(out: Path, control: str) -> None:
    """In micro-batches, and over a stop."""

    def row(name: str) -> RunContext:
        more = f"name: {name}, control: {control}" if control else f"name: {name}"
        return context_of(out, MIXED.replace("NAME", more), "fusion.micro_batch=4")

    whole = row("whole")
    train(whole)
    counts, steps = itertools.cycle([1, 2, 3, 2]), itertools.count(1)
    spread = replace(
        row("spread"), side_by_side=lambda row, _: in_threads(row, lambda: next(counts))
    )
    with pytest.raises(StopRequested):
        train(spread, lambda: next(steps) > 3)
    assert "continues after epoch" in train(spread)
    (_, expected), (_, found) = manifest_of(whole), manifest_of(spread)
    assert next(counts) and found.weights == expected.weights
    assert (found.validation, found.test) == (expected.validation, expected.test)


def test_adapters_learn_as_the_fusion_does(out: Path) -> None:
    context = context_of(out, MIXED.replace("NAME", "control: frozen"), "fusion.dim=12")
    (task,) = context.study.row_tasks
    experts = [context.build_expert(member.model) for member in task.row.experts]
    with TaskLog(out / "log", task.name) as log:
        reporter = TaskReporter(context.study, task, Record(), log, context.device)
        trainer = row_trainer(context, task, reporter, experts, [])
    adapters, fusion, _ = groups = trainer.optimisation.groups
    assert [group.name for group in groups] == ["adapters", "fusion", "global_head"]
    assert sorted(map(tuple, (p.shape for p in adapters.parameters))) == [
        (12,), (12,), (12, 8), (12, 10)
    ]  # fmt: skip
    assert (adapters.lr, adapters.clip) == (fusion.lr, fusion.clip)
    assert adapters.schedule is fusion.schedule is cosine_to_tenth


@pytest.mark.parametrize(
    ("name", "schedule"), [("restarts", warm_restarts), ("annealed", annealed_restart)]
)
@pytest.mark.parametrize("model", ["resnet", "[densenet, resnet]"])
def test_the_recipe_names_the_schedule_of_a_rows_experts(
    out: Path, model: str, name: str, schedule: Schedule
) -> None:
    """Of all their groups, also of an architecture with a rate of its own."""
    own_rate = ["models.resnet.row_lr=0.5"] if model != "resnet" else []
    row = f"{{model: {model}, fusion: concatenation}}"
    study = context_of(out, row, f"fusion.schedule={name}", *own_rate).study
    members = study.rows[0].experts
    experts = [study.build_expert(member.model, 4) for member in members]
    groups = expert_groups(study, [member.model for member in members], experts, 0.1)
    assert len(groups) == 1 + len(own_rate)
    assert all(group.schedule is schedule for group in groups)


def test_who_the_experts_are_decides_what_is_drawn(out: Path) -> None:
    studies = [
        context_of(out, f"{{{text}, fusion: concatenation}}").study
        for text in (
            "model: [densenet, resnet]",
            "model: [densenet, resnet], name: a",
            "model: {densenet: 1, resnet: 1}, name: b",
            "model: [resnet, densenet]",
            "model: resnet",
        )
    ]
    same, named, counted, other, _ = (study.rows[0] for study in studies)
    seeds = [study.row_seed(study.rows[0]) for study in studies]
    assert seeds[0] == seeds[1] == seeds[2]
    assert len({*seeds}) == 3  # the others draw otherwise
    assert same.experts == (Member("densenet", 0), Member("resnet", 1))
    assert (named.model, counted.model) == ("mixed-a", "mixed-b")
    assert same.model != other.model and len(same.model) == len("mixed-") + 8


def test_experts_of_another_seed_are_those_of_a_study_of_that_seed(
    out: Path, tmp_path: Path
) -> None:
    """In files of their own; what fusion training draws is the same with either of them."""
    row = "{model: resnet, fusion: concatenation, expert_seed: SEED}"
    here = context_of(out, row.replace("SEED", "43"))
    elsewhere = f"experts.checkpoint_dir={tmp_path / 'given'}"
    there = context_of(out, row.replace("SEED", "null"), elsewhere, "seed=43")
    for context in (here, there):
        for task in context.study.tasks[1:]:
            run(context, task)
    paths = [[c.study.expert_file(*m) for m in c.study.rows[0].experts] for c in (here, there)]
    assert paths[0][0] == out / "expert_checkpoints/resnet/seed-43/expert_0_best.pth"
    for own, other in zip(*paths, strict=True):
        states = [state_hash(load_expert(path).state_dict()) for path in (own, other)]
        old = load_expert(own.parent.with_name(own.name))
        assert states[0] == states[1] != state_hash(old.state_dict())
    before = context_of(out, row.replace("SEED", "null"))
    studies = here.study, before.study
    assert len({study.row_seed(study.rows[0]) for study in studies}) == 1
    log = train(here)
    directory, manifest = manifest_of(here)
    assert directory.name == "concatenation-experts43" and manifest.expert_seed == 43
    assert manifest.experts_from is not None
    for k, (source, path) in enumerate(zip(manifest.experts_from, paths[0], strict=True)):
        assert source.startswith(f"{path} (") and f"resnet {k} starts from {path}" in log
    assert here.study.identity(here.study.row_tasks[0]).differences(
        before.study.identity(before.study.row_tasks[0]).fields
    ) == ["expert_seed: None there, 43 in this recipe"]


def test_the_test_images_are_passed_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after fusion training, fused and by expert: all of it from one pass."""
    context, passes = context_of(out, MIXED.replace("NAME", "name: once")), list[int]()
    batches = ResidentLoader.evaluation_batches

    def counted(loader: ResidentLoader) -> Iterator[Batch]:
        passes.append(loader.num_images)
        return batches(loader)

    monkeypatch.setattr(ResidentLoader, "evaluation_batches", counted)
    train(context)
    (row,) = context.study.row_tasks
    validation, test = len(context.splits.fusion_val), len(context.data.test_labels)
    # of validation's before training, and after every epoch
    assert passes == [validation] * (1 + row.epochs) + [test]
    _, manifest = manifest_of(context)
    assert len(manifest.test["experts"]) == len(manifest.test["before_experts"]) == 2


def test_experts_before_their_fusion_are_measured_as_they_were(out: Path) -> None:
    """On the test images; after it they answer otherwise."""
    row = MIXED.replace("NAME", "name: moved")
    context = context_of(out, row, "fusion.experts_lr=0.5", "fusion.epochs=2")
    started, _ = load_experts(context, context.study.rows[0].experts)
    logits, labels = collect_logits(started, context.test_loader(), context.precision)
    expected = [accuracy(each, labels) for each in logits.unbind(dim=1)]
    train(context)
    _, manifest = manifest_of(context)
    assert manifest.test["before_experts"] == expected != manifest.test["experts"]
