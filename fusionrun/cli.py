"""The command line: a parser from the table of verbs, and errors as exit statuses."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
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
from fusionrun.common import standard_streams
from fusionrun.common.distributed import LaunchError, die_with_parent, read_rank_info
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


class _Stopped(KeyboardInterrupt):
    """As Ctrl-C, by another signal; its only argument is the signal's number."""


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status.

    For launch.sh, which asks for it with FUSIONRUN_EXIT_FILE, the status travels by that file and
    0 is returned: torchrun would start workers again that failed on purpose.
    """
    # a shell inside a launch hands its RANK on to verbs that have nothing to do with it
    trains = list(arguments[:1]) == ["train"]
    environ = os.environ if trains else {}
    try:
        rank_info = read_rank_info(environ)
    except LaunchError as error:
        print(f"fusionrun: {error}", file=sys.stderr)
        return ExitStatus.NOT_STARTED
    if rank_info.has_launcher:  # before PyTorch is loaded, which takes seconds
        die_with_parent()
    exit_file = environ.get("FUSIONRUN_EXIT_FILE")
    if exit_file and rank_info.local_rank == 0:
        Path(exit_file).touch()  # a rank has started; without it, launch.sh says that none could
    code, problem = int(ExitStatus.DONE), ""
    parser = make_parser()
    try:
        with nullcontext() if trains else _stop_signals():
            # words may stand on both sides of flags: `RECIPE --epochs 3 fusion.alpha=2`
            options, rest = parser.parse_known_args(arguments)
            if rest and (not hasattr(options, "words") or any(w.startswith("-") for w in rest)):
                parser.error(f"unrecognized arguments: {' '.join(rest)}")
            if rest:
                options.words += rest
            code = ExitStatus(options.run(options, rank_info))
    except (RecipeError, LaunchError) as error:
        wrong = isinstance(error, RecipeError)
        code = ExitStatus.WRONG_RECIPE if wrong else ExitStatus.NOT_STARTED
        problem = str(error)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if isinstance(stop, _Stopped) else signal.SIGINT
        # train has signals of its own, once it has begun
        code = ExitStatus.STOPPED if trains else 128 + number
        problem = f"stopped ({signal.Signals(number).name})"
    except SystemExit:  # argparse has shown what was asked for: --help, --version
        pass
    if problem and rank_info.rank == 0:  # all ranks meet the same mistake; one says so
        print(f"fusionrun: {problem}", file=sys.stderr)
    if not exit_file:
        return code
    if rank_info.local_rank == 0:
        Path(exit_file).write_text(f"{code:d}\n")
    return ExitStatus.DONE


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, where nobody has them ignored (nohup)."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped(number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only that one hears them
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


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
    standard_streams.forgive()
    end_process(main(sys.argv[1:]))
