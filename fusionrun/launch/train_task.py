"""How a rank executes a task: an expert's training, or a row's, from weights to saved results."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fusionrun.common.seeds import derive_seed
from fusionrun.components.starting_experts import load_experts
from fusionrun.components.store import (
    save_component,
    save_model,
    save_single,
    state_hash,
)
from fusionrun.evaluation.accuracies import accuracies_by_method
from fusionrun.evaluation.predictions import head_logits
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.fusions import FusionModel
from fusionrun.launch import trainers
from fusionrun.launch.component_info import component_info, expert_infos, row_manifest
from fusionrun.launch.full_ensemble import join_networks
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.study.context import RunContext
from fusionrun.study.paths import expert_file
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.tables.headline import AVERAGING
from fusionrun.training.identity import HASH_DIGITS
from fusionrun.training.inference import collect_logits


def train(context: RunContext, task: Task, reporter: TaskReporter) -> Iterator[None]:
    """The steps that execute `task`."""
    if isinstance(task, ExpertTask):
        return train_expert(context, task, reporter)
    if task.row.is_full_ensemble:
        return join_networks(context, task, reporter)
    return train_row(context, task, reporter)


def train_expert(context: RunContext, task: ExpertTask, reporter: TaskReporter) -> Iterator[None]:
    """Train one expert on its part of the data, step by step, and save its best epoch."""
    trainer = trainers.expert_trainer(context, task, reporter)
    yield from trainer.steps()
    best = trainer.best
    reporter.begin("saving")
    path = expert_file(context.study.checkpoint_dir, *task.member)
    settings = dict(trainer.checkpointing.identity.fields)
    info = component_info(context, task, trainer, expert=task.expert, settings=settings)
    save_component(path, best.state, info)
    trainer.checkpointing.file.remove()
    reporter.message(f"saved {path} (weights {state_hash(best.state)[:HASH_DIGITS]})")


def train_row(context: RunContext, task: RowTask, reporter: TaskReporter) -> Iterator[None]:
    """Train a row, step by step, measure its best epoch on the test set, save and record it.

    A single row is one network without experts, trained as they are, on all that a row sees.
    """
    row, splits, seed = task.row, context.splits, context.study.row_seed(task.row)
    sources, before = list[str](), list[float]()
    if row.is_single:
        images = splits.everything, splits.fusion_val
        trainer = trainers.network_trainer(context, task, reporter, *images, seed)
    else:
        torch.manual_seed(derive_seed(seed, "weights"))
        experts, sources = load_experts(context, row.experts)
        for member, source in zip(row.experts, sources, strict=True):
            reporter.message(f"{member.words} starts from {source}")
        trainer = trainers.row_trainer(context, task, reporter, experts, sources)
        # read before training changes them: the alternative that costs no fusion training at all
        logits, labels = collect_logits(experts, trainer.loaders.validation, context.precision)
        for source, of_expert in zip(sources, logits.unbind(dim=1), strict=True):
            before.append(accuracy(of_expert, labels))
            reporter.answered(source, of_expert, labels)
    passes = 1 if row.is_single else 2  # of tuned experts in the fused model, of those before
    reporter.test_share = passes * len(context.data.test_labels) / reporter.val_images
    with context.side_by_side(trainer.model, reporter.message):
        yield from trainer.steps()
        best = trainer.best
        reporter.begin("testing")
        trainer.model.load_state_dict(best.state)
        after = trainer.history[best.epoch - 1].val_accuracies[1:]
        results = evaluate_row_once(context, task, trainer.model, after, before)
    reporter.begin("saving")
    weights = state_hash(best.state)
    manifest = row_manifest(context, task, trainer.model, trainer.checkpointing.identity, weights)
    manifest["launch"] |= {"earlier": trainer.launches}
    files = context.study.layout.row(row.model, row.variant)
    info = component_info(context, task, trainer, fusion=context.study.source(row.fusion))
    validation: dict[str, Any] = {"fused": best.val_accuracy, "images": len(splits.fusion_val)}
    manifest |= {"experts_from": sources, "validation": validation, "test": results}
    if isinstance(trainer.model, FusionModel):
        averaged = trainer.history[best.epoch - 1].val_averaged
        validation |= {"experts": after, "before_experts": before, AVERAGING: averaged}
        validation |= {"selected_by": AVERAGING} if trainer.schedule.by_averaging else {}
        of_experts = expert_infos(context.study, row, info, trainer.model, after)
        save_model(files, trainer.model, info, of_experts, manifest)
    else:
        save_single(files, trainer.model, info, manifest)
    reporter.measured(results)
    trainer.checkpointing.file.previous.unlink(missing_ok=True)
    reporter.message(f"saved {files.directory} (weights {weights[:HASH_DIGITS]})")


def evaluate_row_once(
    context: RunContext,
    task: RowTask,
    model: nn.Module,
    val_accuracies: list[float],
    before_val_accuracies: list[float],
) -> dict[str, Any]:
    """The one reading of the test set: fused, tuned experts, experts before tuning."""
    row, loader = task.row, context.test_loader()
    if row.is_single:
        return accuracies_by_method(head_logits(context, model, loader), seed=row.seed)
    untuned, _ = load_experts(context, row.experts)
    for expert in untuned:
        context.settle(expert)
    answers = head_logits(context, model, loader, untuned)
    return accuracies_by_method(answers, val_accuracies, before_val_accuracies, seed=row.seed)
