"""Every task's trainer is wired as published: of all architectures, fusion types and controls.

The tables here are written by hand, from what is published and what the recipe promises; nothing of
them is read from the package. How a part works (a clip, a schedule, an augmentation) its own tests
say; here is shown that each task gets the right one. wiring.py executes the tasks.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionrun.common.seeds import derive_seed
from fusionrun.components.manifest import read_manifest
from fusionrun.components.store import load_expert, load_model, load_single
from fusionrun.data.augmentation.policies import Augmentation
from fusionrun.evaluation.answers import Controls
from fusionrun.evaluation.predictions import HeadLogits, Origin, Predictions
from fusionrun.experts import BUILDERS
from fusionrun.fusions import FUSIONS, FusionModel
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.trainers import expert_trainer, row_trainer
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.context import RunContext
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.rows import Member
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.training.trainer import Trainer
from tests.contract.wiring import (
    CLASSES,
    HEAD_BEST,
    MEAN_BEST,
    Wired,
    executed,
    heads,
    name_of,
    open_recipe,
    validated,
)

TINY = {
    "densenet": "{growth: 4, blocks: [2], stem: 8}",
    "resnet": "{width: 8, blocks: [1]}",
    "improved_wide_resnet": "{depth: 10, widen: 1, width: 4}",
    "resnext": "{depth: 11, cardinality: 2, base_width: 4, stem: 4}",
}
MODELS = f"models={{{', '.join(f'{model}: {said}' for model, said in TINY.items())}}}"
CONTROLS = ("frozen", "detached")
ALPHA = 15.0  # of every row of the grid; the recipe's is 1


def augmentation(policy: str, erasing: float, num_ops: int = 2, magnitude: int = 9) -> Augmentation:
    """All of them crop, mirror, and cut a part of another image in."""
    return Augmentation(
        policy=policy,
        num_ops=num_ops,
        magnitude=magnitude,
        crop_padding=4,
        flip=0.5,
        erasing=erasing,
        mixing="cutmix",
        mixing_alpha=1.0,
    )


JITTER = augmentation("color_jitter", 0.25)
RANDOM = augmentation("randaugment", 0.1)
RANDOM_STRONG = augmentation("randaugment", 0.3, num_ops=3, magnitude=14)
TRIVIAL = augmentation("trivialaugment", 0.25)


class Alone(NamedTuple):
    """How a network trains by itself: SGD, momentum 0.9, Nesterov, cosine to 0, clipped to 1."""

    lr: float
    weight_decay: float
    batch_size: int
    augmentation: Augmentation
    mixup: float  # alpha, where the recipe prefers it to CutMix
    smoothing: float
    dropout: float
    dropout_in_row: float  # the architecture's own


ALONE = {
    "densenet": Alone(0.1, 1e-4, 64, RANDOM, 0.2, 0.05, 0.2, 0.0),
    "resnet": Alone(0.1, 1e-4, 128, JITTER, 0.4, 0.1, 0.0, 0.0),
    "improved_wide_resnet": Alone(0.1, 5e-4, 128, RANDOM_STRONG, 0.2, 0.05, 0.3, 0.3),
    "resnext": Alone(0.1, 5e-4, 128, TRIVIAL, 0.2, 0.05, 0.3, 0.3),
}


class Row(NamedTuple):
    """How a row trains: AdamW; experts clipped to 5, fusion and head to 1 each."""

    experts_lr: float  # for features of less than 100 numbers, as those of TINY
    heads_lr: float  # of the fusion module and of the global head
    weight_decay: float
    augmentation: Augmentation
    mixup: float
    smoothing: float


# base rates 1e-4, TransformerBase 5e-5, times 1.3, multiplicative another 1.1 times; heads' rates
# 5e-4, 1e-3 and 2e-4, times 1.2. multiplicativeShifted and simpleAddition have no published set:
# the one as multiplicative, the other as its rates are those of multiplicativeAddition, with the
# plain augmentation
MULTIPLICATIVE = Row(1.43e-4, 6e-4, 1e-4, JITTER, 0.2, 0.1)
ADDITION = Row(1.3e-4, 1.2e-3, 1e-4, JITTER, 0.2, 0.1)
CONCATENATION = Row(1.3e-4, 1.2e-3, 1e-4, RANDOM_STRONG, 0.3, 0.08)
ROWS = {
    "multiplicative": MULTIPLICATIVE,
    "multiplicativeAddition": CONCATENATION,
    "multiplicativeShifted": Row(1.3e-4, 6e-4, 1e-4, JITTER, 0.2, 0.1),
    "TransformerBase": Row(6.5e-5, 2.4e-4, 5e-4, TRIVIAL, 0.2, 0.05),
    "concatenation": CONCATENATION,
    "simpleAddition": ADDITION,
    # ours, as those that they begin as or are like
    "alignedMultiplicative": MULTIPLICATIVE,
    "alignedAddition": ADDITION,
    "gated": CONCATENATION,
    "meanLogits": ADDITION,
}
WEIGHTLESS = "meanLogits"  # in its rows experts alone learn, so none has frozen ones

# factors of the rate by epoch: 10 of a network alone, 12 of a row
TO_ZERO = (1, 0.975528, 0.904508, 0.793893, 0.654508, 0.5, 0.345492, 0.206107, 0.095492, 0.024472)
TO_TENTH = (
    *(1, 0.984667, 0.939711, 0.868198, 0.775, 0.666469, 0.55),
    *(0.433531, 0.325, 0.231802, 0.160289, 0.115333),
)
# periods of 3, 6 and 12 epochs, the last one cut off
RESTARTS = (
    *(1, 0.775, 0.325),
    *(1, 0.939711, 0.775, 0.55, 0.325, 0.160289),
    *(1, 0.984667, 0.939711),
)

# of the one recipe that all fusion types can share: 1e-4 and 5e-4, times 1.3 and 1.2 for features
# of less than 100 numbers; experts with a first period of 4 epochs, then one of 8
ANNEALED = (
    *(1, 0.868198, 0.55, 0.231802),
    *(1, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254),
)
RATES_OF_ALL = {
    "experts": [1.3e-4 * factor for factor in ANNEALED],
    "fusion": [6e-4 * factor for factor in TO_TENTH],
    "global_head": [6e-4 * factor for factor in TO_TENTH],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wired]:
    """Every architecture's experts, its rows of every fusion type, and all their controls."""
    grid = f"{{models: [{', '.join(TINY)}], fusions: [{', '.join(FUSIONS)}], alphas: [{ALPHA}]}}"
    folder = tmp_path_factory.mktemp("wiring")
    controls = f"controls=[{', '.join(CONTROLS)}, single, full_ensemble]"
    return executed(open_recipe(folder, MODELS, f"grid={grid}", controls), saved=["resnet"])


def alone(tasks: dict[str, Wired]) -> Iterator[tuple[Alone, Wired]]:
    """Networks that train by themselves: experts, single ones, and those of full ensembles."""
    for model, expected in ALONE.items():
        for name in (f"{model} 0", f"{model} 1", f"{model}/single", f"{model}/single-network1"):
            yield expected, tasks[name]


def rows(tasks: dict[str, Wired], *controls: str | None) -> Iterator[tuple[Row, Alone, Wired]]:
    """Rows with those controls, by default with each and without."""
    for model, (fusion, expected) in itertools.product(ALONE, ROWS.items()):
        for control in controls or (None, *CONTROLS):
            method = f"{fusion}-{control}" if control else fusion
            if (fusion, control) != (WEIGHTLESS, "frozen"):
                yield expected, ALONE[model], tasks[f"{model}/{method}-alpha15"]


def test_the_tables_are_of_everything(tasks: dict[str, Wired]) -> None:
    assert (ALONE.keys(), ROWS.keys()) == (BUILDERS.keys(), FUSIONS.keys())
    found = [*alone(tasks), *rows(tasks)]
    assert len({id(wired) for *_, wired in found}) == len(found) == len(tasks)


# ------------------------------------------------------------------ what an update is


def test_every_parameter_learns_in_one_group(tasks: dict[str, Wired]) -> None:
    for wired in tasks.values():
        groups = wired.trainer.optimisation.groups
        in_groups = [id(p) for group in groups for p in group.parameters]
        optimized = [
            id(p) for g in wired.trainer.optimisation.optimizer.param_groups for p in g["params"]
        ]
        learning = [id(p) for p in wired.trainer.model.parameters() if p.requires_grad]
        assert sorted(in_groups) == sorted(optimized) == sorted(learning), wired.task.name
        assert all(group.parameters for group in groups)
    for _, _, wired in rows(tasks):
        assert isinstance(wired.task, RowTask)
        group_of = {id(p): g.name for g in wired.trainer.optimisation.groups for p in g.parameters}
        for part, module in wired.parts.items():
            name = "experts" if part.startswith("expert ") else part
            is_frozen = name == "experts" and wired.task.row.control == "frozen"
            has_none = name != "experts" and wired.task.row.fusion == WEIGHTLESS
            learning = [p for p in module.parameters() if p.requires_grad]
            expected = set() if is_frozen or has_none else {name}
            assert {group_of[id(p)] for p in learning} == expected, (wired.task.name, part)
            assert is_frozen or len(learning) == len([*module.parameters()])


def test_optimizers(tasks: dict[str, Wired]) -> None:
    for expected, wired in alone(tasks):
        assert isinstance(wired.trainer.optimisation.optimizer, torch.optim.SGD)
        wanted = {"momentum": 0.9, "nesterov": True, "dampening": 0, "maximize": False}
        wanted |= {"weight_decay": expected.weight_decay}
        assert {name: wired.settings[name] for name in wanted} == wanted, wired.task.name
    for row, _, wired in rows(tasks):
        assert isinstance(wired.trainer.optimisation.optimizer, torch.optim.AdamW)
        wanted = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False}
        wanted |= {"weight_decay": row.weight_decay}
        assert {name: wired.settings[name] for name in wanted} == wanted, wired.task.name


def test_rates_at_every_epoch(tasks: dict[str, Wired]) -> None:
    for expected, wired in alone(tasks):
        begun = wired.trainer.begun
        assert [[*epoch] for epoch in begun] == [["expert"]] * 10
        wanted = [expected.lr * factor for factor in TO_ZERO]
        assert [epoch["expert"] for epoch in begun] == pytest.approx(wanted, rel=1e-4)
    for row, _, wired in rows(tasks):
        by_group = {
            "experts": [row.experts_lr * factor for factor in RESTARTS],
            "fusion": [row.heads_lr * factor for factor in TO_TENTH],
            "global_head": [row.heads_lr * factor for factor in TO_TENTH],
        }
        assert isinstance(wired.task, RowTask)
        if wired.task.row.control == "frozen":
            del by_group["experts"]
        if wired.task.row.fusion == WEIGHTLESS:
            del by_group["fusion"], by_group["global_head"]
        begun = wired.trainer.begun
        assert {frozenset(epoch) for epoch in begun} == {frozenset(by_group)}
        for name, wanted in by_group.items():
            found = [epoch[name] for epoch in begun]
            assert found == pytest.approx(wanted, rel=1e-4), (wired.task.name, name)


def test_clips(tasks: dict[str, Wired]) -> None:
    """Of each group by itself, measured on gradients that are too large."""
    limits = {"expert": 1.0, "experts": 5.0, "fusion": 1.0, "global_head": 1.0}
    for wired in tasks.values():
        groups = wired.trainer.optimisation.groups
        for parameter in (p for group in groups for p in group.parameters):
            parameter.grad = torch.full_like(parameter, 1e3)
        wired.trainer.step.guard.clip(groups)
        for group in groups:
            norm = torch.stack([p.grad.norm() for p in group.parameters if p.grad is not None])
            assert float(norm.norm()) == pytest.approx(limits[group.name], rel=1e-4)
            for parameter in group.parameters:
                parameter.grad = None


def test_losses(tasks: dict[str, Wired]) -> None:
    for expected, wired in alone(tasks):
        optimisation = wired.trainer.optimisation
        assert optimisation.head_weights.tolist() == [1.0], wired.task.name
        assert optimisation.label_smoothing == expected.smoothing, wired.task.name
    for row, _, wired in rows(tasks):
        optimisation = wired.trainer.optimisation
        assert optimisation.head_weights.tolist() == [1.0, ALPHA, ALPHA], wired.task.name
        assert optimisation.label_smoothing == row.smoothing, wired.task.name


# ------------------------------------------------------------------ what it learns from


def test_augmentation(tasks: dict[str, Wired]) -> None:
    for expected, wired in alone(tasks):
        assert wired.augmentation == expected.augmentation, wired.task.name
    for row, _, wired in rows(tasks):
        assert wired.augmentation == row.augmentation, wired.task.name
    for wired in tasks.values():
        validation = wired.trainer.loaders.validation.augmentation
        assert (validation.policy, validation.mixing) == ("none", "none")
        assert (validation.flip, validation.erasing, validation.crop_padding) == (0, 0, 0)


def test_batch_sizes_and_epochs(tasks: dict[str, Wired]) -> None:
    for expected, wired in alone(tasks):
        assert wired.trainer.loaders.train.batch_size == expected.batch_size, wired.task.name
        assert len(wired.trainer.begun) == 10, wired.task.name
    for _, _, wired in rows(tasks):
        assert wired.trainer.loaders.train.batch_size == 128, wired.task.name
        assert len(wired.trainer.begun) == 12, wired.task.name


def test_dropout(tasks: dict[str, Wired]) -> None:
    """0.2 of fusions; of experts as published while they train alone, as built within rows."""
    for expected, wired in alone(tasks):
        assert wired.dropout("expert 0") == {expected.dropout}, wired.task.name
    for _, expected, wired in rows(tasks):
        for k in range(2):
            assert wired.dropout(f"expert {k}") == {expected.dropout_in_row}, wired.task.name
        assert wired.dropout("fusion") <= {0.2}, wired.task.name
        assert not wired.dropout("global_head")
    for fusion in ROWS:
        drops = fusion != WEIGHTLESS
        assert bool(tasks[f"resnet/{fusion}-alpha15"].dropout("fusion")) == drops, fusion


class Parts(NamedTuple):
    """Who should train on which of 160 images, from the published rules."""

    experts: list[set[int]]
    holdout: set[int]


def parts_by_the_rules(context: RunContext) -> Parts:
    """From the two files: a fifth of all; of the rest two fifths for all experts, 15 % each."""
    stored = context.study.splits_dir
    holdout = np.load(stored / "fusion_holdout_indices.npy")
    pool = np.load(stored / "expert_train_indices.npy")
    drawn = np.random.default_rng(42).permutation(160)
    assert holdout.tolist() == sorted(drawn[:32]) and pool.tolist() == sorted(drawn[32:])
    order = np.random.default_rng(42).permutation(pool)
    shared, unique = 51, 19  # of 128
    own = [order[shared + k * unique : shared + (k + 1) * unique] for k in range(2)]
    return Parts([{*order[:shared], *mine} for mine in own], {*holdout})


def images_of(loader: Any) -> tuple[Tensor, Tensor]:
    """(images, labels) of a pass as validation makes it."""
    batches = [*loader.evaluation_batches()]
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


def indices_of(context: RunContext, loader: Any) -> set[int]:
    """Which training images a loader has, found by their pixels."""
    everything = images_of(context.loader(np.arange(160), 160))[0].flatten(1)
    places = {image.numpy().tobytes(): index for index, image in enumerate(everything)}
    assert len(places) == 160
    found = [places[image.numpy().tobytes()] for image in images_of(loader)[0].flatten(1)]
    assert len(found) == len(set(found)) == loader.num_images
    return set(found)


def test_who_trains_and_validates_on_what(tasks: dict[str, Wired]) -> None:
    (context, *_) = (wired.context for wired in tasks.values())
    expected = parts_by_the_rules(context)
    used = {
        name: [
            indices_of(context, each)
            for each in (wired.trainer.loaders.train, wired.trainer.loaders.validation)
        ]
        for name, wired in tasks.items()
    }
    validation = used["resnet/concatenation-alpha15"][1]
    labels = context.data.train_labels[sorted(validation)]
    assert validation < expected.holdout and len(validation) == 8  # a quarter
    assert labels.bincount(minlength=CLASSES).min() >= 1
    fusion = expected.holdout - validation
    everything = fusion.union(*expected.experts)
    for name, (trained, validated_on) in used.items():
        assert validated_on == validation, name
        if "/single" in name:
            assert trained == everything, name
        elif "/" in name:
            assert trained == fusion, name
        else:
            assert trained == expected.experts[int(name[-1])], name


def test_experts_of_their_own_classes(tmp_path: Path) -> None:
    split = ("data.split=non_iid", "experts.classes=own", "controls=[single]")
    context = open_recipe(tmp_path, MODELS, "rows=[{model: resnet, fusion: concatenation}]", *split)
    found, labels = executed(context, []), context.data.train_labels.tolist()
    holdout = set(np.load(context.study.splits_dir / "fusion_holdout_indices.npy").tolist())
    row = found["resnet/concatenation"].trainer.loaders
    validation = indices_of(context, row.validation)
    pool = set(range(160)) - holdout
    for k, classes in enumerate(({0, 1}, {2, 3})):
        loaders = found[f"resnet {k}"].trainer.loaders
        for loader, among in ((loaders.train, pool), (loaders.validation, validation)):
            expected = {index for index in among if labels[index] in classes}
            assert indices_of(context, loader) == expected
        assert {*found[f"resnet {k}"].trainer.model.own_classes} == classes
    everything = pool | holdout - validation
    assert indices_of(context, row.train) == holdout - validation
    assert indices_of(context, found["resnet/single"].trainer.loaders.train) == everything


# ------------------------------------------------------------------ what is drawn, frozen and kept


def test_a_row_and_its_controls_draw_the_same(tasks: dict[str, Wired]) -> None:
    seeds_of: dict[tuple[str, str], set[int]] = {}
    for _, _, wired in rows(tasks):
        assert isinstance(wired.task, RowTask)
        who = wired.task.row.model, wired.task.row.fusion
        seeds_of.setdefault(who, set()).add(wired.trainer.schedule.seed)
    assert len(seeds_of) == len({*itertools.chain(*seeds_of.values())}) == len(ALONE) * len(ROWS)
    seeds = [tasks[f"{model} {k}"].trainer.schedule.seed for model in ALONE for k in range(2)]
    assert len({*seeds}) == len(seeds)
    assert seeds[0] == derive_seed(42, "densenet", 0)  # of all that trained since 0.1.0


def test_a_full_ensemble_has_networks_of_their_own(tasks: dict[str, Wired]) -> None:
    """The first is the single one; the mean of their probabilities is what it answers."""
    one, another = (tasks[f"resnet/{name}"].trainer for name in ("single", "single-network1"))
    assert one.schedule.seed == derive_seed(42, "resnet", "single")  # as since 0.1.0
    assert another.schedule.seed not in {
        wired.trainer.schedule.seed for wired in tasks.values()
    } - {another.schedule.seed}
    assert not torch.equal(trunk_of(one.model), trunk_of(another.model))
    context = tasks["resnet/single"].context
    names = {name_of(task): task for task in context.study.tasks}
    needs = names["resnet/full_ensemble"].needs
    assert set(needs) == {names[f"resnet/{n}"].name for n in ("single", "single-network1")}
    folder = context.study.layout.row("resnet", "single").directory.parent
    whole = load_model(folder / "full_ensemble").eval()
    networks = [load_single(folder / name).eval() for name in ("single", "single-network1")]
    images = next(context.test_loader().evaluation_batches()).images
    with torch.no_grad():
        found = whole.class_logits(images).softmax(dim=1)
        each = [network.class_logits(images).softmax(dim=1) for network in networks]
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0))


def test_experts_of_another_seed(tmp_path: Path) -> None:
    """They draw their own numbers, and nothing else is another's: images, settings, the row's."""
    rows = "rows=[{model: resnet, fusion: concatenation}, {model: resnet, fusion: concatenation"
    found = executed(open_recipe(tmp_path, MODELS, f"{rows}, expert_seed: 43}}]"), ["resnet"])
    assert len(found) == 6
    row, other = found["resnet/concatenation"], found["resnet/concatenation-experts43"]
    assert row.trainer.schedule.seed == other.trainer.schedule.seed
    for k in range(2):
        expert, another = found[f"resnet {k}"].trainer, found[f"resnet {k} of seed 43"].trainer
        assert expert.schedule.seed == derive_seed(42, "resnet", k)
        assert another.schedule.seed == derive_seed(43, "resnet", k)
        assert another.begun == expert.begun
        assert indices_of(row.context, another.loaders.train) == indices_of(
            row.context, expert.loaders.train
        )
        started = [trunk_of(wired.parts[f"expert {k}"]) for wired in (row, other)]
        trained = [trunk_of(trainer.model) for trainer in (expert, another)]
        assert all(torch.equal(*pair) for pair in zip(started, trained, strict=True))
        assert not torch.equal(*trained)


def test_a_row_of_another_seed_begins_with_other_weights(tmp_path: Path) -> None:
    """Of its fusion and its head; its control begins with the same."""
    grid = "grid={models: [resnet], fusions: [concatenation], seeds: [42, 43]}"
    found = executed(open_recipe(tmp_path, MODELS, grid, "controls=[detached]"), [])
    rows = [wired.parts for name, wired in found.items() if "/" in name]
    assert len(rows) == 4
    for part in ("fusion", "global_head"):
        begun = [nn.utils.parameters_to_vector(parts[part].parameters()) for parts in rows]
        assert len({weights.detach().numpy().tobytes() for weights in begun}) == 2, part


def trunk_of(expert: nn.Module) -> Tensor:
    """Its first weights, which no scripted epoch changes."""
    return next(expert.parameters())


def test_what_learns_and_in_which_mode(tasks: dict[str, Wired]) -> None:
    for _, wired in alone(tasks):
        assert all(wired.trainer.training.values()), wired.task.name
    for _, _, wired in rows(tasks):
        assert isinstance(wired.task, RowTask) and isinstance(wired.trainer.model, FusionModel)
        is_frozen = wired.task.row.control == "frozen"
        for part, module in wired.parts.items():
            kept = is_frozen and part.startswith("expert ")
            modes = {wired.trainer.training[each] for each in module.modules()}
            assert modes == {not kept}, (wired.task.name, part)
            assert all(p.requires_grad != kept for p in module.parameters())
        assert wired.trainer.model.detached == (wired.task.row.control == "detached")


def test_the_epoch_that_validation_selects_is_what_is_saved(tasks: dict[str, Wired]) -> None:
    """The first of two equally accurate ones, as its loss is smaller; each head of that epoch.

    A detached row's is the one in which the mean that it reports is best.
    """

    def epochs(model: nn.Module) -> set[float]:
        return {value for head in heads(model) for value in head.bias.tolist()}

    for wired in (wired for wired in tasks.values() if wired.is_saved):
        study, task = wired.context.study, wired.task
        if isinstance(task, ExpertTask):
            saved: nn.Module = load_expert(study.expert_file(*task.member))
            assert epochs(saved) == {HEAD_BEST}, task.name
            continue
        best = MEAN_BEST if task.row.control == "detached" else HEAD_BEST
        directory = study.layout.row(task.model, task.row.variant).directory
        saved = (load_single if task.row.is_single else load_model)(directory)
        assert epochs(saved) == {best}, task.name
        manifest = read_manifest(directory / "manifest.json")
        assert manifest.epoch == best, task.name
        if not task.row.is_single:
            assert manifest.validation["experts"] == validated(best, 2), task.name
            averaged = 70.0 if best == MEAN_BEST else 50.0  # as scripted
            assert manifest.validation["mean_probabilities"] == averaged, task.name
            for k in range(2):
                expert = load_expert(directory / f"experts/expert_{k}_best.pth")
                assert epochs(expert) == {best}, task.name


@pytest.mark.parametrize("control", [*CONTROLS, "single", "full_ensemble"])
def test_which_heads_a_control_reports(tasks: dict[str, Wired], control: str) -> None:
    """The fused one; without gradients of the fusion the experts', averaged as alternatives are."""
    own = tasks["resnet/concatenation-alpha15"].task
    is_row = control in CONTROLS
    variant = f"concatenation-{control}-alpha15" if is_row else control
    context = tasks["resnet/single"].context
    (task,) = (t for t in context.study.row_tasks if name_of(t) == f"resnet/{variant}")
    assert isinstance(own, RowTask)
    logits = torch.randn(6, 3 if is_row else 1, CLASSES)
    answers = HeadLogits(torch.arange(6) % CLASSES, logits, logits[:, 1:])
    inside = torch.empty(6, 0), torch.empty(0), torch.empty(0, 2)
    controls = Controls()
    controls.add(task.row, Predictions(Origin("", (), "", ""), answers, answers, *inside))
    (found,) = controls.of(own.row)
    assert found.method.key == control
    probabilities = logits.double().softmax(dim=-1)
    expected = probabilities[:, 1:].mean(dim=1) if control == "detached" else probabilities[:, 0]
    torch.testing.assert_close(found.test().exp(), expected)
    torch.testing.assert_close(found.validation().exp(), expected)


# ------------------------------------------------------------------ all of it at once: an update


@contextmanager
def reporter(context: RunContext, task: Task, path: Path) -> Iterator[TaskReporter]:
    with (
        TaskLog(path, task.name) as log,
        closing(TaskReporter(context.study, task, Record(), log, context.device)) as said,
    ):
        yield said


def assert_learns(
    trainer: Trainer,
    loss: Callable[[Any, Tensor, Tensor], Tensor],
    optimizer: Callable[[Any], torch.optim.Optimizer],
    clips: Callable[[Any], list[tuple[float, list[nn.Parameter]]]],
) -> None:
    """Three updates are those that plain torch makes of the same batches with the same dropout."""
    model = copy.deepcopy(trainer.model)
    learner, clipped = optimizer(model), 0
    for step, batch in zip(range(3), trainer.start_epoch(), strict=False):
        for module, other in zip(model.modules(), trainer.model.modules(), strict=True):
            module.training = other.training
        torch.manual_seed(derive_seed(trainer.schedule.seed, "dropout", 0, step))
        learner.zero_grad()
        loss(model, batch.images, batch.targets).backward()
        for limit, parameters in clips(model):
            clipped += int(nn.utils.clip_grad_norm_(parameters, limit) > limit)
        learner.step()
        trainer.train_step(batch)
        trainer.after_step()
        state = model.state_dict()
        for name, value in trainer.model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-7)
    assert clipped, "the gradients are too small to show a limit"


def smoothed(targets: Tensor, smoothing: float) -> Tensor:
    return targets * (1 - smoothing) + smoothing / CLASSES


def test_an_experts_update(tmp_path: Path) -> None:
    """Cross-entropy with 5 % smoothing; SGD at 0.1, momentum 0.9, Nesterov, decay 5e-4, clip 1."""
    row = "rows=[{model: resnext, fusion: concatenation}]"
    context = open_recipe(tmp_path, MODELS, row, "experts.batch_size=16")
    task = context.study.expert_task(Member("resnext", 1))
    with reporter(context, task, tmp_path / "log") as said:
        assert_learns(
            expert_trainer(context, task, said),
            lambda model, images, targets: F.cross_entropy(
                model(images)[1], smoothed(targets, 0.05)
            ),
            lambda model: torch.optim.SGD(
                model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
            ),
            lambda model: [(1.0, [*model.parameters()])],
        )


@pytest.mark.parametrize("control", ["", *CONTROLS])
def test_a_rows_update(tmp_path: Path, control: str) -> None:
    """CE(fused) + alpha times the sum of the experts' CE, each with 10 % smoothing; AdamW."""
    more = f", control: {control}" if control else ""
    row = f"rows=[{{model: resnet, fusion: multiplicative, alpha: {ALPHA}{more}}}]"
    context = open_recipe(tmp_path, MODELS, row, "fusion.batch_size=8")
    (task,) = context.study.row_tasks
    torch.manual_seed(1)
    experts = [context.build_expert("resnet") for _ in range(2)]

    def loss(model: FusionModel, images: Tensor, targets: Tensor) -> Tensor:
        targets, features, each = smoothed(targets, 0.1), [], torch.zeros(())
        for expert in model.experts:
            found, logits = expert(images)
            features.append(found.detach() if control == "detached" else found)
            each = each + F.cross_entropy(logits, targets)
        fused = model.global_head(model.fusion(torch.stack(features, dim=1)))
        return F.cross_entropy(fused, targets) + ALPHA * each

    def parts(model: FusionModel) -> list[tuple[float, float, list[nn.Parameter]]]:
        """(rate, clip, weights)."""
        heads = [(6e-4, 1.0, [*part.parameters()]) for part in (model.fusion, model.global_head)]
        experts = [*model.experts.parameters()]
        return heads if control == "frozen" else [(1.43e-4, 5.0, experts), *heads]

    with reporter(context, task, tmp_path / "log") as said:
        assert_learns(
            row_trainer(context, task, said, experts, []),
            loss,
            lambda model: torch.optim.AdamW(
                [{"params": weights, "lr": lr} for lr, _, weights in parts(model)],
                weight_decay=1e-4,
            ),
            lambda model: [(clip, weights) for _, clip, weights in parts(model)],
        )


# ------------------------------------------------------------------ what the recipe can change


def test_what_the_recipe_leaves_open_is_as_published(tmp_path: Path) -> None:
    rows = "rows=[{model: densenet, fusion: concatenation}, {model: densenet, fusion: single}]"
    path = tmp_path / "least.yaml"
    path.write_text(f"output_dir: {tmp_path}\n{rows.replace('=', ': ')}\n")
    recipe = load_recipe(path, [])
    study = plan_study(recipe, "least")
    assert {task.name: task.epochs for task in study.tasks} == {
        "task-0-densenet-concatenation": 100,
        "task-1-densenet-single": 250,
        **{f"expert-densenet-{k}": 250 for k in range(4)},
    }
    data = recipe.data
    fractions = data.holdout_fraction, data.shared_fraction, data.unique_fraction
    assert (data.name, data.split, data.seed, fractions) == (
        "cifar100",
        "iid",
        42,
        (0.2, 0.4, 0.15),
    )
    assert (recipe.seed, study.rows[0].seed, study.rows[0].alpha) == (42, 42, 1.0)


def test_rates_at_the_published_sizes(tmp_path: Path) -> None:
    """Four networks as published: of their own feature size, 1024 and 512."""
    sizes = {"densenet": (7e-5, 8e-4), "resnet": (1e-4, 1e-3)}
    rows = [f"{{model: {model}, fusion: concatenation}}" for model in sizes]
    context = open_recipe(tmp_path, f"rows=[{', '.join(rows)}]")
    for task, (experts_lr, heads_lr) in zip(context.study.row_tasks, sizes.values(), strict=True):
        experts = [context.build_expert(task.model) for _ in range(2)]
        with reporter(context, task, tmp_path / "log") as said:
            trainer = row_trainer(context, task, said, experts, [])
        found = {group.name: group.lr for group in trainer.optimisation.groups}
        wanted = {"experts": experts_lr, "fusion": heads_lr, "global_head": heads_lr}
        assert found == pytest.approx(wanted)


def test_the_recipes_own_settings_come_first(tmp_path: Path) -> None:
    context = open_recipe(
        tmp_path,
        "models={resnet: {width: 8, blocks: [1], dropout: 0.15, row_lr: 0.003}}",
        "rows=[{model: resnet, fusion: TransformerBase}, {model: resnet, fusion: single}]",
        *("experts.lr=0.03", "experts.weight_decay=0.02", "experts.batch_size=24"),
        *("experts.augmentation=crop_flip", "experts.mixing=mixup", "experts.mixing_alpha=0.7"),
        *("experts.label_smoothing=0.2", "experts.epochs=7", "seed=5"),
        *("fusion.experts_lr=0.01", "fusion.fusion_lr=0.02", "fusion.global_head_lr=0.04"),
        *("fusion.weight_decay=0.3", "fusion.batch_size=16", "fusion.augmentation=randaugment"),
        *("fusion.mixing=none", "fusion.label_smoothing=0", "fusion.epochs=8", "fusion.alpha=0.25"),
    )
    found = executed(context, [])
    for name in ("resnet 0", "resnet 1", "resnet/single"):
        wired = found[name]
        assert wired.trainer.begun[0] == {"expert": 0.03} and len(wired.trainer.begun) == 7
        assert wired.settings["weight_decay"] == 0.02
        assert wired.trainer.loaders.train.batch_size == 24
        plain = augmentation("none", 0.0)
        assert wired.augmentation == replace(plain, mixing="mixup", mixing_alpha=0.7)
        assert wired.trainer.optimisation.label_smoothing == 0.2
        assert wired.dropout("expert 0") == {0.15}
    row = found["resnet/TransformerBase"]
    rates = {"experts": 0.003, "fusion": 0.02, "global_head": 0.04}  # models.resnet.row_lr
    assert row.trainer.begun[0] == rates
    assert row.settings["weight_decay"] == 0.3 and len(row.trainer.begun) == 8
    assert row.trainer.loaders.train.batch_size == 16
    assert row.augmentation == replace(RANDOM, mixing="none")
    assert row.trainer.optimisation.label_smoothing == 0
    assert row.trainer.optimisation.head_weights.tolist() == [1, 0.25, 0.25]
    assert row.dropout("expert 0") == {0.15}
    assert found["resnet 0"].trainer.schedule.seed == derive_seed(5, "resnet", 0)


def test_mixup_has_its_own_strength(tmp_path: Path) -> None:
    grid = f"grid={{models: [{', '.join(TINY)}], fusions: [{', '.join(FUSIONS)}]}}"
    mixup = "experts.mixing=mixup", "fusion.mixing=mixup"
    study = open_recipe(tmp_path, MODELS, grid, *mixup).study
    for model, alone in ALONE.items():
        wanted = replace(alone.augmentation, mixing="mixup", mixing_alpha=alone.mixup)
        assert study.expert_augmentation(model) == wanted
    for fusion, row in ROWS.items():
        wanted = replace(row.augmentation, mixing="mixup", mixing_alpha=row.mixup)
        assert study.fusion_augmentation(fusion) == wanted


def test_a_shared_recipe_is_the_same_for_every_fusion(tmp_path: Path) -> None:
    """And its rates end where a cycle ends, with the last epoch."""
    grid = f"grid={{models: [densenet], fusions: [{', '.join(FUSIONS)}], alphas: [{ALPHA}]}}"
    shared = "fusion.recipe=shared", "fusion.schedule=annealed"
    tasks = executed(
        open_recipe(tmp_path, MODELS, grid, "controls=[detached, single]", *shared), []
    )
    wired = [
        tasks[f"densenet/{fusion}{control}-alpha15"]
        for fusion, control in itertools.product(ROWS, ("", "-detached"))
    ]
    assert len({each.trainer.schedule.seed for each in wired}) == 1
    batches = [next(each.trainer.loaders.train.training_batches(1)) for each in wired]
    for each, batch in zip(wired, batches, strict=True):
        for name in each.trainer.begun[0]:
            found = [epoch[name] for epoch in each.trainer.begun]
            assert found == pytest.approx(RATES_OF_ALL[name], rel=1e-4), each.task.name
        assert each.settings["weight_decay"] == 1e-4
        assert each.augmentation == TRIVIAL
        assert each.trainer.optimisation.label_smoothing == 0.08
        assert torch.equal(batch.images, batches[0].images)
    single = tasks["densenet/single"]
    assert single.trainer.begun[0] == {"expert": 0.1} and single.augmentation == RANDOM


def test_a_row_of_different_experts(tmp_path: Path) -> None:
    """Adapters learn as the fusion does, an architecture's own rate and frozen stages hold."""
    resnet = "resnet: {width: 8, blocks: [1], frozen_stages: 1}"
    models = f"models={{densenet: {{growth: 4, blocks: [2], stem: 8, row_lr: 0.002}}, {resnet}}}"
    row = "rows=[{model: [densenet, resnet], fusion: concatenation, name: pair}]"
    tasks = executed(open_recipe(tmp_path, models, row), [])
    wired = tasks["mixed-pair/concatenation"]
    factors = dict.fromkeys(("experts", "experts_0.002"), RESTARTS)
    factors |= dict.fromkeys(("adapters", "fusion", "global_head"), TO_TENTH)
    rates = {"experts": 1.3e-4, "experts_0.002": 2e-3}
    limits = {"experts": 5.0, "experts_0.002": 5.0}
    groups = {group.name: group for group in wired.trainer.optimisation.groups}
    assert groups.keys() == factors.keys()
    for name, group in groups.items():
        wanted = [rates.get(name, 1.2e-3) * factor for factor in factors[name]]
        assert [epoch[name] for epoch in wired.trainer.begun] == pytest.approx(wanted, rel=1e-4)
        assert group.clip == limits.get(name, 1.0)
    densenet, resnet_expert = wired.parts["expert 0"], wired.parts["expert 1"]
    assert {*groups["experts_0.002"].parameters} == {*densenet.parameters()}
    assert {*groups["experts"].parameters} < {*resnet_expert.parameters()}
    assert wired.augmentation == RANDOM_STRONG
    for network in (resnet_expert, tasks["resnet 1"].trainer.model):
        fixed = [p for p in network.parameters() if not p.requires_grad]
        assert fixed and fixed[0] is trunk_of(network)
    for each in (wired, tasks["resnet 1"]):
        asleep = [m for m, training in each.trainer.training.items() if not training]
        assert asleep and {*asleep} == {
            m for f in each.trainer.optimisation.frozen for m in f.modules()
        }
