"""What trains an expert, a single network and a row: built from the study and the launch's data."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from fusionrun.common.seeds import derive_seed
from fusionrun.components.pretrained import begin_pretrained
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel
from fusionrun.launch.resume import resume_path
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.study.context import RunContext
from fusionrun.study.defaults import EXPERT_CLIP, HEAD_CLIP
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.training import optim
from fusionrun.training.checkpoint import ResumeFile
from fusionrun.training.identity import weights_in
from fusionrun.training.losses import head_weights
from fusionrun.training.optim import Group
from fusionrun.training.step import Optimisation
from fusionrun.training.trainer import Checkpointing, Loaders, Schedule, Trainer

SAMPLE = 12  # training images that TensorBoard shows


def expert_trainer(context: RunContext, task: ExpertTask, reporter: TaskReporter) -> Trainer:
    """What trains an expert: its network with new weights, its data, its optimizer."""
    splits, k = context.splits, task.expert
    images = splits.expert_train[k], splits.expert_val[k]
    of_experts = context.study.recipe.seed if task.seed is None else task.seed
    seed = derive_seed(of_experts, task.model, k)
    return network_trainer(context, task, reporter, *images, seed)


def network_trainer(
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
    k = task.expert if isinstance(task, ExpertTask) else None
    network = context.build_expert(task.model, k=k, **dropout)
    if begun := begin_pretrained(study, task.model, network):
        reporter.message(begun)
    context.settle(network)
    groups = [Group.of("expert", [network], defaults.lr, optim.cosine_to_zero, HEAD_CLIP)]
    loaders = Loaders(
        context.loader(train, defaults.batch_size, study.expert_augmentation(task.model)),
        context.loader(validate, context.evaluation_batch),
    )
    optimisation = Optimisation(
        optimizer=optim.sgd(groups, defaults.weight_decay),
        groups=groups,
        head_weights=torch.ones(1, device=context.device),
        label_smoothing=defaults.label_smoothing,
        batch_field="experts.batch_size",
        micro_batch="auto",
        precision=context.precision,
        has_company=context.has_company,
        frozen=network.frozen,
        graphs=study.recipe.runtime.graphs == "auto",
        compiles=study.recipe.runtime.compile == "auto",
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
    fusion = study.build_fusion(row.fusion, experts)
    classes, detached = len(context.data.classes), row.control == "detached"
    model = FusionModel(experts, fusion, classes, detached=detached)
    context.settle(model)
    frozen = [part for expert in experts for part in expert.frozen]
    if row.control == "frozen":
        frozen = list(experts)
        for expert in experts:
            expert.requires_grad_(False)
    size = fusion.feature_dim
    experts_lr, fusion_lr, head_lr = study.rates(row.fusion, size)
    models = [member.model for member in row.experts]
    groups = [
        *expert_groups(study, models, experts, experts_lr),
        Group.of("adapters", [model.adapters], fusion_lr, optim.cosine_to_tenth, HEAD_CLIP),
        Group.of("fusion", [model.fusion], fusion_lr, optim.cosine_to_tenth, HEAD_CLIP),
        Group.of("global_head", [model.global_head], head_lr, optim.cosine_to_tenth, HEAD_CLIP),
    ]
    groups = [group for group in groups if group.parameters]
    rates = ", ".join(f"{group.name} {group.lr:g}" for group in groups)
    reporter.message(f"learning rates for features of size {size}: {rates}")
    batch_size, augmentation = study.recipe.fusion.batch_size, study.fusion_augmentation(row.fusion)
    loaders = Loaders(
        context.loader(splits.fusion_train, batch_size, augmentation),
        context.loader(splits.fusion_val, context.evaluation_batch),
    )
    optimisation = Optimisation(
        optimizer=optim.adamw(groups, defaults.weight_decay),
        groups=groups,
        head_weights=head_weights(len(experts), row.alpha, context.device),
        label_smoothing=defaults.label_smoothing,
        batch_field="fusion.batch_size",
        micro_batch=study.recipe.fusion.micro_batch,
        recompute=study.recipe.runtime.recompute,
        precision=context.precision,
        frozen=frozen,
        graphs=study.recipe.runtime.graphs == "auto",
        compiles=study.recipe.runtime.compile == "auto",
    )
    seed = study.row_seed(row)
    return _trainer(
        context, task, reporter, model, loaders, optimisation, seed=seed, sources=sources
    )


def expert_groups(
    study: Study, models: Sequence[str], experts: Sequence[Expert], lr: float
) -> list[Group]:
    """The group of a row's experts, and beside it one for each rate of an architecture's own."""
    by_rate: dict[float, list[Expert]] = {}
    for model, expert in zip(models, experts, strict=True):
        by_rate.setdefault(study.row_rate(model, lr), []).append(expert)
    first, *others = sorted(by_rate, key=lambda rate: rate != lr)
    names = {first: "experts", **{rate: f"experts_{rate:g}" for rate in others}}
    schedule = optim.EXPERT_SCHEDULES[study.recipe.fusion.schedule]
    return [Group.of(names[rate], by_rate[rate], rate, schedule, EXPERT_CLIP) for rate in names]


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
    reporter.val_images = loaders.validation.num_images
    often = context.study.recipe.checkpoint
    checkpointing = Checkpointing(
        file=ResumeFile(resume_path(context.study, task)),
        identity=context.identity(task, weights_in(sources)),
        every_epochs=often.every_epochs,
        every_minutes=often.every_minutes,
        launch=context.launch,
    )
    # what it reports is the mean of its experts' probabilities, and so selects its epoch
    detached = isinstance(task, RowTask) and task.row.control == "detached"
    schedule = Schedule(task.epochs, seed, by_averaging=detached)
    return Trainer(
        model, loaders, optimisation, schedule, checkpointing, reporter, context.stop_requested
    )
