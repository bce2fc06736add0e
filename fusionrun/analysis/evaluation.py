"""`evaluate OUTPUT_DIR`: every saved model, put together from its components, on the test set."""

import sys

from rich.console import Console

from fusionrun.analysis.results import collect_results, results_tables, write_results
from fusionrun.assignment import Row
from fusionrun.components import load_model, read_manifest
from fusionrun.data.datasets import DataError
from fusionrun.distributed import LaunchError, Place, choose_device, divide_threads
from fusionrun.execution import Workplace, open_workplace, test_row
from fusionrun.exit_status import ExitStatus
from fusionrun.files import write_json
from fusionrun.study import Study
from fusionrun.training.checkpoint import CheckpointError


def evaluate(study: Study, place: Place, console: Console) -> int:
    """Measure every row that can be; returns 0 when that was all of them, else 3.

    Raises LaunchError when the data or the device isn't there.
    """
    device = choose_device(place, study.recipe.runtime.device)
    threads = divide_threads(place, study.recipe.runtime.threads)
    try:
        work = open_workplace(
            study, device, threads, progress=lambda text: print(text, file=sys.stderr)
        )
    except DataError as error:
        raise LaunchError(str(error)) from None
    complete = True
    for row in study.rows:
        try:
            _evaluate_row(work, row)
        except CheckpointError as error:
            complete = False
            print(f"fusionrun: {row.name}: {error}", file=sys.stderr)
    results = collect_results(study)
    write_results(study.layout, results)
    console.print(results_tables(results, console.width))
    return ExitStatus.DONE if complete else ExitStatus.ROW_FAILED


def _evaluate_row(work: Workplace, row: Row) -> None:
    """One row's numbers, into its manifest. Raises CheckpointError."""
    files = work.study.layout.row(row.model, row.variant)
    manifest = read_manifest(files.manifest)
    model = load_model(files.directory)
    work.settle(model)
    validation = manifest["validation"]
    test = test_row(work, row, model, validation["experts"], validation["before_experts"])
    write_json(files.manifest, {**manifest, "test": test})
