"""`evaluate OUTPUT_DIR`: every saved model, put together from its components, and its rivals."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusionrun import __version__
from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.distributed import LaunchError, RankInfo, choose_device, divide_threads
from fusionrun.common.exit_status import ExitStatus
from fusionrun.components.manifest import Manifest, read_manifest, write_manifest
from fusionrun.components.store import load_model, load_single
from fusionrun.data.datasets import DataError
from fusionrun.evaluation.alternatives import compare
from fusionrun.evaluation.comparison import (
    Contender,
    compare_row,
    control_contender,
    controls_of,
    over_seeds,
)
from fusionrun.evaluation.predictions import (
    Predictions,
    find_origin,
    load_predictions,
    predict,
    save_predictions,
)
from fusionrun.evaluation.results import collect_results, write_results
from fusionrun.evaluation.statistics.cost import measure_cost, training_time
from fusionrun.evaluation.tables import CSV_COLUMNS, long_rows, markdown, tables
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel
from fusionrun.logs.csv import write_csv
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.errors import TaskError

FORMAT = 1
# what stops one row and says nothing of the others; ValueError: answers that aren't finite
ROW_PROBLEMS = (CheckpointError, TaskError, ValueError, OSError, torch.OutOfMemoryError)


def evaluate(study: Study, rank_info: RankInfo, console: Console) -> int:
    """Measure every row that can be; returns 0 when that was all of them, else 3.

    Raises LaunchError when the data or the device isn't there, or results can't be written.
    """
    try:
        context = open_context(
            study,
            choose_device(rank_info, study.recipe.runtime.device),
            divide_threads(rank_info, study.recipe.runtime.threads),
            progress=say,
        )
        rows = _evaluate_rows(context)
        tree = {
            **about(context),
            "training": _training(study),
            "rows": rows,
            "over_seeds": over_seeds(rows),
        }
        _write(study, tree)
    except (DataError, OSError) as error:
        raise LaunchError(str(error)) from None
    console.print(tables(tree))
    console.print(f"all of it: {study.layout.evaluation('json')}", markup=False, soft_wrap=True)
    return ExitStatus.ROW_FAILED if any(row["problem"] for row in rows) else ExitStatus.DONE


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about(context: RunContext) -> dict[str, Any]:
    """What all rows have in common."""
    study, data = context.study, context.data
    return {
        "format": FORMAT,
        "study": study.name,
        "output_dir": str(study.layout.output_dir),
        "evaluated": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "test_images": len(data.test_labels),
            "val_images": len(context.splits.fusion_val),
            "image_size": data.test_images.shape[-1],
        },
        "device": str(context.device),
        "threads": context.threads,
        "versions": {"fusionrun": __version__, "torch": torch.__version__},
    }


def _training(study: Study) -> dict[str, float | int] | None:
    try:
        return training_time(_logs(study))
    except ValueError as error:  # the rows that it belongs to have said so, too
        say(f"fusionrun: the time of training isn't measured: {error}")
        return None


def _logs(study: Study) -> Iterator[Path]:
    """Where the training of every expert and every row wrote its epochs."""
    for model in dict.fromkeys(row.model for row in study.rows if not row.is_single):
        for k in range(study.recipe.experts.count):
            yield study.layout.expert_csv(model, k)
    for row in study.rows:
        yield study.layout.row(row.model, row.variant).csv


def _evaluate_rows(context: RunContext) -> list[dict[str, Any]]:
    """An entry for each row; one with a problem is said at once and the others go on.

    A single network has no entry of its own: it stands in those of its architecture's rows.
    """
    entries: dict[str, dict[str, Any]] = {}
    controls: list[tuple[Row, Contender]] = []
    latest: Predictions | None = None
    # controls first: the rows are compared with them
    for row in sorted(context.study.rows, key=lambda row: not (row.control or row.is_single)):
        try:
            manifest, model = load_row(context, row)
            predictions = _predictions(context, row, model, latest)
            if row.control or row.is_single:
                controls.append((row, control_contender(row, predictions)))
            if isinstance(model, FusionModel):
                latest = predictions
                rivals = tuple(controls_of(row, controls))
                found = _evaluate_row(context, row, manifest, model, predictions, rivals)
                entries[row.name] = {**name_row(row), **found, "problem": ""}
        except ROW_PROBLEMS as error:
            say(f"fusionrun: {row.name}: {error}")
            entries[row.name] = {**name_row(row), "epoch": None, "problem": str(error)}
    return [entries[row.name] for row in context.study.rows if row.name in entries]


def name_row(row: Row) -> dict[str, Any]:
    """What an entry of any kind says of whose it is."""
    return {
        "task": row.name,
        "model": row.model,
        "fusion": row.method,
        "variant": row.variant,
        "control": row.control,
        "seed": row.seed,
        "alpha": row.alpha,
    }


def load_row(context: RunContext, row: Row) -> tuple[Manifest, FusionModel | Expert]:
    """(manifest, model on the device) of a finished row of this study. Raises ROW_PROBLEMS."""
    files = context.study.layout.row(row.model, row.variant)
    manifest = read_manifest(files.manifest)
    task = context.study.row_task(row)
    context.identity(task).require_same(files.manifest, manifest.settings)
    model = load_single(files.directory) if row.is_single else load_model(files.directory)
    context.settle(model)
    return manifest, model


def _evaluate_row(
    context: RunContext,
    row: Row,
    manifest: Manifest,
    model: FusionModel,
    predictions: Predictions,
    controls: Sequence[Contender],
) -> dict[str, Any]:
    """The row's entry. The manifest's test numbers are brought up to date. Raises ROW_PROBLEMS."""
    started = time.monotonic()
    entry = compare_row(predictions, controls, seed=row.seed)
    cost = measure_cost(context, row, model)
    test = compare(
        predictions.test.logits,
        predictions.test.labels,
        predictions.test.before,
        val_accuracies=[expert["validation"] for expert in entry["experts"]],
        before_val_accuracies=[expert["before_validation"] for expert in entry["experts"]],
    )
    if manifest.test != test:
        path = context.study.layout.row(row.model, row.variant).manifest
        write_manifest(path, replace(manifest, test=dict(test)))
    fused = entry["contenders"][0]["top1"]
    say(f"[{row.name}] fused {fused:.2f} %, took {time.monotonic() - started:.0f} s")
    return {"epoch": manifest.epoch, **entry, "cost": cost}


def _predictions(
    context: RunContext, row: Row, model: FusionModel | Expert, latest: Predictions | None
) -> Predictions:
    """The saved ones where they are still what the row's networks would answer.

    `latest` may know the experts before fusion training.
    """
    path = context.study.layout.row(row.model, row.variant).predictions
    origin = find_origin(context, row.model, model)
    validation = torch.from_numpy(context.splits.fusion_val)
    labels, val_labels = context.data.test_labels, context.data.train_labels[validation]
    predictions, problem = load_predictions(path, origin, labels, val_labels)
    if problem:
        say(f"[{row.name}] {problem}; computed anew")
    if predictions is None:
        say(f"[{row.name}] {len(labels)} test and {len(val_labels)} validation images ...")
        predictions = predict(context, row, model, origin, latest)
        save_predictions(path, predictions)
    else:
        say(f"[{row.name}] {path} is up to date")
    return predictions


def _write(study: Study, tree: dict[str, Any]) -> None:
    """Everything that `evaluate` leaves in the output directory."""
    layout = study.layout
    write_json(layout.evaluation("json"), tree)
    write_text(layout.evaluation("md"), markdown(tree))
    write_csv(layout.evaluation("csv"), CSV_COLUMNS, list(long_rows(tree)))
    write_results(layout, collect_results(study))
