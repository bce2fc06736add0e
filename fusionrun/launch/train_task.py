"""How a rank executes a task: an expert's training, or a row's, from weights to saved results."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionrun.common.seeds import derive_seed
from fusionrun.components.starting_experts import load_experts
from fusionrun.components.store import (
    ComponentInfo,
    save_component,
    save_model,
    save_single,
    state_hash,
)
from fusionrun.data.augmentation.policies import Augmentation
from fusionrun.data.loader import ResidentLoader
from fusionrun.evaluation.alternatives import accuracy, compare
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel
from fusionrun.launch.resume import resume_path
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.study.context import EVALUATION_BATCH, RunContext
from fusionrun.study.defaults import EXPERT_CLIP, HEAD_CLIP
from fusionrun.study.paths import expert_file
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.training.checkpoint import ResumeFile
from fusionrun.training.epoch import BestEpoch
from fusionrun.training.identity import Identity, weights_in
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
from fusionrun.training.trainer import Trainer

SAMPLE = 12  # training images that TensorBoard shows


def train_expert(context: RunContext, task: ExpertTask, reporter: TaskReporter) -> None:
    """Train one expert on its part of the data and save its best epoch."""
    study, k = context.study, task.expert
    trainer = expert_trainer(context, task, reporter)
    best = trainer.run()
    path = expert_file(study.checkpoint_dir, task.model, k)
    assert isinstance(trainer.model, Expert)
    origin = context.about(task.model, trainer.model, best)
    origin["settings"] = dict(trainer.identity.fields)
    about = ComponentInfo(component="expert", expert=k, **origin)
    save_component(path, best.state, about)
    trainer.resume_file.remove()
    reporter.message(f"saved {path} (weights {state_hash(best.state)[:12]})")


def expert_trainer(context: RunContext, task: ExpertTask, reporter: TaskReporter) -> Trainer:
    """What trains an expert: its network with new weights, its data, its optimizer."""
    k = task.expert
    images = context.splits.expert_train[k]
    seed = derive_seed(context.study.recipe.seed, task.model, k)
    return _alone(context, task, reporter, images, context.splits.expert_val[k], seed)


def _alone(
    context: RunContext,
    task: Task,
    reporter: TaskReporter,
    images: np.ndarray,
    validate: np.ndarray,
    seed: int,
) -> Trainer:
    """What trains one network by itself on `images`, as an expert."""
    study = context.study
    defaults = study.expert_defaults(task.model)
    augmentation = study.expert_augmentation(task.model)
    dropout = {"dropout": defaults.dropout} if defaults.dropout else {}
    torch.manual_seed(derive_seed(seed, "weights"))
    expert = study.build_expert(task.model, len(context.data.classes), **dropout)
    context.settle(expert)
    groups = [Group.of("expert", [expert], defaults.lr, cosine_to_zero, HEAD_CLIP)]
    return _trainer(
        context,
        task,
        reporter,
        model=expert,
        train=(images, defaults.batch_size, augmentation),
        validate=validate,
        optimizer=sgd(groups, defaults.weight_decay),
        groups=groups,
        weights=torch.ones(1, device=context.device),
        smoothing=defaults.label_smoothing,
        seed=seed,
    )


def train_row(context: RunContext, task: RowTask, reporter: TaskReporter) -> None:
    """Train a row's experts, fusion module and global head together; save, test, record."""
    if task.row.is_single:
        _train_single(context, task, reporter)
    else:
        _train_fusion(context, task, reporter)


def _train_fusion(context: RunContext, task: RowTask, reporter: TaskReporter) -> None:
    study, row = context.study, task.row
    torch.manual_seed(derive_seed(_row_seed(row), "weights"))
    experts, sources = load_experts(context, row.model)
    for source in sources:
        reporter.message(f"starts from {source}")
    trainer = row_trainer(context, task, reporter, experts, sources)
    # read before training changes them: the alternative that costs no fusion training at all
    before = _experts_alone(
        context, experts, context.loader(context.splits.fusion_val, EVALUATION_BATCH)
    )
    best = trainer.run()
    model = trainer.model
    assert isinstance(model, FusionModel)
    model.load_state_dict(best.state)
    selected = trainer.history[best.epoch - 1]
    results = test_row(context, row, model, selected.val_accuracies[1:], before)
    origin = context.about(row.model, experts[0], best)
    about = ComponentInfo(component="row", fusion=study.source(row.fusion), **origin)
    validation = {
        "fused": selected.val_accuracies[0],
        "experts": selected.val_accuracies[1:],
        "before_experts": before,
    }
    measured = {"experts_from": sources, "validation": validation, "test": results}
    files = study.layout.row(row.model, row.variant)
    manifest = {**_provenance(context, trainer.identity, row, best), **measured}
    save_model(files, model, about, selected.val_accuracies[1:], manifest)
    reporter.measured(results)
    trainer.resume_file.previous.unlink(missing_ok=True)
    reporter.message(f"saved {files.directory} (weights {state_hash(best.state)[:12]})")


def _train_single(context: RunContext, task: RowTask, reporter: TaskReporter) -> None:
    """The control without any experts: one network, trained as they are, on all their images."""
    row, splits = task.row, context.splits
    seed = _row_seed(row)
    trainer = _alone(context, task, reporter, splits.everything, splits.fusion_val, seed)
    best = trainer.run()
    network = trainer.model
    assert isinstance(network, Expert)
    network.load_state_dict(best.state)
    logits, labels = collect_logits(
        network, context.test_loader(EVALUATION_BATCH), bf16=context.bf16
    )
    about = ComponentInfo(
        component="row", fusion=row.fusion, **context.about(row.model, network, best)
    )
    measured = {
        "validation": {"fused": best.val_accuracy},
        "test": {"fused": accuracy(logits[:, 0], labels)},
    }
    files = context.study.layout.row(row.model, row.variant)
    save_single(
        files, network, about, {**_provenance(context, trainer.identity, row, best), **measured}
    )
    reporter.measured(measured["test"])
    trainer.resume_file.previous.unlink(missing_ok=True)
    reporter.message(f"saved {files.directory} (weights {state_hash(best.state)[:12]})")


def _provenance(
    context: RunContext, identity: Identity, row: Row, best: BestEpoch
) -> dict[str, Any]:
    """What a row's manifest says of how its weights came about."""
    return {
        "row": row.name,
        "variant": row.variant,
        "control": row.control,
        "seed": row.seed,
        "alpha": row.alpha,
        "settings": dict(identity.fields),
        "weights": state_hash(best.state),
        "threads": context.threads,
        "device": str(context.device),
        "launch": dict(context.launch),
    }


def _row_seed(row: Row) -> int:
    """The same for a row and its controls: they draw the same, so they can be compared in pairs."""
    return derive_seed(row.seed, row.model, row.fusion)


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
    study, row = context.study, task.row
    defaults = study.fusion_defaults(row.fusion)
    fusion = study.build_fusion(row.fusion, experts[0].feature_dim)
    classes, detached = len(context.data.classes), row.control == "detached"
    model = FusionModel(experts, fusion, classes, detached=detached)
    context.settle(model)
    frozen = list(experts) if row.control == "frozen" else []
    for expert in frozen:
        expert.requires_grad_(False)
    groups = _row_groups(study, row, model)
    return _trainer(
        context,
        task,
        reporter,
        model=model,
        train=(
            context.splits.fusion_train,
            study.recipe.fusion.batch_size,
            study.fusion_augmentation(row.fusion),
        ),
        validate=context.splits.fusion_val,
        optimizer=adamw(groups, defaults.weight_decay),
        groups=groups,
        weights=head_weights(len(experts), row.alpha, context.device),
        smoothing=defaults.label_smoothing,
        seed=_row_seed(row),
        frozen=frozen,
        experts_from=sources,
    )


def _trainer(
    context: RunContext,
    task: Task,
    reporter: TaskReporter,
    *,
    model: nn.Module,
    train: tuple[np.ndarray, int, Augmentation],
    validate: np.ndarray,
    optimizer: torch.optim.Optimizer,
    groups: list[Group],
    weights: Tensor,
    smoothing: float,
    seed: int,
    frozen: Sequence[nn.Module] = (),
    experts_from: Sequence[str] = (),
) -> Trainer:
    recipe = context.study.recipe
    train_loader = context.loader(*train)
    reporter.sample = partial(train_loader.sample, derive_seed(seed, "order", 0), SAMPLE)
    micro = None if task.trains_alone else recipe.fusion.micro_batch
    return Trainer(
        model=model,
        train_loader=train_loader,
        val_loader=context.loader(validate, EVALUATION_BATCH),
        optimizer=optimizer,
        groups=groups,
        head_weights=weights,
        label_smoothing=smoothing,
        epochs=task.epochs,
        seed=seed,
        device=context.device,
        resume_file=ResumeFile(resume_path(context.study, task)),
        identity=context.identity(task, weights_in(experts_from)),
        reporter=reporter,
        stop_requested=context.stop_requested,
        every_epochs=recipe.checkpoint.every_epochs,
        every_minutes=recipe.checkpoint.every_minutes,
        batch_field=f"{'experts' if task.trains_alone else 'fusion'}.batch_size",
        micro_batch=micro if isinstance(micro, int) else None,
        shrink_when_full=micro == "auto",
        bf16=context.bf16,
        frozen=frozen,
    )


def _row_groups(study: Study, row: Row, model: FusionModel) -> list[Group]:
    """Experts, fusion module and global head, each with its own rate, schedule and clip."""
    experts_lr, fusion_lr, head_lr = study.rates(row.fusion, model.global_head.in_features)
    groups = [
        Group.of("experts", model.experts, experts_lr, warm_restarts, EXPERT_CLIP),
        Group.of("fusion", [model.fusion], fusion_lr, cosine_to_tenth, HEAD_CLIP),
        Group.of("global_head", [model.global_head], head_lr, cosine_to_tenth, HEAD_CLIP),
    ]
    return [group for group in groups if group.parameters]


def _experts_alone(
    context: RunContext, experts: list[Expert], loader: ResidentLoader
) -> list[float]:
    """Accuracy in percent of each expert by itself."""
    accuracies = []
    for expert in experts:
        logits, labels = collect_logits(expert, loader, bf16=context.bf16)
        accuracies.append(accuracy(logits[:, 0], labels))
    return accuracies


def test_row(
    context: RunContext,
    row: Row,
    model: FusionModel,
    val_accuracies: list[float],
    before_val_accuracies: list[float],
) -> dict[str, Any]:
    """The one reading of the test set: fused, tuned experts, experts before tuning."""
    loader = context.test_loader(EVALUATION_BATCH)
    logits, labels = collect_logits(model, loader, bf16=context.bf16)
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
