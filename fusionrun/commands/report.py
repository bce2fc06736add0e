"""`fusionrun report`: a page from what was measured."""

import argparse

from fusionrun.commands.options import PLACES, Verbs, folders_and_overrides, path
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
        epilog="Exit status: 0 written, 1 nothing was measured or can be written, 2 wrong command "
        "line.",
    )
    verb.add_argument("words", nargs="+", metavar="OUTPUT_DIR key=value", help=PLACES)
    verb.add_argument(
        "--output",
        type=path,
        metavar="FILE.html",
        help="another name of the page, or a folder; the tables go beside it. What evaluate and "
        "robustness wrote there with --output is shown",
    )
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Write the page."""
    from fusionrun.report.load import ReportError
    from fusionrun.report.write import write_report

    folders, overrides = folders_and_overrides(options.words, "report")
    try:
        written = write_report(folders, options.output, overrides)
    except ReportError as error:
        raise LaunchError(str(error)) from None
    for file in written:
        print(file)
    return ExitStatus.DONE
