"""`evaluate OUTPUT_DIR`: every saved model, loaded from its components, and its alternatives."""

import time
from pathlib import Path

from rich.console import Console

from fusionrun.common.distributed import RankInfo
from fusionrun.common.progress import Progress
from fusionrun.components.manifest import Manifest
from fusionrun.evaluation import results, results_tables, tables
from fusionrun.evaluation.across_rows import across_rows
from fusionrun.evaluation.answers import Controls
from fusionrun.evaluation.comparison import Compared, compare_row
from fusionrun.evaluation.measuring import load_row, measure_study, noted, run_header
from fusionrun.evaluation.predictions import Predictions, current_predictions
from fusionrun.evaluation.schema import Evaluation, FailedRow
from fusionrun.evaluation.statistics import cost as costs
from fusionrun.fusions import FusionModel
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.tables.headline import digits


def evaluate(study: Study, rank_info: RankInfo, console: Console) -> int:
    """Measure every row that can be; returns 0 when that was all of them, else 3.

    Raises LaunchError when the data or the device isn't there, or results can't be written.
    """
    return measure_study(
        study, rank_info, console, measure=evaluate_rows, write=write, show=tables.show
    )


def evaluate_rows(context: RunContext) -> Evaluation:
    """Every row of the study beside its alternatives; one with a problem is said at once.

    Networks without experts have no entry of their own: they stand in those of their
    architecture's rows.
    """
    measured: dict[str, Compared] = {}
    failures: dict[str, FailedRow] = {}
    controls = Controls()
    latest: Predictions | None = None
    progress = Progress(len(context.study.rows), context.progress)
    # controls first: the rows are compared with them
    for row in sorted(context.study.rows, key=lambda row: not row.control and bool(row.experts)):
        with noted(row, failures):
            manifest, model = load_row(context, row)
            predictions = current_predictions(context, row, model, latest)
            if row.control or not row.experts:
                controls.add(row, predictions, costs.counted_cost(context, row, model))
            if isinstance(model, FusionModel):
                latest = predictions
                measured[row.name] = evaluate_row(
                    context, row, manifest, model, predictions, controls
                )
        progress.done_with(row.name)
    found: dict[str, Compared | FailedRow] = {**measured, **failures}
    return Evaluation(
        **run_header(context),
        training=costs.logged_training(context.study),
        **across_rows([found[row.name] for row in context.study.rows if row.name in found]),
    )


def evaluate_row(
    context: RunContext,
    row: Row,
    manifest: Manifest,
    model: FusionModel,
    predictions: Predictions,
    controls: Controls,
) -> Compared:
    """The row's entry. The manifest's test numbers are brought up to date. Raises ROW_PROBLEMS."""
    started = time.monotonic()
    cost = costs.measure_cost(context, row, model)
    assert manifest.epoch is not None  # only an assembled model has none, which is no row's
    compared = compare_row(row, predictions, controls.of(row), epoch=manifest.epoch, cost=cost)
    result = compared.result
    path = context.study.layout.measured_row(row.model, row.variant) / "manifest.json"
    results.update_manifest(path, manifest, predictions, result)
    seconds, shown = time.monotonic() - started, digits(len(predictions.test.labels))
    context.progress(f"[{row.name}] fused {result.fused.top1:.{shown}f} %, took {seconds:.0f} s")
    return compared


def write(study: Study, evaluation: Evaluation) -> Path:
    """Everything that `evaluate` leaves in one folder; returns the whole of it."""
    tables.write(study.layout, evaluation)
    results_tables.write_results(study.layout, results.collect_results(study))
    return study.layout.evaluation("json")
