"""Backbones of other libraries in a launch: what is checked, downloaded, frozen, trained, saved."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch

from fusionrun.common.distributed import LaunchError
from fusionrun.components.store import load_expert, load_model
from fusionrun.experts.base import Normalisation
from fusionrun.launch import run_logs, trainers
from fusionrun.launch.checks import folders, pretrained
from fusionrun.launch.preflight import preflight_checks, require_startable
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.context import open_context
from fusionrun.study.study import Study
from fusionrun.training.checkpoint import load
from fusionrun.training.trainer import Trainer
from tests.unit.doctor.one_row import CPU, execute, plan, rank_info
from tests.unit.doctor.one_row import own_folders as own_folders

NAME = "timm:resnet10t"
ROW = f"rows=[{{model: '{NAME}', fusion: concatenation}}]"
SHORT = ("experts.epochs=1", "fusion.epochs=1", "data.image_size=32")


def backbones(*overrides: str) -> Study:
    return plan(ROW, *SHORT, *(f"models.{NAME}.{text}" for text in overrides))


def test_a_frozen_backbone_from_its_file_to_its_components() -> None:
    torch.manual_seed(5)
    theirs = timm.create_model("resnet10t", num_classes=7)
    torch.save(theirs.state_dict(), "theirs.pth")
    settings = ("pretrained=theirs.pth", "frozen_stages=4", "normalisation=imagenet")
    study = backbones(*settings, "lr=0.02", "row_lr=0.003", "image_size=24")
    context = open_context(study, CPU, 1, progress=lambda text: None)
    for task in sorted(study.tasks, key=lambda task: task.kind):
        execute(context, task)
    row = study.layout.row(NAME, "concatenation")
    before = {f"trunk.{name}": value for name, value in theirs.state_dict().items()}
    for path in (study.expert_file(NAME, 0), row.expert(0)):
        found = load(path)
        assert found["arguments"] == {"normalisation": "imagenet", "image_size": 24}
        kept = {
            name for name, v in found["state_dict"].items() if torch.equal(v, before.get(name, v))
        }
        frozen = {n for n in before if not n.startswith(("trunk.layer4", "trunk.fc"))}
        assert frozen <= kept and "trunk.layer4.0.conv1.weight" not in kept
        assert any("running_mean" in name for name in frozen)  # they stayed in evaluation mode
    expert = load_expert(row.expert(0))
    assert (expert.input_size, expert.image_size) == (24, 32)
    assert all(weight.requires_grad for weight in expert.parameters())  # to be trained elsewhere
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert load_model(row.directory).predict(images).shape == (2, 4)


def trainer_of(study: Study, name: str) -> Trainer:
    context = open_context(study, CPU, 1, progress=lambda text: None)
    (task,) = [task for task in study.tasks if task.name == name]
    log = TaskLog(Path("log.txt"), task.name)
    reporter = TaskReporter(study, task, Record(), log, CPU)
    if task.kind == "expert":
        return trainers.expert_trainer(context, task, reporter)
    experts = [context.build_expert(NAME) for _ in range(2)]
    return trainers.row_trainer(context, task, reporter, experts, [])


def test_own_rates_and_no_optimizer_state_of_what_is_frozen() -> None:
    study = backbones("frozen_stages=2", "lr=0.02", "row_lr=0.003")
    expert = trainer_of(study, "expert-timm-resnet10t-0")
    row = trainer_of(study, "task-0-timm-resnet10t-concatenation")
    assert expert.optimisation.groups[0].lr == 0.02
    first, *others = row.optimisation.groups
    assert (first.name, first.lr) == ("experts", 0.003)
    assert [group.name for group in others] == ["fusion", "global_head"]
    for trainer in (expert, row):
        learning = {id(p) for group in trainer.optimisation.groups for p in group.parameters}
        weights = list(trainer.model.parameters())
        assert learning == {id(w) for w in weights if w.requires_grad} < {id(w) for w in weights}
        next(iter(trainer.start_epoch()))
        modes = {
            module.training for part in trainer.optimisation.frozen for module in part.modules()
        }
        assert modes == {False} and trainer.model.training
    everything, learns = folders.weight_bytes(study)["task-0-timm-resnet10t-concatenation"]
    assert everything > learns > 0


def test_a_mixed_row_has_a_group_for_each_rate() -> None:
    study = plan(ROW, f"models.{NAME}.row_lr=0.003", "models.resnet.width=8")
    models = [NAME, "resnet", NAME]
    experts = [study.build_expert(model, 4) for model in models]
    groups = trainers.expert_groups(study, models, experts, 0.1)
    assert [(group.name, group.lr) for group in groups] == [
        ("experts", 0.1),
        ("experts_0.003", 0.003),
    ]
    assert {id(p) for p in groups[0].parameters} == {id(p) for p in experts[1].parameters()}


@dataclass
class Published:
    """Weights that a library has, without a network."""

    file: Path | None
    trouble: str = ""
    downloads: int = 0
    origin: str = "x/y of a hub"
    normalisation: Normalisation | None = None

    def cached(self) -> Path | None:
        return self.file if self.file is not None and self.file.is_file() else None

    def problem(self) -> str:
        return self.trouble

    def download(self) -> Path:
        self.downloads += 1
        if self.trouble:
            raise OSError(self.trouble)
        assert self.file is not None
        shutil.copy("theirs.pth", self.file)
        return self.file


def publish(weights: Published, monkeypatch: pytest.MonkeyPatch) -> Published:
    torch.save(timm.create_model("resnet10t").state_dict(), "theirs.pth")
    for module in ("fusionrun.launch.checks.pretrained", "fusionrun.components.pretrained"):
        monkeypatch.setattr(f"{module}.library_weights", lambda name: weights)
    return weights


def test_they_are_downloaded_once_when_all_else_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    published = publish(Published(Path("cached.pth")), monkeypatch)
    study = backbones("pretrained=true")
    for check in preflight_checks(study, rank_info()):
        list(check.look())  # as the doctor
    assert published.downloads == 0
    (finding,) = pretrained.check_pretrained(study)
    assert finding.state == "pass" and "to be downloaded when the launch begins" in finding.found
    require_startable(study, rank_info())
    require_startable(study, rank_info())
    assert published.downloads == 1
    (finding,) = pretrained.check_pretrained(study)
    assert finding.state == "pass" and "without its classifier of 1000 classes" in finding.found


def test_what_is_not_there_is_said_before_hours_are_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    published = publish(Published(None, "ConnectError: no network"), monkeypatch)
    with pytest.raises(LaunchError) as caught:
        require_startable(backbones("pretrained=true"), rank_info())
    text = str(caught.value)
    assert "models.timm:resnet10t.pretrained: x/y of a hub isn't in the cache" in text
    assert "no network" in text and "HF_HOME" in text and published.downloads == 0
    with pytest.raises(LaunchError, match=r"pretrained: none\.pth: no such|none\.pth: no such"):
        require_startable(backbones("pretrained=none.pth"), rank_info())
    Path("none.pth").write_text("text")
    with pytest.raises(LaunchError, match=r"none\.pth"):
        require_startable(backbones("pretrained=none.pth"), rank_info())


def test_settings_that_nothing_reads_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    require_startable(plan(ROW, *SHORT, f"models.{NAME}.lr=0.1"), rank_info())
    assert "models" not in capsys.readouterr().out
    require_startable(plan(ROW, *SHORT, f"models.{NAME}.c3_in1k.lr=0.1"), rank_info())
    said = capsys.readouterr().out
    assert f"models.{NAME}.c3_in1k: no row has this network" in said and f"name: {NAME}\n" in said


def test_a_lacking_package_of_the_hub_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    published = publish(Published(None), monkeypatch)

    def cached() -> None:
        raise ValueError("huggingface_hub isn't installed: pip install huggingface_hub")

    published.cached = cached  # type: ignore[method-assign]
    with pytest.raises(LaunchError, match="pip install huggingface_hub"):
        require_startable(backbones("pretrained=true"), rank_info())


def test_another_normalisation_than_the_weights_know_is_doubtful(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    publish(Published(Path("cached.pth"), normalisation=half), monkeypatch)
    _, warning = pretrained.check_pretrained(backbones("pretrained=true"))
    assert warning.state == "warn"
    assert "normalisation=[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]" in warning.advice
    told = backbones("pretrained=true", "normalisation=[[0.5,0.5,0.5],[0.5,0.5,0.5]]")
    assert [finding.state for finding in pretrained.check_pretrained(told)] == ["pass"]


def test_a_projects_name_holds_no_colon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(run_logs, "effective_mode", lambda mode: "offline")
    monkeypatch.setattr(run_logs, "WandbLog", lambda *_, model, **__: asked.append(model))
    monkeypatch.setattr(run_logs, "BackgroundLog", lambda name, build, warn: build())
    study = backbones()
    run_logs.open_run_logs(study, study.tasks[0], 1, print)
    assert asked == ["timm-resnet10t"]
