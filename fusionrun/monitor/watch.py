"""The live table of a launch that runs elsewhere, from its status file."""

import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.invocation import command
from fusionrun.common.typed_fields import FieldError, read_json
from fusionrun.monitor.ages import Ages
from fusionrun.monitor.log_lines import summary_lines
from fusionrun.monitor.screen import Screen
from fusionrun.monitor.snapshot import Snapshot
from fusionrun.monitor.words import printable
from fusionrun.study.paths import Layout

WATCH_HINT = "Ctrl-C leaves this view; the launch keeps running"
STALE_SECONDS, SAY_SECONDS = 10.0, 2.0
WAIT_SECONDS = 30.0  # off a terminal, for a launch to begin
# the exit status of `watch` is the launch's
_EXIT_CODES = {
    "running": ExitStatus.DONE,
    "done": ExitStatus.DONE,
    "failed": ExitStatus.ROW_FAILED,
    "stopped": ExitStatus.STOPPED,
}


class _UnreadableError(Exception):
    """There is no status that could be shown; the message says why."""


class _UnreachableError(_UnreadableError):
    """The file system says no; it may say yes later."""


class _NotYetError(_UnreachableError):
    """Nobody has written there, so far."""


def watch(
    output_dir: Path,
    *,
    every_seconds: float = 1.0,
    wait_seconds: float = WAIT_SECONDS,
    console: Console | None = None,
) -> int:
    """Show the launch that writes to `output_dir` until it ends; returns the exit status.

    Where none has written yet it waits: on a terminal as long as one likes, else `wait_seconds`.
    Off a terminal it's one summary, as soon as the launch is seen to live, or not to. 0: done (or
    still running), 3: failed, 4: stopped, as a launch exits; 1: there is nothing to show.
    KeyboardInterrupt ends the view and harms nothing.
    """
    screen = Screen(console or Console())
    try:
        snapshot = _wait(output_dir, screen, every_seconds, wait_seconds)
        ages = Ages(every_seconds)
        if screen.live is None:
            snapshot, silence = _await_update(output_dir, snapshot, ages, screen)
            for line in summary_lines(snapshot) + [f"  ! {text}" for text in silence]:
                screen.line(line)
            return _EXIT_CODES[snapshot.state]
        screen.live.start()
        try:
            trouble: list[str] = []
            while snapshot.state == "running":
                screen.draw(snapshot, _silence(snapshot, ages) + trouble, WATCH_HINT)
                time.sleep(every_seconds)
                trouble = []
                try:
                    snapshot = _read(output_dir)
                except _UnreachableError as error:
                    # on a network file system a file that is being replaced can be missing briefly
                    trouble = [str(error)]
            screen.draw(snapshot, whole=True)
        finally:
            screen.live.stop()
        return _EXIT_CODES[snapshot.state]
    except _UnreadableError as error:
        print(f"fusionrun: {printable(str(error))}", file=sys.stderr)
        return ExitStatus.NOT_STARTED


def _wait(output_dir: Path, screen: Screen, every_seconds: float, wait_seconds: float) -> Snapshot:
    """The first status there is. Raises _UnreadableError where it can't be shown or none comes."""
    began = time.monotonic()
    said = False
    while True:
        try:
            return _read(output_dir)
        except _NotYetError as error:
            if screen.live is None and time.monotonic() - began >= wait_seconds:
                raise _UnreadableError(
                    f"{error}, and none began in {wait_seconds:.0f} s; give the output_dir of a "
                    f"launch, or start one: {command()} train RECIPE"
                ) from None
            if not said:
                screen.line(f"{error} yet; waits for one to begin (Ctrl-C leaves)")
                said = True
        time.sleep(every_seconds)


def _read(output_dir: Path) -> Snapshot:
    path = Layout(output_dir).status
    try:
        return read_json(path, Snapshot)
    except FileNotFoundError:
        raise _NotYetError(f"no launch has written {path}") from None
    except OSError as error:
        raise _UnreachableError(f"{path} can't be read: {error.strerror or error}") from None
    except FieldError as error:
        raise _UnreadableError(
            f"{path} isn't a status file of this version of fusionrun ({error}); watch it with "
            "the version that launched"
        ) from None


def _await_update(
    output_dir: Path, snapshot: Snapshot, ages: Ages, screen: Screen
) -> tuple[Snapshot, list[str]]:
    """The next state of a running launch, with a word if none comes.

    The age of a file says nothing: the launch's clock may be another machine's.
    """
    first, said = snapshot.updated, False
    while snapshot.state == "running" and snapshot.updated == first:
        if silence := _silence(snapshot, ages):
            return snapshot, silence
        if not said and ages.of("update", first) > SAY_SECONDS:
            screen.line(f"looks for an update for {_patience(snapshot):.0f} s ...")
            said = True
        time.sleep(0.1)
        with suppress(_UnreachableError):  # see `watch`
            snapshot = _read(output_dir)
    return snapshot, []


def _patience(snapshot: Snapshot) -> float:
    """Seconds without an update after which a launch is not thought alive."""
    return max(STALE_SECONDS, 3 * snapshot.every_seconds)


def _silence(snapshot: Snapshot, ages: Ages) -> list[str]:
    """A word where no update has come while this process looked for one."""
    ages.tick()
    age = ages.of("update", snapshot.updated)
    if snapshot.state != "running" or age <= _patience(snapshot):
        return []
    last = datetime.fromtimestamp(snapshot.updated).strftime("%Y-%m-%d %H:%M:%S")
    return [
        f"no update for {age:.0f} s: the launch was killed, or its file system is slow (the last "
        f"was at {last} by its clock)"
    ]
