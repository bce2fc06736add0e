"""`fusionrun assemble`: a model from components of different rows or runs."""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusionrun.commands.options import Verbs, make_console, path, study_and_overrides
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.text import problem_of


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "assemble",
        help="build a model from components of different rows or runs",
        description="Put experts, a fusion module and a global head of different rows or runs "
        "together and save them as a row's folder that load_model loads. MANIFEST.yaml has the "
        "keys experts (a row's folder, or a list of expert files), fusion (a row's folder, or a "
        "file), global_head (as fusion, which is the default), adapters (as fusion; optional: "
        "those between features of different sizes come along with a row) and evaluate (optional: "
        "the output directory of the study on whose images the model is measured).",
        epilog="Exit status: 0 assembled, 1 could not start or write, 2 the manifest or command "
        "line is wrong, or the components don't fit together.",
    )
    verb.add_argument("manifest", type=path, metavar="MANIFEST.yaml")
    verb.add_argument(
        "words",
        nargs="*",
        metavar="OUTPUT_DIR key=value",
        help="a new or an empty folder; key=value says where the data of the study in `evaluate` "
        "lies by now (data.root, data.cache_dir, data.splits_dir), and runtime.*",
    )
    verb.add_argument("--output", metavar="DIR", help="the same as OUTPUT_DIR")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Assemble, measure where a study is named, save.

    Raises RecipeError, naming the manifest's field, for what can't be used or doesn't fit, and
    LaunchError when the study's data or the device isn't there, or nothing can be written.
    """
    from fusionrun.components.assemble import assemble, read_plan, require_new
    from fusionrun.components.save_assembled import save_assembled
    from fusionrun.data.errors import DataError
    from fusionrun.evaluation.assembled import assembled_table, measure_assembled
    from fusionrun.evaluation.opening import require_writable

    given = [options.output] if options.output is not None else []
    folder, overrides = study_and_overrides([*options.words, *given], "assemble")
    console = make_console()
    try:
        plan = read_plan(options.manifest)
        require_new(folder)
        require_writable(folder)
        assembled = assemble(plan)
        if plan.evaluate is None:
            with _whole_or_nothing(folder):
                save_assembled(assembled, folder)
        else:
            measured = measure_assembled(assembled, plan.evaluate, rank_info, overrides)
            with _whole_or_nothing(folder):
                save_assembled(assembled, folder, measured)
            console.print(assembled_table(assembled, measured))
            for caution in measured["evaluated_on"]["cautions"]:
                console.print(caution, markup=False, soft_wrap=True)
    except (DataError, OSError) as error:
        raise LaunchError(problem_of(error)) from None
    console.print(f"assembled model: {folder}", markup=False, soft_wrap=True)
    return ExitStatus.DONE


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[None]:
    """What is stopped half-way leaves no folder that looks like a model, or stands in its way."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
