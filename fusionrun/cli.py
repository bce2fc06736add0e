"""The command line: a parser from the table of verbs, and errors as exit statuses."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fusionrun.commands import (
    assemble,
    doctor,
    evaluate,
    export,
    prepare,
    preview,
    report,
    robustness,
    train,
    watch,
)
from fusionrun.common.distributed import LaunchError, read_rank_info
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.version import __version__
from fusionrun.study.recipe import RecipeError

VERBS = (  # in --help's order
    train.add_parser,
    prepare.add_parser,
    doctor.add_parser,
    preview.add_parser,
    watch.add_parser,
    evaluate.add_parser,
    robustness.add_parser,
    report.add_parser,
    assemble.add_parser,
    export.add_parser,
)


class Parser(argparse.ArgumentParser):
    """A wrong command line is an error like those of a recipe."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status.

    For launch.sh, which asks for it with FUSIONRUN_EXIT_FILE, the status travels by that file and
    0 is returned: torchrun would start workers again that failed on purpose.
    """
    try:
        rank_info = read_rank_info(os.environ)
    except LaunchError as error:
        print(f"fusionrun: {error}", file=sys.stderr)
        return ExitStatus.NOT_STARTED
    exit_file = os.environ.get("FUSIONRUN_EXIT_FILE")
    if exit_file and rank_info.local_rank == 0:
        Path(exit_file).touch()  # a rank has started; without it, launch.sh says that none could
    parser = make_parser()
    code = ExitStatus.DONE
    try:
        # words may stand on both sides of flags: `RECIPE --epochs 3 fusion.alpha=2`
        options, rest = parser.parse_known_args(arguments)
        if rest and (not hasattr(options, "words") or any(word.startswith("-") for word in rest)):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            options.words += rest
        code = ExitStatus(options.run(options, rank_info))
    except (RecipeError, LaunchError) as error:
        wrong = isinstance(error, RecipeError)
        code = ExitStatus.WRONG_RECIPE if wrong else ExitStatus.NOT_STARTED
        if rank_info.rank == 0:  # all ranks meet the same mistake; one says so
            print(f"fusionrun: {error}", file=sys.stderr)
    except SystemExit:  # argparse has shown what was asked for: --help, --version
        pass
    if not exit_file:
        return code
    if rank_info.local_rank == 0:
        Path(exit_file).write_text(f"{code:d}\n")
    return ExitStatus.DONE


def make_parser() -> argparse.ArgumentParser:
    """Of all verbs."""
    parser: argparse.ArgumentParser = Parser(
        prog="fusionrun",
        description="Train many expert-fusion models side by side in one torchrun launch.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_parser in VERBS:
        add_parser(verbs)
    return parser


def end_process(code: int) -> NoReturn:
    """End with this status and without Python's own goodbyes.

    Everything is written and closed; a thread that still waits for a dead peer would make a normal
    exit abort.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def script() -> NoReturn:
    """The console script `fusionrun`."""
    end_process(main(sys.argv[1:]))
