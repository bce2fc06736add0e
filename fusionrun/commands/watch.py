"""`fusionrun watch`: the live table from another shell or a login node."""

import argparse

from fusionrun.commands.options import Verbs, path
from fusionrun.common.distributed import RankInfo


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "watch",
        help="show a running launch's table from another shell",
        description="Show the live table of the launch that writes to OUTPUT_DIR, from any "
        "machine that sees the folder; waits for one to begin. Off a terminal it's one summary. "
        "The exit status is the launch's.",
    )
    verb.add_argument("output_dir", type=path, metavar="OUTPUT_DIR")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Show the table until the launch ends."""
    from fusionrun.monitor.watch import watch

    return watch(options.output_dir)
