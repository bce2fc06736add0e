"""`robustness OUTPUT_DIR`: every finished row on noisy, corrupted and OOD images."""

from pathlib import Path

from rich.console import Console

from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.text import problem_of
from fusionrun.common.typed_fields import plain
from fusionrun.data.errors import DataError
from fusionrun.evaluation.measuring import measure_study
from fusionrun.logs.csv import write_csv
from fusionrun.robustness.cifar_c import corrupted_names
from fusionrun.robustness.measure import RobustnessOptions, measure
from fusionrun.robustness.schema import Robustness
from fusionrun.robustness.tables import CSV_COLUMNS, long_rows, markdown, tables
from fusionrun.study.study import Study

PUBLISHED_FOR = ("cifar10", "cifar100")


def robustness(
    study: Study, rank_info: RankInfo, console: Console, options: RobustnessOptions
) -> int:
    """Measure every row that can be; returns 0 when that was all of them, else 3.

    Raises LaunchError when data, device or a folder isn't there, or results can't be written.
    """
    try:
        check_corrupted(study, options.corrupted)
    except DataError as error:
        raise LaunchError(problem_of(error)) from None
    return measure_study(
        study,
        rank_info,
        console,
        measure=lambda context: measure(context, options),
        write=write_robustness,
        show=tables,
    )


def write_robustness(study: Study, results: Robustness) -> Path:
    """The files in the output directory; returns the one that has everything."""
    write_json(study.layout.robustness("json"), plain(results))
    write_text(study.layout.robustness("md"), markdown(results))
    write_csv(study.layout.robustness("csv"), CSV_COLUMNS, list(long_rows(results)))
    return study.layout.robustness("json")


def check_corrupted(study: Study, folder: Path | None) -> None:
    """Refuse a folder of published images where it says nothing. Raises DataError."""
    name = study.recipe.data.name
    if folder is None:
        return
    if name not in PUBLISHED_FOR:
        raise DataError(
            f"--corrupted: this study's data set is {name}, the published corrupted images are "
            f"those of {' and '.join(PUBLISHED_FOR)}; go without it, the corruptions are made here"
        )
    if not corrupted_names(folder):
        raise DataError(
            f"--corrupted: {folder}: found no file named after a corruption (gaussian_noise.npy, "
            "...), expected the unpacked CIFAR-10-C or CIFAR-100-C"
        )
