"""Show a launch while it runs: the live table on a terminal, plain lines anywhere else."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fusionrun.common.atomic_files import write_json
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.typed_fields import FieldError, plain, read_json
from fusionrun.monitor import table as board
from fusionrun.monitor.snapshot import Snapshot
from fusionrun.study.paths import Layout

WATCH_HINT = "Ctrl-C leaves this view; the launch goes on"
STALE_SECONDS = 10.0
# the exit status of `watch` is the launch's
_EXIT_CODES = {
    "running": ExitStatus.DONE,
    "done": ExitStatus.DONE,
    "failed": ExitStatus.ROW_FAILED,
    "stopped": ExitStatus.STOPPED,
}


class Display:
    """Rank 0's thread that shows and stores the state of the launch at every tick.

    On a terminal that's the live table, with a line above it for every task that ends. Off a
    terminal it's the new lines of all tasks' logs (other ranks write those), and now and then a
    summary. Nothing that goes wrong here reaches the training: it's said once, and the next tick
    tries again.
    """

    def __init__(
        self,
        observe: Callable[[], Snapshot],
        layout: Layout,
        task_names: Sequence[str],
        *,
        every_seconds: float,
        summary_minutes: float,
        console: Console | None = None,
    ) -> None:
        self._observe = observe
        self._layout = layout
        self._every = every_seconds
        self._summary_seconds = 60 * summary_minutes
        self._console = console or Console()
        self._tails = [_Tail(name, layout.task_log(name)) for name in task_names]
        self._live = _live(self._console) if _is_terminal(self._console) else None
        self._next_summary = time.monotonic() + self._summary_seconds
        self._states: dict[str, str] = {}  # of the tasks at the last tick
        self._closing: list[str] = []  # what there is to say at the end
        self._notice = ""  # why the status file couldn't be written
        self._reported: set[str] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def start(self) -> None:
        if self._live:
            self._live.start()
        self._thread.start()

    def stop(self) -> None:
        """Draw the final state and give the terminal back; a second call does nothing."""
        if self._done.is_set():
            return
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self._tick(last=True)
        if self._live:
            self._live.stop()
        for line in self._closing:
            _print_plain(self._console, line)

    def _run(self) -> None:
        while not self._done.is_set():
            self._tick()
            self._done.wait(self._every)

    def _tick(self, last: bool = False) -> None:
        for act in (self._mirror, self._show):
            try:
                act(last)
            except Exception as error:  # whatever it is: the launch is worth more than its picture
                kind = type(error).__name__
                self._report(kind, f"the display failed and goes on: {kind}: {error}")

    def _mirror(self, last: bool) -> None:
        """Off a terminal: the new lines of all logs."""
        for tail in self._tails if self._live is None else []:
            for line in tail.new_lines():
                self._print(line)

    def _show(self, last: bool) -> None:
        snapshot = self._observe()
        self._store(snapshot)
        self._closing = board.closing_lines(snapshot)
        if self._live:
            self._draw(self._live, snapshot, last)
        elif last or time.monotonic() >= self._next_summary:
            self._next_summary = time.monotonic() + self._summary_seconds
            for line in board.summary_lines(snapshot):
                self._print(line)

    def _store(self, snapshot: Snapshot) -> None:
        try:
            write_json(self._layout.status, plain(snapshot), durable=False)
            self._notice = ""
        except OSError as error:
            self._notice = f"{self._layout.status} can't be written: {error.strerror or error}"
            if not self._live:
                self._report("status", self._notice)

    def _draw(self, live: Live, snapshot: Snapshot, last: bool) -> None:
        for task in snapshot.tasks:
            before = self._states.get(task.name, task.state)  # not what an earlier launch did
            if task.state != before and task.state in ("done", "failed"):
                self._print(board.milestone(task))
            self._states[task.name] = task.state
        notices = [self._notice] if self._notice else []
        _redraw(live, snapshot, notices, board.STOP_HINT, whole=last)

    def _print(self, line: str) -> None:
        """One line: above the table, or as it is."""
        if self._live is None:
            _print_plain(self._console, line)
            return
        text = board.printable(line, ascii_only=self._console.options.ascii_only)
        # not as markup, in which rich would look for a style [task-0-...] and drop it
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _report(self, key: str, message: str) -> None:
        """Say a thing of this kind once."""
        if key not in self._reported:
            self._reported.add(key)
            with suppress(OSError, ValueError):  # the terminal itself is gone
                self._print(message)


class _Tail:
    """New complete lines of one task's log, from where it ended when the tail began."""

    def __init__(self, task: str, path: Path) -> None:
        self._path = path
        self._prefix = f"[{task}] "
        self._offset = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        """Complete lines since the last call, but for the details of tracebacks."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                complete, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(complete + newline)
        lines = complete.decode(errors="replace").split("\n") if newline else []
        return [line for line in lines if not line.startswith(f"{self._prefix}| ")]


class _UnreadableError(Exception):
    """There is no status that could be shown; the message says why."""


class _UnreachableError(_UnreadableError):
    """The file system says no; it may say yes later."""


def watch(output_dir: Path, *, every_seconds: float = 1.0, console: Console | None = None) -> int:
    """Show the launch that writes to `output_dir` until it ends; returns the exit status.

    Off a terminal it's one summary. 0: done (or still running), 3: failed, 4: stopped, as a
    launch exits; 1: there is nothing to show. Ctrl-C ends the view and harms nothing.
    """
    console = console or Console()
    try:
        snapshot = _read(output_dir)
        if not _is_terminal(console):
            return _show_once(snapshot, console)
        with _live(console) as live:
            return _follow(output_dir, snapshot, live, every_seconds)
    except KeyboardInterrupt:
        return 0
    except _UnreadableError as error:
        print(f"fusionrun: {board.printable(str(error))}", file=sys.stderr)
        return 1


def _show_once(snapshot: Snapshot, console: Console) -> int:
    for line in board.summary_lines(snapshot) + [f"  ! {text}" for text in _staleness(snapshot)]:
        _print_plain(console, line)
    return _EXIT_CODES[snapshot.state]


def _follow(output_dir: Path, snapshot: Snapshot, live: Live, every_seconds: float) -> int:
    trouble: list[str] = []
    while snapshot.state == "running":
        _redraw(live, snapshot, _staleness(snapshot) + trouble, WATCH_HINT)
        time.sleep(every_seconds)
        trouble = []
        try:
            snapshot = _read(output_dir)
        except _UnreachableError as error:
            # on a network file system a file that is being replaced can be missing for a moment
            trouble = [str(error)]
    _redraw(live, snapshot, [], WATCH_HINT, whole=True)
    return _EXIT_CODES[snapshot.state]


def _read(output_dir: Path) -> Snapshot:
    """The snapshot in `output_dir`."""
    path = Layout(output_dir).status
    try:
        return read_json(path, Snapshot)
    except FileNotFoundError:
        raise _UnreachableError(
            f"{path} doesn't exist: no launch has written there; give a launch's output_dir"
        ) from None
    except OSError as error:
        raise _UnreachableError(f"{path} can't be read: {error.strerror or error}") from None
    except FieldError as error:
        raise _UnreadableError(
            f"{path} isn't a status file of this version of fusionrun ({error})"
        ) from None


def _staleness(snapshot: Snapshot) -> list[str]:
    age = time.time() - snapshot.updated
    if snapshot.state != "running" or age <= STALE_SECONDS:
        return []
    return [f"no update for {age:.0f} s: the launch was killed, or its file system is slow"]


def _is_terminal(console: Console) -> bool:
    """FORCE_COLOR and TTY_COMPATIBLE make rich take a file for a terminal; the system knows."""
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()


def _live(console: Console) -> Live:
    # the ticks redraw; a refreshing thread of rich's own would only add writes in between
    return Live(console=console, auto_refresh=False, vertical_overflow="ellipsis")


def _redraw(
    live: Live, snapshot: Snapshot, notices: Sequence[str], hint: str, *, whole: bool = False
) -> None:
    """Draw what fits the terminal, or the `whole` table for the last time, to be scrolled."""
    console = live.console
    drawn = board.table(
        snapshot,
        console.width,
        height=None if whole else console.height - 1,
        notices=notices,
        hint=hint,
        ascii_only=console.options.ascii_only,
    )
    # stopping draws once more, and a table that has scrolled away can't be drawn over
    live.update(drawn, refresh=not whole)


def _print_plain(console: Console, line: str) -> None:
    """A line without any control characters, at once."""
    console.file.write(board.printable(line, ascii_only=console.options.ascii_only) + "\n")
    console.file.flush()
