"""The training loop: resumed runs bit for bit, bad numbers stopped, every mean recomputed."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fusionrun.common.seeds import derive_seed
from fusionrun.components.store import state_hash
from fusionrun.data.augmentation.policies import AUGMENTATIONS
from fusionrun.data.loader import ResidentLoader
from fusionrun.experts import build_expert
from fusionrun.fusions import FUSIONS, FusionModel, build_fusion
from fusionrun.fusions.branches import in_threads
from fusionrun.training import trainer as loop
from fusionrun.training.checkpoint import ResumeFile, load, save
from fusionrun.training.epoch import BestEpoch, EpochMetrics, Progress
from fusionrun.training.errors import ShortOfMemoryError, StopRequested, TaskError
from fusionrun.training.identity import Identity
from fusionrun.training.inference import collect_logits
from fusionrun.training.losses import head_weights
from fusionrun.training.optim import (
    Group,
    adamw,
    cosine_to_tenth,
    cosine_to_zero,
    sgd,
    warm_restarts,
)
from fusionrun.training.precision import FP32, Precision
from fusionrun.training.scores import averaged_accuracy
from fusionrun.training.step import Optimisation
from fusionrun.training.trainer import Checkpointing, Loaders, Schedule, Trainer

CLASSES, SIZE = 4, 8
TRAIN, VAL, BATCH = 40, 24, 16
STEPS = 3  # of 16, 16 and 8 images
EPOCHS = 4
TOTAL = STEPS * EPOCHS
CPU = torch.device("cpu")
SETTINGS = {"model": "tiny", "seed": 5, "models.tiny.blocks": [1]}


# --- building ------------------------------------------------------------------------------------


def make_loader(first: int, end: int, augmentation: str, layout: bool = False) -> ResidentLoader:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (TRAIN + VAL,), generator=generator)
    noise = torch.randint(0, 100, (TRAIN + VAL, 3, SIZE, SIZE), generator=generator)
    images = (noise + 40 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ResidentLoader(
        images,
        labels,
        np.arange(first, end),
        num_classes=CLASSES,
        batch_size=BATCH,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.3),
        augmentation=AUGMENTATIONS[augmentation],
        channels_last=layout,
    )


def make_expert(dropout: float = 0.3) -> nn.Module:
    return build_expert("resnet", CLASSES, width=8, blocks=(1,), dropout=dropout)


def make_fusion(name: str = "multiplicativeAddition", dropout: float = 0.3) -> FusionModel:
    return FusionModel(
        [make_expert(dropout), make_expert(dropout)], build_fusion(name, 2, 8), CLASSES
    )


@dataclass
class Diary:
    """A reporter that keeps everything, and the weights as they were at every epoch's end."""

    model: nn.Module | None = None
    progresses: list[Progress] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    weights: dict[int, str] = field(default_factory=dict)

    def progress(self, progress: Progress) -> None:
        self.progresses.append(progress)

    def epoch(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None:
        self.epochs.append(history[-1].epoch)
        if self.model is not None:
            self.weights[history[-1].epoch] = state_hash(self.model.state_dict())

    def resumed(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None:
        self.resumes.append(history[-1].epoch)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Counter:
    """Counts a model's training steps, and makes something happen at one of them."""

    def __init__(self, model: nn.Module) -> None:
        self.steps = 0
        self.at: dict[int, Callable[[Tensor], Tensor]] = {}  # what to do with its images
        model.register_forward_pre_hook(self._count)

    def _count(self, model: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        if not model.training:
            return None
        self.steps += 1
        change = self.at.get(self.steps)
        return (change(arguments[0]),) if change else None


@dataclass
class Kit:
    """A trainer and what watches it."""

    trainer: Trainer
    counter: Counter
    diary: Diary


def make_kit(path: Path, kind: str = "fusion", *, init: int = 0, **changes: Any) -> Kit:
    """A new trainer, as a new process would make it; `init` seeds the weights it starts from."""
    torch.manual_seed(init)
    last = kind == "expert"
    if kind == "expert":
        model: nn.Module = changes.pop("model", None) or make_expert().to(
            memory_format=torch.channels_last  # type: ignore[call-overload]
        )
        groups = [Group.of("expert", [model], 0.1, cosine_to_zero, 1.0)]
        optimizer, weights = sgd(groups, 5e-4), torch.ones(1)
    else:
        model = changes.pop("model", None) or make_fusion()
        assert isinstance(model, FusionModel)
        parts = [
            Group.of("experts", model.experts, 3e-3, warm_restarts, 5.0),
            Group.of("fusion", [model.fusion], 1e-2, cosine_to_tenth, 1.0),
            Group.of("global_head", [model.global_head], 2e-2, cosine_to_tenth, 1.0),
        ]
        groups = [group for group in parts if group.parameters]
        optimizer, weights = adamw(groups, 1e-2), head_weights(2, 0.5, CPU)
    diary = Diary(model)
    wanted: dict[str, Any] = {
        "train_loader": make_loader(0, TRAIN, "randaugment" if last else "color_jitter", last),
        "val_loader": make_loader(TRAIN, TRAIN + VAL, "none", last),
        "optimizer": optimizer,
        "groups": groups,
        "micro_batch": None,
        "recompute": False,
        "precision": FP32,
        "frozen": (),
        "graphs": True,
        "compiles": True,
        "epochs": EPOCHS,
        "seed": 5,
        "by_averaging": False,
        "identity": Identity(SETTINGS, {}),
        "every_epochs": 1,
        "every_minutes": 1e9,
        "launch": {},
    }
    assert changes.keys() <= wanted.keys()
    wanted |= changes
    trainer = Trainer(
        model,
        Loaders(wanted["train_loader"], wanted["val_loader"]),
        Optimisation(
            optimizer=wanted["optimizer"],
            groups=wanted["groups"],
            head_weights=weights,
            label_smoothing=0.1,
            batch_field="fusion.batch_size",
            micro_batch=wanted["micro_batch"],
            recompute=wanted["recompute"],
            precision=wanted["precision"],
            frozen=wanted["frozen"],
            graphs=wanted["graphs"],
            compiles=wanted["compiles"],
        ),
        Schedule(wanted["epochs"], wanted["seed"], wanted["by_averaging"]),
        Checkpointing(
            ResumeFile(path),
            wanted["identity"],
            wanted["every_epochs"],
            wanted["every_minutes"],
            wanted["launch"],
        ),
        diary,
        lambda: False,
    )
    return Kit(trainer, Counter(model), diary)


def stop_after(kit: Kit, steps: int) -> None:
    """Train that many steps, as if the signal came during the last of them."""
    kit.trainer.stop_requested = lambda: kit.counter.steps >= steps
    with pytest.raises(StopRequested):
        kit.trainer.run()
    assert kit.counter.steps == steps


# --- what a run comes to -------------------------------------------------------------------------


def timeless(history: Sequence[EpochMetrics]) -> list[EpochMetrics]:
    zero = {"train_seconds": 0.0, "seconds": 0.0, "timestamp": ""}
    return [dataclasses.replace(metrics, **zero) for metrics in history]  # type: ignore[arg-type]


def optimizer_hash(optimizer: torch.optim.Optimizer) -> str:
    state = optimizer.state_dict()["state"]
    return state_hash({f"{k}.{name}": v for k, s in state.items() for name, v in s.items()})


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Everything that must come out the same, however often the run was interrupted."""
    best = trainer.best
    return {
        "weights": state_hash(trainer.model.state_dict()),
        "optimizer": optimizer_hash(trainer.optimisation.optimizer),
        "history": timeless(trainer.history),
        "best": (best.epoch, best.val_accuracy, best.val_loss, state_hash(best.state)),
    }


KINDS = ("fusion", "expert")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    outcomes = {}
    for kind in KINDS:
        kit = make_kit(tmp_path_factory.mktemp(kind) / "checkpoint.pth", kind)
        kit.trainer.run()
        assert kit.counter.steps == TOTAL
        outcomes[kind] = outcome(kit.trainer)
    return outcomes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pth"


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", range(1, TOTAL + 1))
def test_stopped_at_any_step_it_ends_the_same(
    path: Path, kind: str, steps: int, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    stop_after(make_kit(path, kind, every_epochs=1000), steps)
    torch.manual_seed(999)  # what the next process happens to have drawn
    kit = make_kit(path, kind, init=77, every_epochs=1000)
    kit.trainer.run()
    assert kit.counter.steps == TOTAL - steps  # no step is done twice
    assert outcome(kit.trainer) == uninterrupted[kind]
    epoch, step = divmod(steps, STEPS)
    if step == 0:  # the stop came before validation: the epoch is not finished yet
        epoch, step = epoch - 1, STEPS
    assert kit.diary.messages == [f"continues after epoch {epoch}, step {step}"]
    # the table and the logs learn at once what the earlier process had finished
    assert kit.diary.resumes == ([epoch] if epoch else [])
    assert kit.diary.epochs == list(range(epoch + 1, EPOCHS + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_every_step_it_ends_the_same(
    path: Path, kind: str, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    for launch in range(TOTAL):
        stop_after(make_kit(path, kind, init=launch), 1)
    kit = make_kit(path, kind, init=77)
    kit.trainer.run()
    assert kit.counter.steps == 0
    assert outcome(kit.trainer) == uninterrupted[kind]


@pytest.mark.parametrize("steps", [2, STEPS, 2 * STEPS + 1])
def test_a_state_of_version_0_1_resumes(
    path: Path, steps: int, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    """It calls some numbers by other names."""
    stop_after(make_kit(path), steps)
    state = load(path)
    for metrics in state["history"]:
        del metrics["val_averaged"]  # it didn't know this one
        metrics |= {"rates": metrics.pop("learning_rates"), "objective": metrics.pop("loss")}
    state["meter"]["hits"] = state["meter"].pop("correct")
    save(path, state)
    kit = make_kit(path, init=77)
    kit.trainer.run()
    assert kit.counter.steps == TOTAL - steps
    older = len(state["history"])
    history = [
        dataclasses.replace(metrics, val_averaged=None) if epoch < older else metrics
        for epoch, metrics in enumerate(uninterrupted["fusion"]["history"])
    ]
    expected = {**uninterrupted["fusion"], "history": history}
    assert outcome(kit.trainer) == expected


class CrashError(Exception):
    """As good as a kill: nothing is saved."""


def crash(images: Tensor) -> Tensor:
    raise CrashError


@pytest.mark.parametrize("steps", [2, 4, 7, 9, 12])
def test_killed_it_goes_on_from_the_last_checkpoint(
    path: Path, steps: int, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    first = make_kit(path, every_epochs=2)
    first.counter.at[steps] = crash
    with pytest.raises(CrashError):
        first.trainer.run()
    saved = (steps - 1) // STEPS // 2 * 2  # whole epochs, every second of which was saved
    assert path.exists() == (saved > 0)
    kit = make_kit(path, every_epochs=2, init=77 if saved else 0)
    kit.trainer.run()
    assert kit.counter.steps == TOTAL - saved * STEPS
    assert outcome(kit.trainer) == uninterrupted["fusion"]


def test_saved_by_the_clock_it_loses_no_step(
    path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    first = make_kit(path, every_epochs=1000, every_minutes=0.0)
    first.counter.at[9] = crash
    with pytest.raises(CrashError):
        first.trainer.run()
    kit = make_kit(path, init=77)
    kit.trainer.run()
    assert kit.counter.steps == TOTAL - 8
    assert outcome(kit.trainer) == uninterrupted["fusion"]


def test_a_damaged_checkpoint_costs_one_save_only(
    path: Path, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    first = make_kit(path)
    first.counter.at[3 * STEPS + 1] = crash  # epochs 1 to 3 are saved
    with pytest.raises(CrashError):
        first.trainer.run()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    kit = make_kit(path, init=77)
    kit.trainer.run()
    assert kit.counter.steps == 2 * STEPS
    warning, note = kit.diary.messages
    assert str(path) in warning
    assert "damaged" in warning
    assert "its predecessor is used" in warning
    assert note == "continues after epoch 2, step 0"
    assert outcome(kit.trainer) == uninterrupted["fusion"]


def test_a_finished_task_is_not_trained_again(
    path: Path, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    make_kit(path).trainer.run()
    content = path.read_bytes()
    kit = make_kit(path, init=77)
    kit.trainer.run()
    assert kit.counter.steps == 0
    assert outcome(kit.trainer) == uninterrupted["fusion"]
    assert path.read_bytes() == content


def test_the_last_epoch_is_saved_whatever_the_interval(path: Path) -> None:
    make_kit(path, every_epochs=1000).trainer.run()
    assert load(path)["epoch"] == EPOCHS
    assert not ResumeFile(path).previous.exists()  # nothing else was


def test_another_layout_continues_the_same_training(path: Path) -> None:
    """runtime.channels_last is no setting of the experiment: switching it may only round anew."""
    stop_after(make_kit(path, "expert"), 4)
    straight = make_kit(path, "expert")
    straight.trainer.run()
    stop_after(make_kit(other := path.with_name("other.pth"), "expert"), 4)
    kit = make_kit(other, "expert")
    kit.trainer.model.to(memory_format=torch.contiguous_format)
    kit.trainer.run()
    ours, theirs = kit.trainer.model.state_dict(), straight.trainer.model.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_run_repeats_itself_and_seeds_differ(path: Path, name: str) -> None:
    def run(file: str, seed: int) -> dict[str, Any]:
        kit = make_kit(path.with_name(file), epochs=1, seed=seed, precision=Precision(name))
        kit.trainer.run()
        return outcome(kit.trainer)

    first = run("a", 5)
    assert run("b", 5) == first
    assert run("c", 6)["weights"] != first["weights"]


def test_trained_in_turn_models_come_out_as_alone(
    tmp_path: Path, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    """One of them saves at every epoch, one begins later, and both draw random numbers."""
    first, second = (make_kit(tmp_path / kind / "checkpoint.pth", kind) for kind in KINDS)
    turns = [first.trainer.steps()]
    while turns:
        turns = [steps for steps in turns if next(steps, "done") != "done"]
        if first.counter.steps == 2 and not second.counter.steps:
            turns.append(second.trainer.steps())
    for kind, kit in zip(KINDS, (first, second), strict=True):
        assert outcome(kit.trainer) == uninterrupted[kind]


def test_augmentation_and_dropout_differ_between_all_steps(path: Path) -> None:
    """The same seed everywhere would repeat one epoch's augmentation and dropout in the next."""
    kit = make_kit(path)
    images: list[str] = []
    generators: list[str] = []

    def look(model: nn.Module, arguments: tuple[Tensor]) -> None:
        if model.training:
            images.append(state_hash({"x": arguments[0]}))
            generators.append(state_hash({"x": torch.get_rng_state()}))

    kit.trainer.model.register_forward_pre_hook(look)
    kit.trainer.run()
    assert len(set(images)) == len(set(generators)) == TOTAL


def test_another_card_or_precision_is_said_once_and_every_launch_is_known(path: Path) -> None:
    v100 = {"rank": 0, "gpu": "Tesla V100", "precision": "fp16"}
    h100 = {"rank": 2, "gpu": "NVIDIA H100", "precision": "bf16"}
    h100_off = {**h100, "precision": "tf32"}
    said = []
    for steps, launch in enumerate((v100, v100, h100, h100, h100_off), start=1):
        kit = make_kit(path, launch=launch)
        stop_after(kit, 1)
        assert kit.trainer.launches == [v100, v100, h100, h100, h100_off][: steps - 1]
        said.append([text for text in kit.diary.messages if "so far" in text])
    first, second, third = "Tesla V100 in fp16", "NVIDIA H100 in bf16", "NVIDIA H100 in tf32"
    otherwise = "its numbers will differ from those of an uninterrupted run"
    assert said == [
        [],
        [],
        [f"was trained on {first} so far and continues on {second}: {otherwise}"],
        [],
        [f"was trained on {second} so far and continues on {third}: {otherwise}"],
    ]


def test_a_state_of_an_older_version_knows_no_card(path: Path) -> None:
    for older in ({}, {"job_id": None, "rank": 0}):
        stop_after(make_kit(path, launch=older), 1)
        state = load(path)
        if not older:
            del state["launches"]
        save(path, state)
        kit = make_kit(path, launch={"gpu": "NVIDIA H100", "precision": "bf16"})
        stop_after(kit, 1)
        assert not any("so far" in text for text in kit.diary.messages)


# --- bad numbers ---------------------------------------------------------------------------------


def with_nan(images: Tensor) -> Tensor:
    images = images.clone()
    images[0, 0, 0, 0] = math.nan
    return images


def with_huge_numbers(images: Tensor) -> Tensor:
    return images * 1e38


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def poison(kit: Kit, how: str, step: int) -> None:
    if how == "gradient":  # the loss is fine
        first = next(iter(kit.trainer.model.parameters()))
        first.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient * math.nan if kit.counter.steps == step else gradient
        )
    else:
        kit.counter.at[step] = with_nan if how == "nan" else with_huge_numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("how", "step", "prompt"),
    [
        ("nan", 1, False),
        ("nan", 5, False),
        ("nan", 5, True),
        ("gradient", 4, False),
        ("gradient", 6, True),
        ("huge", 8, False),
        ("nan", TOTAL, False),
    ],
)
def test_bad_numbers_stop_the_task_before_they_spread(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    how: str,
    step: int,
    prompt: bool,
    uninterrupted: dict[str, dict[str, Any]],
) -> None:
    if prompt:  # the host looks after every step, else it finds out when the epoch ends
        monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    epoch, in_epoch = divmod(step - 1, STEPS)
    kit = make_kit(path, kind)
    poison(kit, how, step)
    with pytest.raises(TaskError, match=f"epoch {epoch + 1}, step {in_epoch + 1} of {STEPS}"):
        kit.trainer.run()
    assert kit.counter.steps == (step if prompt else (epoch + 1) * STEPS)
    # as healthy as the run that stopped just before
    healthy = make_kit(path.with_name("healthy.pth"), kind)
    if step > 1:
        stop_after(healthy, step - 1)
    found, expected = parameters(kit.trainer.model), parameters(healthy.trainer.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # the last checkpoint is the one of the last whole epoch, and good for going on
    assert path.exists() == (epoch > 0)
    if epoch:
        assert (load(path)["epoch"], load(path)["step"]) == (epoch, 0)
        kit = make_kit(path, kind, init=77)
        kit.trainer.run()
        assert outcome(kit.trainer) == uninterrupted[kind]


def test_the_first_of_several_bad_steps_is_named(path: Path) -> None:
    kit = make_kit(path)
    poison(kit, "nan", 4)
    poison(kit, "nan", 6)
    with pytest.raises(TaskError, match="epoch 2, step 1 of 3"):
        kit.trainer.run()


def test_a_stop_does_not_save_bad_numbers(path: Path) -> None:
    first = make_kit(path)
    stop_after(first, 4)
    content = path.read_bytes()
    kit = make_kit(path, init=77)
    poison(kit, "nan", 1)
    kit.trainer.stop_requested = lambda: kit.counter.steps >= 1
    with pytest.raises(TaskError, match="epoch 2, step 2 of 3"):
        kit.trainer.run()
    assert path.read_bytes() == content


# --- best epoch ----------------------------------------------------------------------------------


class Scripted(nn.Module):
    """Its answers in evaluation are written down: (right ones, margin) for every epoch.

    The label of an image is its brightness, so that right answers can be given.
    """

    def __init__(self, script: list[tuple[int, float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CLASSES))
        self.script = list(script)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            return images, self.weight.expand(len(images), CLASSES)
        right, margin = self.script.pop(0)
        labels = (images[:, 0, 0, 0] * 255 / 10).round().long()
        answers = torch.where(torch.arange(len(labels)) < right, labels, (labels + 1) % CLASSES)
        return images, margin * functional.one_hot(answers, CLASSES).float()


def run_script(path: Path, script: list[tuple[int, float]]) -> Kit:
    labels = torch.arange(8) % 3  # unbalanced: the weights keep moving
    loader = ResidentLoader(
        (labels.view(-1, 1, 1, 1) * 10).expand(8, 3, 8, 8).to(torch.uint8),
        labels,
        np.arange(8),
        num_classes=CLASSES,
        batch_size=8,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        augmentation=AUGMENTATIONS["none"],
    )
    model = Scripted(script)
    groups = [Group.of("expert", [model], 0.5, cosine_to_tenth, 1.0)]
    kit = make_kit(
        path,
        "expert",
        model=model,
        train_loader=loader,
        val_loader=loader,
        groups=groups,
        optimizer=sgd(groups, 0.0),
        epochs=len(script),
    )
    kit.trainer.run()
    return kit


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([(2, 1.0), (5, 1.0), (4, 1.0)], 2),  # the most accurate, neither first nor last
        ([(2, 1.0), (5, 1.0), (5, 1.0)], 2),  # of equals the first
        ([(2, 1.0), (5, 1.0), (5, 1.5), (5, 2.0)], 3),  # of equally accurate the smallest loss
        ([(8, 0.1), (7, 9.0)], 1),  # accuracy counts before the loss
        ([(0, 1.0), (0, 2.0), (0, 0.5)], 3),  # nothing right: still the smallest loss
        ([(0, 1.0)], 1),
        ([(8, 1.0), (8, 200.0), (8, 300.0)], 2),  # loss 0 twice
    ],
)
def test_validation_selects_the_best_epoch(
    path: Path, script: list[tuple[int, float]], best: int
) -> None:
    kit = run_script(path, script)
    right, margin = script[best - 1]
    spread = math.log(math.exp(margin) + CLASSES - 1)
    loss = (right * (spread - margin) + (8 - right) * spread) / 8
    found = kit.trainer.best
    assert (found.epoch, found.val_accuracy) == (best, 100 * right / 8)
    assert found.val_loss == pytest.approx(loss, abs=1e-6)
    assert state_hash(found.state) == kit.diary.weights[best]
    assert len(set(kit.diary.weights.values())) == len(script)  # weights that tell epochs apart


def epochs_of(*scores: tuple[float, float, float | None, float]) -> list[EpochMetrics]:
    """Of each (fused accuracy, its loss, accuracy of the mean, each expert's loss) an epoch."""
    return [
        EpochMetrics(
            epoch=epoch,
            learning_rates={},
            loss=1.0,
            train_losses=[1.0] * 3,
            train_accuracies=[50.0] * 3,
            val_losses=[loss, experts, experts],
            val_accuracies=[fused, 50.0, 50.0],
            images=8,
            train_seconds=1.0,
            seconds=2.0,
            timestamp="",
            val_averaged=averaged,
        )
        for epoch, (fused, loss, averaged, experts) in enumerate(scores, start=1)
    ]


def test_a_row_that_reports_averaging_is_selected_by_it() -> None:
    """By the accuracy of the mean of the experts' probabilities, then by the experts' losses."""
    first, more, same, smaller, unknown = epochs_of(
        (70, 1.0, 60, 1.0), (50, 2.0, 61, 3.0), (90, 0.1, 60, 1.0), (50, 2.0, 60, 0.9),
        (99, 0.1, None, 0.1),
    )  # fmt: skip
    for better, worse in ((more, first), (smaller, first), (more, smaller), (first, unknown)):
        assert better.is_better_than(worse, by_averaging=True)
        assert not worse.is_better_than(better, by_averaging=True)
    assert not same.is_better_than(first, by_averaging=True)  # of equals the first stays
    assert first.is_better_than(more) and same.is_better_than(first)  # of the fused head


def disagreeing(path: Path, **changes: Any) -> Kit:
    """Fused accuracies 10, 30, 20 on validation, those of the mean of the experts 50, 40, 60."""
    script = iter([(10.0, 50.0), (30.0, 40.0), (20.0, 60.0)])

    def validate() -> tuple[list[float], list[float], float | None]:
        fused, averaged = next(script)
        return [1.0, 1.0, 1.0], [fused, 45.0, 45.0], averaged

    kit = make_kit(path, **changes)
    kit.trainer.validate = validate  # type: ignore[method-assign]
    return kit


@pytest.mark.parametrize(("by_averaging", "best"), [(False, 2), (True, 3)])
def test_the_epoch_is_selected_by_the_head_that_is_reported(
    path: Path, by_averaging: bool, best: int
) -> None:
    kit = disagreeing(path, by_averaging=by_averaging, epochs=3)
    found = kit.trainer.run()
    assert (found.epoch, found.val_accuracy) == (best, {2: 30.0, 3: 20.0}[best])
    assert state_hash(found.state) == kit.diary.weights[best]
    assert state_hash(load(path)["best"]["state"]) == kit.diary.weights[best]


def test_a_row_that_an_older_version_selected_otherwise_says_so(path: Path) -> None:
    """The weights of the epoch that averaging prefers are gone; the rest is compared by it."""
    stop_after(disagreeing(path, epochs=3), 2 * STEPS + 1)  # by the fused head: epoch 2
    kit = make_kit(path, by_averaging=True, epochs=3)
    averaged = [40.0]
    kit.trainer.validate = lambda: ([1.0] * 3, [5.0] * 3, averaged[0])  # type: ignore[method-assign]
    assert kit.trainer.run().epoch == 2  # 40 again is no better
    said = [text for text in kit.diary.messages if "selected epoch 2 by the fused head" in text]
    assert len(said) == 1
    again = make_kit(path, by_averaging=False, epochs=3)
    again.trainer.run()
    assert not [text for text in again.diary.messages if "selected" in text]


def test_best_weights_are_a_copy(path: Path) -> None:
    kit = run_script(path, [(2, 1.0), (5, 1.0), (4, 1.0)])
    kept = kit.diary.weights[2]
    model = kit.trainer.model
    assert state_hash(model.state_dict()) != kept
    with torch.no_grad():
        model.load_state_dict(kit.trainer.best.state)
        for parameter in model.parameters():
            parameter.add_(1)
    assert state_hash(kit.trainer.best.state) == kept
    # the file holds the same, and a reader of the file gets it
    assert state_hash(load(path)["best"]["state"]) == kept


@pytest.mark.parametrize("kind", KINDS)
def test_best_state_is_the_whole_model_at_that_epoch(path: Path, kind: str) -> None:
    kit = make_kit(path, kind)
    best = kit.trainer.run()
    assert best is kit.trainer.best
    assert state_hash(best.state) == kit.diary.weights[best.epoch]
    assert best.state.keys() == kit.trainer.model.state_dict().keys()
    accuracies = [metrics.val_accuracies[0] for metrics in kit.trainer.history]
    assert best.val_accuracy == max(accuracies)


# --- numbers -------------------------------------------------------------------------------------


@dataclass
class Seen:
    """The logits of every pass, epoch by epoch, as a hook on the model sees them."""

    train: list[list[Tensor]] = field(default_factory=lambda: [[]])
    val: list[list[Tensor]] = field(default_factory=list)

    def look(self, model: nn.Module, arguments: tuple[Tensor], output: Any) -> None:
        fused = isinstance(model, FusionModel)
        heads = [output.logits, *output.expert_logits.unbind(1)] if fused else [output[1]]
        logits = torch.stack([head.detach().double() for head in heads], dim=1)
        if model.training:
            if len(self.train) == len(self.val):
                self.train.append([])
            self.train[-1].append(logits)
        else:
            if len(self.val) < len(self.train):
                self.val.append([])
            self.val[-1].append(logits)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_a_mean_over_its_epoch(path: Path, kind: str) -> None:
    kit, seen = make_kit(path, kind), Seen()
    trainer = kit.trainer
    trainer.model.register_forward_hook(seen.look)
    learning_rates: list[dict[str, float]] = []
    trainer.optimisation.optimizer.register_step_pre_hook(
        lambda optimizer, *_: learning_rates.append(
            {e["name"]: float(e["lr"]) for e in optimizer.param_groups}
        )
    )
    trainer.run()
    weights = [1.0, 0.5, 0.5] if kind == "fusion" else [1.0]
    labels = torch.cat([batch.labels for batch in trainer.loaders.validation.evaluation_batches()])
    assert len(trainer.history) == EPOCHS
    for epoch, metrics in enumerate(trainer.history):
        batches = list(trainer.loaders.train.training_batches(derive_seed(5, "order", epoch)))
        targets = torch.cat([batch.targets for batch in batches]).double()
        logits = torch.cat(seen.train[epoch])
        assert len(logits) == metrics.images == TRAIN
        losses, accuracies = [], []
        for head in logits.unbind(1):
            losses.append(float(functional.cross_entropy(head, targets, label_smoothing=0.1)))
            picks = [float(targets[n, int(head[n].argmax())]) for n in range(TRAIN)]
            accuracies.append(100 * sum(picks) / TRAIN)
        assert metrics.train_losses == pytest.approx(losses, rel=1e-5)
        assert metrics.train_accuracies == pytest.approx(accuracies, rel=1e-5)
        total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        assert metrics.loss == pytest.approx(total, rel=1e-5)
        validated = torch.cat(seen.val[epoch])
        assert len(validated) == VAL
        assert metrics.val_losses == pytest.approx(
            [float(functional.cross_entropy(head, labels)) for head in validated.unbind(1)],
            rel=1e-5,
        )
        assert metrics.val_accuracies == pytest.approx(
            [100 * int((head.argmax(1) == labels).sum()) / VAL for head in validated.unbind(1)]
        )
        assert metrics.val_averaged == averaged_accuracy(validated[:, 1:], labels)
        assert (metrics.gain_over_averaging is None) == (kind != "fusion")
        assert metrics.epoch == epoch + 1
        # the rates that the optimizer really used in all steps of the epoch
        assert (
            learning_rates[STEPS * epoch : STEPS * (epoch + 1)] == [metrics.learning_rates] * STEPS
        )
        assert 0 < metrics.train_seconds < metrics.seconds
        assert metrics.images_per_second == TRAIN / metrics.train_seconds


def test_progress_is_the_mean_so_far(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    kit, seen = make_kit(path), Seen()
    kit.trainer.model.register_forward_hook(seen.look)
    kit.trainer.run()
    where = [(p.epoch, p.step, p.steps) for p in kit.diary.progresses]
    assert where == [(e, s, STEPS) for e in range(EPOCHS) for s in range(1, STEPS + 1)]
    for progress in kit.diary.progresses:
        batches = list(
            kit.trainer.loaders.train.training_batches(derive_seed(5, "order", progress.epoch))
        )[: progress.step]
        targets = torch.cat([batch.targets for batch in batches]).double()
        logits = torch.cat(seen.train[progress.epoch][: progress.step])
        losses = [
            functional.cross_entropy(head, targets, label_smoothing=0.1)
            for head in logits.unbind(1)
        ]
        expected = float(losses[0] + 0.5 * losses[1] + 0.5 * losses[2])
        assert progress.loss == pytest.approx(expected, rel=1e-5)
        correct = targets.gather(1, logits[:, :1].argmax(-1)).mean()
        assert progress.train_accuracy == pytest.approx(100 * float(correct), rel=1e-5)
        assert progress.images_per_second > 0
    etas = [progress.eta_seconds for progress in kit.diary.progresses]
    assert 0 < etas[-1] < etas[0]  # a validation is left
    assert all(eta > 0 for eta in etas[:-1])


def test_epoch_means_survive_a_resume_in_the_middle(path: Path) -> None:
    """Images of before the stop count as much as those after it."""
    stop_after(make_kit(path), 2)
    kit = make_kit(path, init=77)
    kit.trainer.run()
    assert [metrics.images for metrics in kit.trainer.history] == [TRAIN] * EPOCHS
    assert all(metrics.seconds >= metrics.train_seconds for metrics in kit.trainer.history)


@pytest.mark.parametrize("kind", KINDS)
def test_collect_logits(path: Path, kind: str) -> None:
    kit = make_kit(path, kind)
    kit.trainer.run()
    model = kit.trainer.model
    before = state_hash(model.state_dict())
    logits, labels = collect_logits([model], kit.trainer.loaders.validation, FP32)
    assert logits.shape == (VAL, 3 if kind == "fusion" else 1, CLASSES)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    model.eval()
    images = torch.cat(
        [batch.images for batch in kit.trainer.loaders.validation.evaluation_batches()]
    )
    output = model(images)
    torch.testing.assert_close(logits[:, 0], output[0] if kind == "fusion" else output[1])
    if kind == "fusion":
        torch.testing.assert_close(logits[:, 1:], output.expert_logits)
    assert labels.tolist() == make_loader(TRAIN, TRAIN + VAL, "none")._labels[TRAIN:].tolist()
    assert state_hash(model.state_dict()) == before


def test_networks_asked_together_answer_as_alone(path: Path) -> None:
    """In one pass over the images, whose batches are made once."""
    trainers = [
        make_kit(path, kind, init=init).trainer for kind, init in zip(KINDS, (3, 4), strict=True)
    ]
    models = [trainer.model for trainer in trainers]
    loader = trainers[0].loaders.validation
    alone = [collect_logits([model], loader, FP32)[0] for model in models]
    with mock.patch.object(loader, "_normalised", wraps=loader._normalised) as made:
        together, labels = collect_logits(models, loader, FP32)
    assert made.call_count == len(loader)
    assert torch.equal(together, torch.cat(alone, dim=1))
    assert len(labels) == loader.num_images
    expert, row = models
    with in_threads(row, lambda: 2):
        together, _ = collect_logits([row, expert, expert], loader, FP32)
    assert torch.equal(together, torch.cat([alone[1], alone[0], alone[0]], dim=1))


# --- who learns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_everything_unfrozen_learns(path: Path, fusion: str) -> None:
    torch.manual_seed(0)
    model = make_fusion(fusion)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_kit(path, model=model, epochs=1).trainer.run()
    unchanged = [k for k, value in model.state_dict().items() if torch.equal(value, before[k])]
    assert unchanged == []


def test_frozen_experts_stay_as_they_are(path: Path) -> None:
    torch.manual_seed(0)
    model = make_fusion()
    model.experts.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes: list[tuple[bool, bool]] = []
    dropouts = [m for m in model.experts.modules() if isinstance(m, nn.Dropout)]
    for module in dropouts:
        module.register_forward_hook(lambda m, *_: modes.append((m.training, model.training)))
    make_kit(path, model=model, frozen=list(model.experts)).trainer.run()
    assert (False, True) in modes
    assert not any(expert for expert, _ in modes)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("experts."), name


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 6}, "seed: 5 there, 6 in this recipe"),
        ({"models.tiny.blocks": [2]}, r"models.tiny.blocks: \[1\] there, \[2\] in this recipe"),
        ({"alpha": 0.5}, r"alpha: None there, 0.5 in this recipe"),
    ],
)
def test_a_state_of_other_settings_is_refused(
    path: Path, change: dict[str, Any], words: str
) -> None:
    stop_after(make_kit(path), 2)
    content = path.read_bytes()
    kit = make_kit(path, identity=Identity({**SETTINGS, **change}, {}))
    before = state_hash(kit.trainer.model.state_dict())
    with pytest.raises(TaskError, match=words) as caught:
        kit.trainer.run()
    assert str(path) in str(caught.value)
    assert "model" not in str(caught.value).replace("models.tiny", "")  # what agrees isn't named
    assert state_hash(kit.trainer.model.state_dict()) == before
    assert kit.counter.steps == 0
    assert path.read_bytes() == content


def test_a_file_of_another_kind_is_refused(path: Path) -> None:
    save(path, {"format": 1, "state_dict": {}})
    kit = make_kit(path)
    with pytest.raises(TaskError, match="found a checkpoint with the keys format, state_dict"):
        kit.trainer.run()
    assert kit.counter.steps == 0


# --- seeds ---------------------------------------------------------------------------------------


def seeds() -> Iterator[int]:
    yield derive_seed(5, "order", 1)
    yield derive_seed(5, "order", 2)
    yield derive_seed(6, "order", 1)
    yield derive_seed(5, "dropout", 1)
    yield derive_seed(5, "order", "1")
    yield derive_seed("5", "order", 1)
    yield derive_seed(5, "order1")
    yield derive_seed(51, "order")
    yield derive_seed("order", 5, 1)
    yield from (derive_seed(5, "order", epoch, step) for epoch in range(30) for step in range(30))


def test_seeds_of_different_decisions_differ() -> None:
    found = list(seeds())
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**63 for seed in found)
    assert found == list(seeds())
    assert derive_seed(42, "resnet", 0) == 9135113207760214522  # in other processes too


# ---------------------------------------------------------------- memory


def gradients(kit: Kit) -> list[Tensor]:
    """What one training batch leaves in the parameters."""
    kit.trainer.model.train()
    batch = next(iter(kit.trainer.loaders.train.training_batches(3)))
    kit.trainer.train_step(batch)
    return [p.grad.clone() for p in kit.trainer.model.parameters() if p.grad is not None]


def without_batch_statistics(model: nn.Module) -> None:
    """Batch statistics and dropout are what a micro-batch has of its own; leave them out."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
            module.train(False)
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]


@pytest.mark.parametrize("micro", [2, 3, 5])
def test_micro_batches_add_up_to_the_batch(tmp_path: Path, micro: int) -> None:
    whole, parts = make_kit(tmp_path / "a"), make_kit(tmp_path / "b", micro_batch=micro)
    for kit in (whole, parts):
        without_batch_statistics(kit.trainer.model)
    expected, found = gradients(whole), gradients(parts)
    assert parts.counter.steps > whole.counter.steps == 1
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


SHORT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


def runs_out(images: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_when_memory_runs_out_the_micro_batch_halves_and_says_so(tmp_path: Path) -> None:
    kit = make_kit(tmp_path / "a", micro_batch="auto")
    kit.counter.at = {2: runs_out, 4: runs_out}
    kit.trainer.run()
    images = kit.trainer.loaders.train.batch_size
    assert kit.trainer.fitting.micro_batch == images // 4
    assert [m.split("micro-batches of ")[1].split()[0] for m in kit.diary.messages] == [
        str(images // 2),
        str(images // 4),
    ]
    assert len(kit.trainer.history) == EPOCHS
    assert all(metrics.images == TRAIN for metrics in kit.trainer.history)


def test_a_step_begun_anew_equals_one_that_fitted_at_once(tmp_path: Path) -> None:
    """Memory runs out in the backward pass: dropout has drawn its masks, batch norms have moved."""
    fits = make_kit(tmp_path / "a", micro_batch=BATCH // 2)
    full = make_kit(tmp_path / "b", micro_batch="auto")
    failures = [True]

    def run_out_once(gradient: Tensor) -> None:
        if failures:
            failures.clear()
            runs_out(gradient)

    first = next(iter(full.trainer.model.parameters()))
    first.register_hook(run_out_once)  # type: ignore[no-untyped-call]
    found, expected = gradients(full), gradients(fits)
    assert full.trainer.fitting.micro_batch == BATCH // 2
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert outcome(full.trainer) == outcome(fits.trainer)  # running statistics, too


def test_the_best_epoch_makes_room_before_anything_else(path: Path) -> None:
    """Which changes no number, and takes no time."""
    plain = make_kit(path.with_name("plain"))
    plain.trainer.run()
    kit = make_kit(path, recompute="auto")
    answers = iter([True])
    kit.trainer.best.leave_device = lambda: next(answers, False)  # type: ignore[method-assign]
    kit.counter.at = {2: runs_out, 5: runs_out}
    kit.trainer.run()
    first, second = kit.diary.messages
    assert "best epoch's weights" in first and "computed twice" in second
    assert outcome(kit.trainer) == outcome(plain.trainer)


@pytest.mark.parametrize("error", SHORT)
def test_a_row_is_computed_twice_before_its_batch_is_split(path: Path, error: Exception) -> None:
    """The first measure changes no number; the second, statistics of batches."""

    def run_out(images: Tensor) -> Tensor:
        raise error

    plain = make_kit(path.with_name("plain"))
    plain.trainer.run()
    kit = make_kit(path, micro_batch="auto", recompute="auto")
    kit.counter.at = {2: run_out}
    kit.trainer.run()
    assert outcome(kit.trainer) == outcome(plain.trainer)
    assert kit.trainer.fitting.is_recomputing and kit.trainer.fitting.micro_batch is None
    [said] = kit.diary.messages
    assert "computed twice" in said and "numbers stay the same" in said
    short = make_kit(path.with_name("short"), micro_batch="auto", recompute="auto")
    short.counter.at = {1: run_out, 2: run_out}
    short.trainer.run()
    assert short.trainer.fitting.micro_batch == BATCH // 2
    assert "computed twice" in short.diary.messages[0] and "batches of 8" in short.diary.messages[1]


def test_an_expert_alone_has_only_its_batch_to_split(path: Path) -> None:
    kit = make_kit(path, "expert", micro_batch="auto", recompute="auto")
    kit.counter.at = {1: runs_out}
    kit.trainer.run()
    assert kit.trainer.fitting.micro_batch == BATCH // 2 and not kit.trainer.fitting.is_recomputing


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_a_resumed_run_computes_twice_as_before(path: Path, wanted: bool | str) -> None:
    plain = make_kit(path.with_name("plain"))
    plain.trainer.run()
    kit = make_kit(path, recompute=wanted)
    kit.counter.at = {} if wanted is True else {1: runs_out}
    stop_after(kit, 6 if wanted is True else 7)  # one of them a second time
    again = make_kit(path, recompute=wanted)
    again.trainer.run()
    assert again.trainer.fitting.is_recomputing
    assert outcome(again.trainer) == outcome(plain.trainer)
    other = make_kit(path, recompute=False)
    other.trainer.run()
    assert not other.trainer.fitting.is_recomputing  # the recipe's word stands


def test_memory_for_the_moments_is_there_before_the_first_step(path: Path) -> None:
    """Else the first groups had learned when it runs out, and the others hadn't."""
    for kind in KINDS:
        kit = make_kit(path, kind)
        batch = next(kit.trainer.start_epoch())
        optimizer = kit.trainer.optimisation.optimizer
        moments = [id(moment) for state in optimizer.state.values() for moment in state.values()]
        assert len(moments) >= sum(len(group["params"]) for group in optimizer.param_groups)
        kit.trainer.train_step(batch)
        after = [id(moment) for state in optimizer.state.values() for moment in state.values()]
        assert after == moments


def test_where_no_way_is_left_nothing_is_lost(path: Path) -> None:
    """The state of the step's beginning is saved, so that it resumes where there is more memory."""
    plain = make_kit(path.with_name("plain"))
    plain.trainer.run()
    kit = make_kit(path, every_epochs=1000)
    first = next(iter(kit.trainer.model.parameters()))
    backwards: list[int] = []

    def run_out(gradient: Tensor) -> None:
        backwards.append(1)
        if len(backwards) == 5:
            runs_out(gradient)

    first.register_hook(run_out)  # type: ignore[no-untyped-call]
    with pytest.raises(ShortOfMemoryError):
        kit.trainer.run()
    again = make_kit(path, every_epochs=1000)
    again.trainer.run()
    assert again.diary.messages == ["continues after epoch 1, step 1"]
    assert outcome(again.trainer) == outcome(plain.trainer)


def test_validation_goes_on_with_fewer_images(path: Path) -> None:
    plain = make_kit(path.with_name("plain"))
    plain.trainer.run()
    kit, sizes = make_kit(path), list[int]()

    def look(model: nn.Module, arguments: tuple[Tensor]) -> None:
        if not model.training:
            sizes.append(len(arguments[0]))
            if sizes[-1] > 6:
                runs_out(arguments[0])

    kit.trainer.model.register_forward_pre_hook(look)
    kit.trainer.run()
    assert [size for size in sizes if size > 6] == [16, 8]  # tried once, not in every epoch
    assert state_hash(kit.trainer.model.state_dict()) == state_hash(
        plain.trainer.model.state_dict()
    )
    for found, expected in zip(kit.trainer.history, plain.trainer.history, strict=True):
        assert found.val_accuracies == expected.val_accuracies
        assert found.val_losses == pytest.approx(expected.val_losses)
    nothing = make_kit(path.with_name("nothing"), every_epochs=1000)
    nothing.trainer.model.register_forward_pre_hook(
        lambda model, arguments: None if model.training else runs_out(arguments[0])
    )
    with pytest.raises(ShortOfMemoryError, match="not even one image"):
        nothing.trainer.run()
    again = make_kit(path.with_name("nothing"), every_epochs=1000)
    again.trainer.run()  # from before the validation
    assert again.diary.messages == [f"continues after epoch 0, step {STEPS}"]
    assert outcome(again.trainer) == outcome(plain.trainer)


def test_answers_that_find_no_room_cost_no_training(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those to all of validation, of all heads, may be larger than what made them."""
    plain = make_kit(path.with_name("plain"))
    plain.trainer.run()
    kit = make_kit(path, every_epochs=1000)

    def run_out(logits: Tensor, labels: Tensor) -> None:
        runs_out(logits)

    with monkeypatch.context() as patch:
        patch.setattr("fusionrun.training.inference._scores", run_out)
        with pytest.raises(ShortOfMemoryError, match=r"in validation.*fewer ranks"):
            kit.trainer.run()
    again = make_kit(path, every_epochs=1000)
    again.trainer.run()
    assert again.diary.messages == [f"continues after epoch 0, step {STEPS}"]
    assert outcome(again.trainer) == outcome(plain.trainer)


def test_a_resumed_run_keeps_the_micro_batch_that_fitted(tmp_path: Path) -> None:
    kit = make_kit(tmp_path / "a", micro_batch="auto")
    kit.counter.at = {1: runs_out}
    kit.trainer.stop_requested = lambda: kit.counter.steps >= 6
    with pytest.raises(StopRequested):
        kit.trainer.run()
    again = make_kit(tmp_path / "a", micro_batch="auto")
    again.trainer.run()
    assert again.trainer.fitting.micro_batch == kit.trainer.fitting.micro_batch is not None


def test_out_of_memory_without_leave_to_shrink_names_what_to_change(tmp_path: Path) -> None:
    kit = make_kit(tmp_path / "a")
    kit.counter.at = {2: runs_out}
    with pytest.raises(TaskError) as caught:
        kit.trainer.run()
    message = str(caught.value)
    assert "out of memory" in message and "fusion.batch_size" in message
    assert "micro_batch=auto" in message
    assert str(kit.trainer.loaders.train.batch_size) in message
