"""How a rank finishes a full ensemble: its networks, which other tasks trained, tested together."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fusionrun.components.store import ComponentInfo, load_component, save_ensemble, state_hash
from fusionrun.evaluation.accuracies import accuracies_by_method
from fusionrun.evaluation.measuring import load_row
from fusionrun.evaluation.predictions import head_logits
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.experts.ensemble import Ensemble
from fusionrun.launch.component_info import row_manifest
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.study.context import RunContext
from fusionrun.study.tasks import RowTask
from fusionrun.training.identity import HASH_DIGITS


def join_networks(context: RunContext, task: RowTask, reporter: TaskReporter) -> Iterator[None]:
    """Measure what its networks answer together, and save them as one model; nothing is trained.

    Raises CheckpointError and IdentityError where a network isn't the one that this row needs.
    """
    study, splits, row = context.study, context.splits, task.row
    rows = {each.name: each.row for each in study.tasks if isinstance(each, RowTask)}
    networks, infos = [], list[ComponentInfo]()
    sources, validation = list[str](), list[float]()
    reporter.begin("testing")
    for need in task.needs:
        manifest, network = load_row(context, rows[need])
        files = study.layout.row(row.model, rows[need].variant)
        info, _ = load_component(files.network, "expert")
        networks.append(network)
        infos.append(replace(info, fusion=row.fusion, expert=len(infos)))
        sources.append(f"{files.network} (weights {str(manifest.weights)[:HASH_DIGITS]})")
        validation.append(info.val_accuracy)
        reporter.message(f"network {len(networks) - 1}: {sources[-1]}")
        yield
    ensemble = Ensemble(networks)
    images = context.loader(splits.fusion_val, context.evaluation_batch)
    chosen_on = head_logits(context, ensemble, images)
    together = accuracy(chosen_on.logits[:, 0], chosen_on.labels)
    yield
    answers = head_logits(context, ensemble, context.test_loader())
    results = accuracies_by_method(answers, seed=row.seed)
    reporter.begin("saving")
    weights = state_hash(ensemble.state_dict())
    manifest_of_row: dict[str, Any] = {
        **row_manifest(context, task, ensemble, context.identity(task), weights),
        "epoch": max(info.epoch for info in infos),
        "val_accuracy": together,
        "experts_from": sources,
        "validation": {"fused": together, "images": len(splits.fusion_val), "networks": validation},
        "test": results,
    }
    files = study.layout.row(row.model, row.variant)
    save_ensemble(files, ensemble, infos, manifest_of_row)
    reporter.measured(results)
    reporter.message(f"saved {files.directory} (weights {weights[:HASH_DIGITS]})")
