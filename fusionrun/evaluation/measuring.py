"""What is the same whatever is measured of a study: opening it, its rows, what fails, the end."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console, RenderableType

from fusionrun.common.distributed import RankInfo
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.version import __version__
from fusionrun.components.manifest import Manifest, read_manifest
from fusionrun.components.store import load_model, load_single
from fusionrun.evaluation.opening import open_study, require_writable
from fusionrun.evaluation.problems import in_a_line, problem_said, say
from fusionrun.evaluation.row_names import name_row
from fusionrun.evaluation.schema import FORMAT, DataInfo, FailedRow
from fusionrun.experts import Expert
from fusionrun.experts.ensemble import Ensemble
from fusionrun.fusions import FusionModel
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.study.study import Study


class Results(Protocol):
    @property
    def failures(self) -> Collection[object]: ...


R = TypeVar("R", bound=Results)


def measure_study(
    study: Study,
    rank_info: RankInfo,
    console: Console,
    *,
    measure: Callable[[RunContext], R],
    write: Callable[[Study, R], Path],
    show: Callable[[R, int], RenderableType],
    new_splits: bool = False,
) -> int:
    """Open the study, `measure` it, `write` and `show` what was found; returns 0, or 3: failures.

    `write` returns the file that has everything; `show` is told how wide the terminal is. Raises
    LaunchError when data, device or a folder isn't there, when the device breaks or can't hold
    what all rows need, or results can't be written.
    """
    with in_a_line():
        require_writable(study.layout.measured)
        results = measure(open_study(study, rank_info, say, new_splits=new_splits))
        path = write(study, results)
    console.print(show(results, console.width))
    console.print(f"all of it: {path}", markup=False, soft_wrap=True)
    return ExitStatus.ROW_FAILED if results.failures else ExitStatus.DONE


def run_header(context: RunContext) -> dict[str, Any]:
    """The fields of a RunHeader."""
    study, data = context.study, context.data
    return {
        "format": FORMAT,
        "study": study.name,
        "output_dir": str(study.layout.output_dir.absolute()),
        "evaluated": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "data": DataInfo(
            name=data.name,
            classes=tuple(data.classes),
            test_images=len(data.test_labels),
            val_images=len(context.splits.fusion_val),
            image_size=data.test_images.shape[-1],
            notes=data.notes,
        ),
        "device": str(context.device),
        "threads": context.threads,
        "versions": {"fusionrun": __version__, "torch": torch.__version__},
        "fusion_recipe": study.recipe.fusion.recipe,
    }


@contextmanager
def noted(row: Row, failures: dict[str, FailedRow]) -> Iterator[None]:
    """What stops this row is said and noted by its name; the others go on."""
    try:
        yield
    except Exception as error:
        failures[row.name] = FailedRow(**name_row(row), problem=problem_said(row.name, error))


def load_row(context: RunContext, row: Row) -> tuple[Manifest, FusionModel | Expert | Ensemble]:
    """(manifest, model on the device) of a finished row of this study. Raises ROW_PROBLEMS."""
    files = context.study.layout.row(row.model, row.variant)
    manifest = read_manifest(files.manifest)
    task = context.study.row_task(row)
    context.identity(task).require_same(files.manifest, manifest.settings)
    load = load_single if row.is_single else load_model
    model = load(files.directory, context.study.recipe.plugins.values())
    context.settle(model)
    return manifest, model
