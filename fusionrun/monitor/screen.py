"""The console a launch is shown on: a table that is drawn over, or lines one after another."""

import sys
from collections.abc import Sequence

from rich.console import Console

from fusionrun.monitor.bottom_lines import BottomLines
from fusionrun.monitor.snapshot import Snapshot
from fusionrun.monitor.table import STOP_HINT, table
from fusionrun.monitor.words import printable


class Screen:
    """A console, and on a terminal the `live` table at its bottom; None: it's no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # FORCE_COLOR and TTY_COMPATIBLE make rich take a file for a terminal; the system knows
        is_live = console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()
        self.live = BottomLines(console) if is_live else None

    def draw(
        self,
        snapshot: Snapshot,
        notices: Sequence[str] = (),
        hint: str = STOP_HINT,
        *,
        whole: bool = False,
    ) -> None:
        """Draw what fits the terminal, or the `whole` table for the last time, to be scrolled."""
        assert self.live is not None
        lines = table(
            snapshot,
            self._console.width,
            height=None if whole else self._console.height - 1,
            notices=notices,
            hint=hint,
            ascii_only=self._console.options.ascii_only,
        )
        self.live.update(lines)
        if not whole:  # which stopping draws: a table that has scrolled away can't be drawn over
            self.live.draw()

    def line(self, text: str) -> None:
        """One line without any control characters: above the table, or as it is, at once."""
        text = printable(text, ascii_only=self._console.options.ascii_only)
        if self.live is not None and self.live.is_started:
            # not as markup, in which rich would look for a style [task-0-...] and drop it
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._console.file.write(text + "\n")
            self._console.file.flush()
