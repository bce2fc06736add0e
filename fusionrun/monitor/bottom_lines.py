"""Lines that stay at the bottom of a terminal; of them only what changed is written again."""

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO, cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

# then all is written: a driver's warning, which no Python sees, may stand between the lines; after
# such a pause what a shell has said that this process was suspended under
WHOLE_SECONDS, PAUSE_SECONDS = 10.0, 3.0


class BottomLines(RenderHook):
    """What this process prints, also a library to stdout or stderr, comes above the lines.

    rich's own Live writes all lines at every change: that costs more than all else that a launch
    does in a second beside training, and keeps a slow connection busy.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._lines: Sequence[Text] = ()
        self._on_screen: list[object] = []  # of each line there, what tells it from another
        self._frame = 0, console.size  # how many, and on what size of terminal
        self._whole_at = self._written_at = 0.0  # when all were written, when anything was
        self._streams: tuple[TextIO, TextIO] | None = None  # this process's own, while started

    @property
    def is_started(self) -> bool:
        return self._streams is not None

    def start(self) -> None:
        """Hide the cursor and begin."""
        self._streams = sys.stdout, sys.stderr
        self._console.show_cursor(False)
        sys.stdout = cast(TextIO, FileProxy(self._console, sys.stdout))
        sys.stderr = cast(TextIO, FileProxy(self._console, sys.stderr))
        self._console.push_render_hook(self)

    def stop(self) -> None:
        """Draw for the last time and give the terminal back; a second call does nothing."""
        if self._streams is None:
            return
        try:
            self.draw()
        finally:
            sys.stdout, sys.stderr = self._streams
            self._streams = None
            self._console.pop_render_hook()
            if self._on_screen:
                self._console.line()
            self._console.show_cursor(True)

    def update(self, lines: Sequence[Text]) -> None:
        """What the next drawing shows; more lines than the terminal has can only be the last."""
        with self._lock:
            self._lines = lines

    def draw(self) -> None:
        """Write what has changed."""
        self._console.print(_Rewritten((), (), 0))

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What rich is to write for a print: that, and the lines below; or what changed of them."""
        with self._lock:
            before, lines = self._on_screen, self._lines
            self._on_screen = [_look(line) for line in lines]
            frame, now = (len(lines), self._console.size), time.monotonic()
            pause, self._written_at = now - self._written_at, now
            is_known = now - self._whole_at < WHOLE_SECONDS and pause < PAUSE_SECONDS
            is_draw = isinstance(renderables[0], _Rewritten)
            if is_draw and self._frame == frame and is_known:
                changed = [old != new for old, new in zip(before, self._on_screen, strict=True)]
                return [_Rewritten(lines, changed, len(lines) - 1)]
            self._frame, self._whole_at = frame, now
            above = [] if is_draw else renderables
            return [_erased(len(before)), *above, _Rewritten(lines, [True] * len(lines), 0)]


@dataclass(frozen=True)
class _Rewritten:
    """Those of the lines that have `changed`; ends in the last, changed or not."""

    lines: Sequence[Text]
    changed: Sequence[bool]
    begins: int  # in which line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if True not in self.changed:
            return
        last = len(self.lines) - 1
        first = self.changed.index(True)
        options = options.update(no_wrap=True, overflow="ellipsis")
        yield Control(ControlType.CARRIAGE_RETURN)
        if first < self.begins:
            yield Control((ControlType.CURSOR_UP, self.begins - first))
        for k in range(first, last + 1):
            if self.changed[k]:
                yield Control((ControlType.ERASE_IN_LINE, 2))
                yield from console.render_lines(self.lines[k], options, pad=False)[0]
            if k < last:
                yield Segment.line()
        if not self.changed[last] and (written := self.lines[last].cell_len):
            # behind it: a terminal writes ^C where its cursor is
            yield Control((ControlType.CURSOR_FORWARD, min(written, options.max_width - 1)))


def _look(line: Text) -> object:
    """What a line that looks otherwise has other."""
    return line.plain, line.style, line.spans


def _erased(lines: int) -> Segments:
    """From the last of so many lines back to the first, none of them left.

    Nor anything below them: a terminal that got narrower has broken the last one in two.
    """
    erase = (ControlType.ERASE_IN_LINE, 2)
    up = (ControlType.CURSOR_UP, 1)
    back = Control(ControlType.CARRIAGE_RETURN, erase, *(lines - 1) * (up, erase)).segment
    return Segments([back, Segment("\x1b[J", None, [(ControlType.CLEAR,)])])  # rich can't say it
