"""`fusionrun assemble`: a model from components of different rows or runs."""

import argparse
from pathlib import Path

from fusionrun.commands.options import Verbs, make_console
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.exit_status import ExitStatus


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "assemble",
        help="build a model from components of different rows or runs",
        description="Put experts, a fusion module and a global head of different rows or runs "
        "together and save them as a row's folder that load_model loads. MANIFEST.yaml has the "
        "keys experts (a row's folder, or a list of expert files), fusion (a row's folder, or a "
        "file), global_head (as fusion, which is the default) and evaluate (optional: the output "
        "directory of the study on whose images the model is measured).",
        epilog="Exit status: 0 assembled, 1 could not start or write, 2 the manifest or command "
        "line is wrong, or the components don't fit together.",
    )
    verb.add_argument("manifest", metavar="MANIFEST.yaml")
    verb.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or an empty folder")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Assemble, measure where a study is named, save; under torchrun one process does it for all.

    Raises RecipeError, naming the manifest's field, for what can't be used or doesn't fit, and
    LaunchError when the study's data or the device isn't there, or nothing can be written.
    """
    if rank_info.rank > 0:
        return ExitStatus.DONE
    from fusionrun.components.assemble import assemble, read_plan, require_new, save_assembled
    from fusionrun.data.errors import DataError
    from fusionrun.evaluation.assembled import assembled_table, measure_assembled

    folder, console = Path(options.output_dir), make_console()
    try:
        plan = read_plan(Path(options.manifest))
        require_new(folder)
        assembled = assemble(plan)
        if plan.evaluate is None:
            save_assembled(assembled, folder)
        else:
            measured = measure_assembled(assembled, plan.evaluate, rank_info)
            save_assembled(assembled, folder, measured)
            console.print(assembled_table(assembled, measured))
            for caution in measured["evaluated_on"]["cautions"]:
                console.print(caution, markup=False, soft_wrap=True)
    except (DataError, OSError) as error:
        raise LaunchError(str(error)) from None
    console.print(f"assembled model: {folder}", markup=False, soft_wrap=True)
    return ExitStatus.DONE
