"""How a rank executes a task: an expert's training, or a row's, from weights to saved results."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fusionrun.common.seeds import derive_seed
from fusionrun.components.starting_experts import load_experts
from fusionrun.components.store import (
    ComponentInfo,
    save_component,
    save_model,
    save_single,
    state_hash,
)
from fusionrun.evaluation.alternatives import accuracy, compare
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel
from fusionrun.launch.resume import resume_path
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.study.context import EVALUATION_BATCH, RunContext
from fusionrun.study.defaults import EXPERT_CLIP, HEAD_CLIP
from fusionrun.study.paths import expert_file
from fusionrun.study.rows import Row
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.training.checkpoint import ResumeFile
from fusionrun.training.identity import weights_in
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
from fusionrun.training.trainer import Checkpointing, Loaders, Optimisation, Schedule, Trainer

SAMPLE = 12  # training images that TensorBoard shows


def train_expert(context: RunContext, task: ExpertTask, reporter: TaskReporter) -> None:
    """Train one expert on its part of the data and save its best epoch."""
    trainer = expert_trainer(context, task, reporter)
    best = trainer.run()
    path = expert_file(context.study.checkpoint_dir, task.model, task.expert)
    settings = dict(trainer.checkpointing.identity.fields)
    info = _component_info(context, task, trainer, expert=task.expert, settings=settings)
    save_component(path, best.state, info)
    trainer.checkpointing.file.remove()
    reporter.message(f"saved {path} (weights {state_hash(best.state)[:12]})")


def train_row(context: RunContext, task: RowTask, reporter: TaskReporter) -> None:
    """Train a row, measure its best epoch on the test set, save and record it.

    A single row is one network without experts, trained as they are, on all that a row sees.
    """
    row, splits = task.row, context.splits
    sources: list[str] = []
    before: list[float] = []
    if row.is_single:
        images = splits.everything, splits.fusion_val
        trainer = _network_trainer(context, task, reporter, *images, row_seed(row))
    else:
        torch.manual_seed(derive_seed(row_seed(row), "weights"))
        experts, sources = load_experts(context, row.model)
        for source in sources:
            reporter.message(f"starts from {source}")
        trainer = row_trainer(context, task, reporter, experts, sources)
        # read before training changes them: the alternative that costs no fusion training at all
        for expert in experts:
            logits, labels = collect_logits(expert, trainer.loaders.validation, bf16=context.bf16)
            before.append(accuracy(logits[:, 0], labels))
    best = trainer.run()
    trainer.model.load_state_dict(best.state)
    after = trainer.history[best.epoch - 1].val_accuracies[1:]
    results = evaluate_row_once(context, row, trainer.model, after, before)
    manifest: dict[str, Any] = {
        "row": row.name,
        "variant": row.variant,
        "control": row.control,
        "seed": row.seed,
        "alpha": row.alpha,
        "settings": dict(trainer.checkpointing.identity.fields),
        "weights": state_hash(best.state),
        "threads": context.threads,
        "device": str(context.device),
        "launch": dict(context.launch),
    }
    files = context.study.layout.row(row.model, row.variant)
    info = _component_info(context, task, trainer, fusion=context.study.source(row.fusion))
    validation: dict[str, Any] = {"fused": best.val_accuracy}
    if isinstance(trainer.model, FusionModel):
        validation |= {"experts": after, "before_experts": before}
        manifest |= {"experts_from": sources, "validation": validation, "test": results}
        save_model(files, trainer.model, info, after, manifest)
    else:
        manifest |= {"validation": validation, "test": results}
        save_single(files, trainer.model, info, manifest)
    reporter.measured(results)
    trainer.checkpointing.file.previous.unlink(missing_ok=True)
    reporter.message(f"saved {files.directory} (weights {state_hash(best.state)[:12]})")


def evaluate_row_once(
    context: RunContext,
    row: Row,
    model: nn.Module,
    val_accuracies: list[float],
    before_val_accuracies: list[float],
) -> dict[str, Any]:
    """The one reading of the test set: fused, tuned experts, experts before tuning."""
    loader = context.test_loader(EVALUATION_BATCH)
    logits, labels = collect_logits(model, loader, bf16=context.bf16)
    if row.is_single:
        return {"fused": accuracy(logits[:, 0], labels)}
    untuned, _ = load_experts(context, row.model)
    before = []
    for expert in untuned:
        context.settle(expert)
        before.append(collect_logits(expert, loader, bf16=context.bf16)[0][:, 0])
    return dict(
        compare(
            logits,
            labels,
            torch.stack(before, dim=1),
            val_accuracies=val_accuracies,
            before_val_accuracies=before_val_accuracies,
        )
    )


def expert_trainer(context: RunContext, task: ExpertTask, reporter: TaskReporter) -> Trainer:
    """What trains an expert: its network with new weights, its data, its optimizer."""
    splits, k = context.splits, task.expert
    images = splits.expert_train[k], splits.expert_val[k]
    seed = derive_seed(context.study.recipe.seed, task.model, k)
    return _network_trainer(context, task, reporter, *images, seed)


def _network_trainer(
    context: RunContext,
    task: Task,
    reporter: TaskReporter,
    train: np.ndarray,
    validate: np.ndarray,
    seed: int,
) -> Trainer:
    """What trains one network by itself on the images `train`, as an expert."""
    study = context.study
    defaults = study.expert_defaults(task.model)
    dropout = {"dropout": defaults.dropout} if defaults.dropout else {}
    torch.manual_seed(derive_seed(seed, "weights"))
    network = study.build_expert(task.model, len(context.data.classes), **dropout)
    context.settle(network)
    groups = [Group.of("expert", [network], defaults.lr, cosine_to_zero, HEAD_CLIP)]
    loaders = Loaders(
        context.loader(train, defaults.batch_size, study.expert_augmentation(task.model)),
        context.loader(validate, EVALUATION_BATCH),
    )
    optimisation = Optimisation(
        optimizer=sgd(groups, defaults.weight_decay),
        groups=groups,
        head_weights=torch.ones(1, device=context.device),
        label_smoothing=defaults.label_smoothing,
        batch_field="experts.batch_size",
        bf16=context.bf16,
    )
    return _trainer(context, task, reporter, network, loaders, optimisation, seed)


def row_trainer(
    context: RunContext,
    task: RowTask,
    reporter: TaskReporter,
    experts: Sequence[Expert],
    sources: Sequence[str],
) -> Trainer:
    """What trains a row: `experts` (from `sources`), a new fusion module and a global head.

    Their new weights come from torch's generator as it stands.
    """
    study, row, splits = context.study, task.row, context.splits
    defaults = study.fusion_defaults(row.fusion)
    fusion = study.build_fusion(row.fusion, experts[0].feature_dim)
    classes, detached = len(context.data.classes), row.control == "detached"
    model = FusionModel(experts, fusion, classes, detached=detached)
    context.settle(model)
    frozen = list(experts) if row.control == "frozen" else []
    for expert in frozen:
        expert.requires_grad_(False)
    experts_lr, fusion_lr, head_lr = study.rates(row.fusion, model.global_head.in_features)
    groups = [
        Group.of("experts", model.experts, experts_lr, warm_restarts, EXPERT_CLIP),
        Group.of("fusion", [model.fusion], fusion_lr, cosine_to_tenth, HEAD_CLIP),
        Group.of("global_head", [model.global_head], head_lr, cosine_to_tenth, HEAD_CLIP),
    ]
    groups = [group for group in groups if group.parameters]
    batch_size, augmentation = study.recipe.fusion.batch_size, study.fusion_augmentation(row.fusion)
    loaders = Loaders(
        context.loader(splits.fusion_train, batch_size, augmentation),
        context.loader(splits.fusion_val, EVALUATION_BATCH),
    )
    optimisation = Optimisation(
        optimizer=adamw(groups, defaults.weight_decay),
        groups=groups,
        head_weights=head_weights(len(experts), row.alpha, context.device),
        label_smoothing=defaults.label_smoothing,
        batch_field="fusion.batch_size",
        micro_batch=study.recipe.fusion.micro_batch,
        bf16=context.bf16,
        frozen=frozen,
    )
    seed = row_seed(row)
    return _trainer(
        context, task, reporter, model, loaders, optimisation, seed=seed, sources=sources
    )


def _trainer(
    context: RunContext,
    task: Task,
    reporter: TaskReporter,
    model: nn.Module,
    loaders: Loaders,
    optimisation: Optimisation,
    seed: int,
    sources: Sequence[str] = (),
) -> Trainer:
    """As long, saved as often and stopped as the study and this launch want it."""
    reporter.sample = partial(loaders.train.sample, derive_seed(seed, "order", 0), SAMPLE)
    often = context.study.recipe.checkpoint
    checkpointing = Checkpointing(
        file=ResumeFile(resume_path(context.study, task)),
        identity=context.identity(task, weights_in(sources)),
        every_epochs=often.every_epochs,
        every_minutes=often.every_minutes,
    )
    schedule = Schedule(task.epochs, seed)
    return Trainer(
        model, loaders, optimisation, schedule, checkpointing, reporter, context.stop_requested
    )


def row_seed(row: Row) -> int:
    """The same for a row and its controls: they draw the same, so they can be compared in pairs."""
    return derive_seed(row.seed, row.model, row.fusion)


def _component_info(
    context: RunContext, task: Task, trainer: Trainer, **more: Any
) -> ComponentInfo:
    """What the files of the trained components say of where they come from."""
    model = trainer.model
    expert = model.experts[0] if isinstance(model, FusionModel) else model
    assert isinstance(expert, Expert)
    return ComponentInfo(
        component=task.kind,
        model=context.study.source(task.model),
        arguments=context.study.model_arguments(task.model),
        num_classes=expert.num_classes,
        feature_dim=expert.feature_dim,
        num_experts=context.study.recipe.experts.count,
        classes=list(context.data.classes),
        mean=list(context.data.mean),
        std=list(context.data.std),
        image_size=context.data.train_images.shape[-1],
        epoch=trainer.best.epoch,
        val_accuracy=trainer.best.val_accuracy,
        **more,
    )
