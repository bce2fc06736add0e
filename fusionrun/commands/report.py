"""`fusionrun report`: a page from what was measured."""

import argparse
from pathlib import Path

from fusionrun.commands.options import Verbs
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.exit_status import ExitStatus


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "report",
        help="tables and pictures of what `evaluate` measured",
        description="Write report.html (one page that needs no network) and its tables as "
        "report.md, report.csv and report.tex from what `evaluate` left in OUTPUT_DIR. Several "
        "directories are compared side by side in files of their own, comparison.html and the like "
        "in the current folder; each study's report stays as it is.",
    )
    verb.add_argument("output_dirs", nargs="+", metavar="OUTPUT_DIR")
    verb.add_argument(
        "--output",
        metavar="FILE.html",
        help="another name of the page, or a folder; the tables go beside it",
    )
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Write the page; under torchrun one process does it for all."""
    if rank_info.rank > 0:
        return ExitStatus.DONE
    from fusionrun.report.load import ReportError
    from fusionrun.report.write import write_report

    folders = [Path(folder) for folder in options.output_dirs]
    try:
        written = write_report(folders, Path(options.output) if options.output else None)
    except ReportError as error:
        raise LaunchError(str(error)) from None
    for path in written:
        print(path)
    return ExitStatus.DONE
