"""Show a launch while it runs: the live table on a terminal, plain lines anywhere else."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import plain
from fusionrun.monitor.log_lines import closing_lines, milestone, summary_lines
from fusionrun.monitor.screen import Screen
from fusionrun.monitor.snapshot import Snapshot
from fusionrun.study.paths import Layout

NOTE_SECONDS = 10.0  # between lines that say how far a set-up is


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
        self._screen = Screen(console or Console())
        self._tails = [_Tail(name, layout.task_log(name)) for name in task_names]
        self._next_summary = time.monotonic() + self._summary_seconds
        self._states: dict[str, str] = {}  # of the tasks at the last tick
        self._failures: dict[str, str] = {}  # {reason: the task it was told of}
        self._next_note = 0.0
        self._note = ""  # of a starting rank
        self._last: Snapshot | None = None
        self._reported: set[str] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def start(self) -> None:
        if self._screen.live:
            self._screen.live.start()
        self._thread.start()

    def say(self, text: str) -> None:
        """A line above the table, or between the others; nothing where the terminal is gone."""
        with suppress(OSError, ValueError):
            self._screen.line(text)

    def stop(self) -> None:
        """Draw the final state and give the terminal back; a second call does nothing."""
        if self._done.is_set():
            return
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self._tick(last=True)
        if self._screen.live:
            self._screen.live.stop()
        for line in closing_lines(self._last) if self._last else []:
            self._screen.line(line)

    def _run(self) -> None:
        while not self._done.is_set():
            self._tick()
            self._done.wait(self._every)

    def _tick(self, last: bool = False) -> None:
        with self._survived():
            for tail in self._tails if self._screen.live is None else []:
                for line in tail.new_lines():
                    self._screen.line(line)
        with self._survived():
            self._show(last)

    @contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: the launch is worth more than its picture
            kind = type(error).__name__
            self._report(kind, f"the display failed and tries again: {kind}: {error}")

    def _show(self, last: bool) -> None:
        """The state of the launch: into its file, and in the form that fits the screen."""
        snapshot = self._last = self._observe()
        notices = []
        try:
            write_json(self._layout.status, plain(snapshot), durable=False)
        except OSError as error:
            notices = [f"{self._layout.status} can't be written: {error.strerror or error}"]
        if self._screen.live:
            for task in snapshot.tasks:
                before = self._states.get(task.name, task.state)  # not what an earlier launch did
                if task.state != before and task.state in ("done", "failed"):
                    self._screen.line(milestone(task, self._failures))
                self._states[task.name] = task.state
            self._screen.draw(snapshot, notices, whole=last)
            return
        for notice in notices:
            self._report("status", notice)
        # set-ups can take minutes; it's enough to know that they get on
        notes = [rank.note for rank in snapshot.ranks if rank.state == "starting" and rank.note]
        if notes and notes[0] != self._note and time.monotonic() >= self._next_note:
            self._note, self._next_note = notes[0], time.monotonic() + NOTE_SECONDS
            self._screen.line(f"fusionrun: {notes[0]}")
        if last or time.monotonic() >= self._next_summary:
            self._next_summary = time.monotonic() + self._summary_seconds
            for line in summary_lines(snapshot):
                self._screen.line(line)

    def _report(self, key: str, message: str) -> None:
        """Say a thing of this kind once."""
        if key not in self._reported:
            self._reported.add(key)
            self.say(message)


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
