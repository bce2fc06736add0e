"""What the files of trained components say of what they are, beside their weights."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from torch import nn

from fusionrun.common.typed_fields import plain
from fusionrun.components.store import ComponentInfo
from fusionrun.evaluation.statistics.cost import counted_cost
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel, FusionModule
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, RowTask
from fusionrun.training.identity import Identity
from fusionrun.training.trainer import Trainer

SAID_OF_ROWS = ("variant", "control", "seed", "expert_seed", "alpha")  # in a manifest, as they are
COUNTED = ("parameters", "macs", "images_seen", "steps", "image_passes")  # of its costs


def component_info(
    context: RunContext, task: ExpertTask | RowTask, trainer: Trainer, **more: Any
) -> ComponentInfo:
    """Of all that the task trained; a mixed row is of no one architecture."""
    model, study = trainer.model, context.study
    part = model.fusion if isinstance(model, FusionModel) else model
    assert isinstance(part, FusionModule | Expert)
    is_mixed = isinstance(task, RowTask) and task.row.is_mixed
    return ComponentInfo(
        component=task.kind,
        model=study.source(task.model),
        arguments={} if is_mixed else study.model_arguments(task.model),
        num_classes=len(context.data.classes),
        feature_dim=part.feature_dim,
        num_experts=study.recipe.experts.count if isinstance(part, Expert) else part.num_experts,
        classes=list(context.data.classes),
        mean=list(context.data.mean),
        std=list(context.data.std),
        image_size=context.data.train_images.shape[-1],
        epoch=trainer.best.epoch,
        val_accuracy=trainer.best.val_accuracy,
        own_classes=list(part.own_classes) if isinstance(part, Expert) else [],
        micro_batch=trainer.fitting.micro_batch,
        **more,
    )


def expert_infos(
    study: Study, row: Row, info: ComponentInfo, model: FusionModel, accuracies: Sequence[float]
) -> list[ComponentInfo]:
    """Of each of a row's experts, where `info` is of all of it."""
    experts = [cast(Expert, expert) for expert in model.experts]
    return [
        replace(
            info,
            model=study.source(member.model),
            arguments=study.model_arguments(member.model),
            feature_dim=expert.feature_dim,
            own_classes=list(expert.own_classes),
            val_accuracy=accuracy,
        )
        for member, expert, accuracy in zip(row.experts, experts, accuracies, strict=True)
    ]


def row_manifest(
    context: RunContext, task: RowTask, model: nn.Module, identity: Identity, weights: str
) -> dict[str, Any]:
    """Of a finished row's manifest, what no measurement adds to; `weights` is the hash of all.

    Without costs where a part of the user's own can't be built weightless: hours of training don't
    fail for a count.
    """
    row, cost = task.row, dict[str, Any]()
    with suppress(Exception):
        cost = plain(counted_cost(context, row, model))
    return {
        "row": row.name,
        "members": row.members.split(", ") if row.is_mixed else [],
        **{name: getattr(row, name) for name in SAID_OF_ROWS},
        "settings": dict(identity.fields),
        "weights": weights,
        "threads": context.threads,
        "device": str(context.device),
        "launch": {**context.launch, "earlier": []},
        "notes": list(context.data.notes),
        "cost": {name: cost[name] for name in COUNTED if name in cost},
    }
