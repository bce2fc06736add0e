"""`evaluate OUTPUT_DIR`: every saved model, loaded from its components, and its alternatives."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.distributed import RankInfo
from fusionrun.common.typed_fields import plain
from fusionrun.components.manifest import Manifest, write_manifest
from fusionrun.evaluation.comparison import (
    Answers,
    accuracies_by_method,
    compare_row,
    control_answers,
)
from fusionrun.evaluation.measuring import (
    load_row,
    measure_study,
    noted,
    run_header,
    say,
)
from fusionrun.evaluation.predictions import (
    Predictions,
    find_origin,
    load_predictions,
    predict,
    save_predictions,
)
from fusionrun.evaluation.results import collect_results, write_results
from fusionrun.evaluation.schema import (
    Evaluation,
    FailedRow,
    RowName,
    RowResult,
    TrainingTime,
    name_row,
)
from fusionrun.evaluation.statistics.cost import measure_cost, training_time
from fusionrun.evaluation.statistics.significance import over_seeds
from fusionrun.evaluation.tables import CSV_COLUMNS, long_rows, markdown, tables
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel
from fusionrun.logs.csv import write_csv
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.study.study import Study


def evaluate(study: Study, rank_info: RankInfo, console: Console) -> int:
    """Measure every row that can be; returns 0 when that was all of them, else 3.

    Raises LaunchError when the data or the device isn't there, or results can't be written.
    """
    return measure_study(
        study, rank_info, console, measure=evaluate_rows, write=write_evaluation, show=tables
    )


def evaluate_rows(context: RunContext) -> Evaluation:
    """Every row of the study beside its alternatives; one with a problem is said at once.

    A single network has no entry of its own: it stands in those of its architecture's rows.
    """
    results: dict[str, RowResult] = {}
    failures: dict[str, FailedRow] = {}
    controls: list[tuple[RowName, Answers]] = []
    latest: Predictions | None = None
    # controls first: the rows are compared with them
    for row in sorted(context.study.rows, key=lambda row: not (row.control or row.is_single)):
        name = RowName(**name_row(row))
        with noted(row, failures):
            manifest, model = load_row(context, row)
            predictions = current_predictions(context, row, model, latest)
            if row.control or row.is_single:
                controls.append((name, control_answers(row, predictions)))
            if isinstance(model, FusionModel):
                latest = predictions
                against = [of for control, of in controls if control.is_control_of(name)]
                results[row.name] = evaluate_row(
                    context, row, manifest, model, predictions, against
                )
    entries: dict[str, RowResult | FailedRow] = {**results, **failures}
    tasks = [row.name for row in context.study.rows]
    measured = [results[task] for task in tasks if task in results]
    return Evaluation(
        **run_header(context),
        training=logged_training(context.study),
        entries=tuple(entries[task] for task in tasks if task in entries),
        over_seeds=over_seeds((row, row.numbers) for row in measured),
    )


def evaluate_row(
    context: RunContext,
    row: Row,
    manifest: Manifest,
    model: FusionModel,
    predictions: Predictions,
    controls: Sequence[Answers],
) -> RowResult:
    """The row's entry. The manifest's test numbers are brought up to date. Raises ROW_PROBLEMS."""
    started = time.monotonic()
    cost = measure_cost(context, row, model)
    assert manifest.epoch is not None  # only an assembled model has none, which is no row's
    result = compare_row(row, predictions, controls, epoch=manifest.epoch, cost=cost)
    test = accuracies_by_method(
        predictions.test,
        [expert.validation for expert in result.experts],
        [expert.before_validation for expert in result.experts],
    )
    if manifest.test != test:
        path = context.study.layout.row(row.model, row.variant).manifest
        write_manifest(path, replace(manifest, test=dict(test)))
    seconds = time.monotonic() - started
    say(f"[{row.name}] fused {result.fused.top1:.2f} %, took {seconds:.0f} s")
    return result


def current_predictions(
    context: RunContext, row: Row, model: FusionModel | Expert, latest: Predictions | None
) -> Predictions:
    """The saved ones where they are still what the row's networks would answer.

    `latest` may know the experts before fusion training. Raises ROW_PROBLEMS.
    """
    path = context.study.layout.row(row.model, row.variant).predictions
    origin = find_origin(context, row.model, model)
    validation = torch.from_numpy(context.splits.fusion_val)
    labels, val_labels = context.data.test_labels, context.data.train_labels[validation]
    predictions, problem = load_predictions(path, origin, labels, val_labels)
    if problem:
        say(f"[{row.name}] {problem}; computed again")
    if predictions is None:
        say(f"[{row.name}] {len(labels)} test and {len(val_labels)} validation images ...")
        predictions = predict(context, row, model, origin, latest)
        save_predictions(path, predictions)
    else:
        say(f"[{row.name}] {path} is up to date")
    return predictions


def logged_training(study: Study) -> TrainingTime | None:
    """What the training of every expert and every row took, by its table of epochs."""
    models = dict.fromkeys(row.model for row in study.rows if not row.is_single)
    experts = range(study.recipe.experts.count)
    logs = [study.layout.expert_csv(model, k) for model in models for k in experts]
    logs += [study.layout.row(row.model, row.variant).csv for row in study.rows]
    try:
        return training_time(logs)
    except ValueError as error:  # the rows that it belongs to have said so, too
        say(f"fusionrun: the time of training isn't measured: {error}")
        return None


def write_evaluation(study: Study, evaluation: Evaluation) -> Path:
    """Everything that `evaluate` leaves in the output directory; returns the whole of it."""
    layout = study.layout
    write_json(layout.evaluation("json"), plain(evaluation))
    write_text(layout.evaluation("md"), markdown(evaluation))
    write_csv(layout.evaluation("csv"), CSV_COLUMNS, list(long_rows(evaluation)))
    write_results(layout, collect_results(study))
    return layout.evaluation("json")
