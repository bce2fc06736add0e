"""Our side: the project's own context, models and trainers, as a launch sets them up."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fusionrun.data.augmentation.batch import one_hot
from fusionrun.data.loader import Batch
from fusionrun.experts import build_expert
from fusionrun.fusions import FusionModel
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.trainers import expert_trainer, row_trainer
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import (
    DataConfig,
    ExpertsConfig,
    FusionConfig,
    Recipe,
    RowConfig,
)
from fusionrun.study.rows import Member
from fusionrun.study.runtime import RuntimeConfig
from fusionrun.study.tasks import Task
from fusionrun.training.trainer import Trainer
from tests.bench.measure import Bench
from tests.bench.reference import Mixed, ReferenceTrainer

FUSION = "multiplicative"
CLASSES = 100
TINY_MODELS: dict[str, dict[str, Any]] = {
    "resnet": {"width": 8, "blocks": [1]},
    "densenet": {"growth": 4, "blocks": [1, 1], "stem": 8},
    "improved_wide_resnet": {"depth": 10, "widen": 1, "width": 4},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 4, "stem": 4},
}
TINY = TINY_MODELS["resnet"]
# Adam's first steps follow the sign of gradients that are nothing but rounding: at the published
# rates that alone sets two equal trainings apart by the third step
SMALL_RATE = 1e-7
MIX = 0.7  # weight of the own image in a mixed batch


def run_context(
    bench: Bench,
    model: str,
    arguments: dict[str, Any] | None = None,
    *,
    batch_size: int = 128,
    images: int = 1000,
    cache_dir: Path | None = None,
    rate: float | None = SMALL_RATE,
    micro_batch: int | Literal["auto"] | None = None,
    **runtime: Any,
) -> RunContext:
    """Where one row of `model` trains, on synthetic images or on the CIFAR-100 in `cache_dir`.

    `rate` is for all of the row; None: the published rates. All images pass at a time, or not at
    all, unless `micro_batch` says otherwise.
    Without dropout, whose masks depend on the memory layout: both sides shall compute the same.
    """
    device = "cuda" if bench.on_gpu else "cpu"
    data = DataConfig("synthetic", num_classes=CLASSES, train_images=images, test_images=200)
    if cache_dir is not None:
        data = DataConfig("cifar100", cache_dir=str(cache_dir))
    recipe = Recipe(
        output_dir=str(bench.folder(model)),
        rows=(RowConfig(model, FUSION),),
        data=data,
        models={model: {"dropout": 0.0, **(arguments or {})}},
        experts=ExpertsConfig(batch_size=batch_size),
        fusion=FusionConfig(
            batch_size=batch_size,
            micro_batch=micro_batch,
            experts_lr=rate,
            fusion_lr=rate,
        ),
        runtime=RuntimeConfig(**{"device": device, "recompute": False, **runtime}),
    )
    study = plan_study(recipe, "benchmark")
    return open_context(study, bench.device, torch.get_num_threads(), progress=lambda message: None)


def row(context: RunContext) -> Trainer:
    """What trains the context's row; its experts are untrained, which costs as much time."""
    task = context.study.tasks[0]
    torch.manual_seed(0)
    arguments = context.study.model_arguments(task.model)
    experts = [build_expert(task.model, CLASSES, **arguments) for _ in task.needs]
    return _without_dropout(row_trainer(context, task, _reporter(context, task), experts, []))


def expert(context: RunContext) -> Trainer:
    """What trains the first expert of that row."""
    task = context.study.expert_task(Member(context.study.tasks[0].model, 0))
    return _without_dropout(expert_trainer(context, task, _reporter(context, task)))


def _without_dropout(trainer: Trainer) -> Trainer:
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return trainer


def compute_in_double(trainer: Trainer) -> None:
    """Before its first step."""
    trainer.model.double()
    weights = trainer.optimisation.head_weights.double()
    changed = replace(trainer.optimisation, head_weights=weights)
    trainer.optimisation = trainer.step.optimisation = changed
    trainer.optimisation.optimizer.state.clear()  # was made for float32


def _reporter(context: RunContext, task: Task) -> TaskReporter:
    """With all that a launch writes."""
    log = TaskLog(context.study.layout.task_log(task.name), task.name)
    return TaskReporter(context.study, task, Record(), log, context.device)


def train_epoch(trainer: Trainer) -> None:
    """The next epoch as `Trainer.run` trains it, also beyond the last of its schedule."""
    for batch in trainer.start_epoch():
        trainer.train_step(batch)
        trainer.after_step()
    trainer.finish_epoch()


def reference_trainer(trainer: Trainer) -> ReferenceTrainer:
    """The other side, with the weights and settings of a row's trainer as it stands."""
    assert isinstance(trainer.model, FusionModel)
    return ReferenceTrainer(
        trainer.model,
        trainer.optimisation.groups,
        weight_decay=trainer.optimisation.optimizer.param_groups[0]["weight_decay"],
        smoothing=trainer.optimisation.label_smoothing,
        device=trainer.device,
    )


def endless_batches(trainer: Trainer) -> Iterator[Batch]:
    """Epoch after epoch."""
    epochs = map(trainer.loaders.train.training_batches, count())
    return chain.from_iterable(epochs)


def batch_for_both(trainer: Trainer) -> tuple[Batch, Mixed]:
    """The same mixed images as soft targets for us, as two labels and a weight for them."""
    batch = next(trainer.loaders.train.training_batches(seed=0))
    others = batch.labels.flip(0)
    own, other = (one_hot(labels, CLASSES) for labels in (batch.labels, others))
    ours = Batch(batch.images, MIX * own + (1 - MIX) * other, batch.labels)
    return ours, (batch.images.contiguous(), batch.labels, others, MIX)
