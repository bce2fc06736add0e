"""`fusionrun assemble`: a model from components of different rows or runs."""

import argparse
from pathlib import Path

from fusionrun.commands.options import Verbs, make_console
from fusionrun.common.distributed import RankInfo
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
    """Assemble and measure; under torchrun one process does it for all."""
    if rank_info.rank > 0:
        return ExitStatus.DONE
    from fusionrun.components.assemble import assemble

    folder = Path(options.output_dir)
    return assemble(Path(options.manifest), folder, rank_info, make_console())
