"""What a terminal shows after lines at its bottom were drawn over, printed above, and ended."""

import io
import re
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.text import Text

from fusionrun.monitor import bottom_lines
from fusionrun.monitor.bottom_lines import BottomLines
from tests.unit.monitor.test_live import picture


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> list[str]:
        return picture(self.getvalue().replace("\n", "\r\n"))


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def console(terminal: Terminal) -> Console:
    environ = {"TERM": "xterm"}
    return Console(file=terminal, width=40, height=12, force_terminal=True, _environ=environ)


@pytest.fixture
def live(console: Console) -> Iterator[BottomLines]:
    live = BottomLines(console)
    live.start()
    yield live
    live.stop()


def draw(live: BottomLines, *lines: str | Text) -> None:
    live.update([Text(line) if isinstance(line, str) else line for line in lines])
    live.draw()


def test_only_what_changed_is_written(live: BottomLines, terminal: Terminal) -> None:
    draw(live, "head", "", "row 0", "row 1", "foot")
    for changed, lines in (
        ("row 0!", ("head", "", "row 0!", "row 1", "foot")),
        ("foot!", ("head", "", "row 0!", "row 1", "foot!")),
        ("head!", ("head!", "", "row 0!", "row 1", "foot!")),
        ("", ("head!", "", "row 0!", "row 1", "foot!")),
        ("new", ("head!", "new", "row 0!", "row 1", "foot!")),
    ):
        start = terminal.tell()
        draw(live, *lines)
        written = re.sub(r"\x1b\[\d*[A-Z]|[\r\n]", "", terminal.getvalue()[start:])
        assert written == changed
        assert terminal.shown == list(lines)


def test_what_a_terminal_echoes_stands_behind_the_last_line(
    live: BottomLines, terminal: Terminal
) -> None:
    for head in ("head", "head!", "head!"):
        draw(live, head, "Ctrl-C leaves")
    terminal.write("^C")
    assert terminal.shown == ["head!", "Ctrl-C leaves^C"]


def test_a_line_that_only_looks_otherwise_has_changed(
    live: BottomLines, terminal: Terminal
) -> None:
    draw(live, Text("a"), Text("b"))
    draw(live, Text("a"), Text("b", "bold"))
    red = Text("b", "bold")
    red.stylize("red", 0, 1)
    draw(live, Text("a"), red)
    assert terminal.getvalue().count("a") == 1
    assert "\x1b[1mb" in terminal.getvalue() and "\x1b[1;31mb" in terminal.getvalue()


def test_more_and_fewer_lines_leave_no_remnants(live: BottomLines, terminal: Terminal) -> None:
    for count in (1, 5, 2, 2, 7, 0, 3):
        draw(live, *(f"{k} of {count}" for k in range(count)))
        assert terminal.shown[:count] == [f"{k} of {count}" for k in range(count)]
        assert not any(terminal.shown[count:])


def test_what_is_printed_meanwhile_comes_above(
    terminal: Terminal, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    live = BottomLines(console)
    live.start()
    draw(live, "head", "foot")
    print("out")
    draw(live, "head", "foot!")
    print("a warning", file=sys.stderr)
    console.print("said, and longer than the forty columns that it has", soft_wrap=True)
    draw(live, "head!", "foot!")
    live.stop()
    live.stop()
    print("after")
    said = "said, and longer than the forty columns that it has"
    shown = ["out", "a warning", said, "head!", "foot!", "after", ""]
    assert terminal.shown == shown
    assert sys.stdout is terminal and sys.stderr is terminal
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_what_wrote_past_this_process_is_drawn_over(
    live: BottomLines, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(live, "head", "row", "foot")
    terminal.write("a driver's warning\n")
    monkeypatch.setattr(bottom_lines, "WHOLE_SECONDS", 0.0)
    draw(live, "head", "row", "foot")
    assert terminal.shown[-3:] == ["head", "row", "foot"]


def test_what_a_shell_said_while_it_was_suspended_is_drawn_over(
    live: BottomLines, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not line by line into what the shell has said."""
    now = [100.0]
    monkeypatch.setattr(bottom_lines.time, "monotonic", lambda: now[0])
    draw(live, "head", "row 1", "foot")
    terminal.write("\n[1]+  Stopped\n$ fg\n")
    now[0] += bottom_lines.PAUSE_SECONDS
    draw(live, "head", "row 2", "foot")
    assert terminal.shown[-3:] == ["head", "row 2", "foot"]


def test_a_terminal_of_another_size_gets_all_lines(
    live: BottomLines, console: Console, terminal: Terminal
) -> None:
    draw(live, "a line of thirty letters or so", "foot")
    console.width = 20
    draw(live, "a line of thirty letters or so", "foot")
    assert terminal.shown == ["a line of thirty le…", "foot"]


def test_what_a_narrower_terminal_has_broken_off_the_last_line_goes(
    live: BottomLines, console: Console, terminal: Terminal
) -> None:
    draw(live, "head", "a line of thirty letters or so")
    terminal.write("\nletters or so\x1b[1A")
    console.width = 20
    draw(live, "head", "a line of thirty letters or so")
    assert terminal.shown == ["head", "a line of thirty le…"]


def test_the_last_lines_may_be_more_than_fit(live: BottomLines, terminal: Terminal) -> None:
    draw(live, "head", "row 0", "… and 19")
    lines = ["head", *(f"row {k}" for k in range(20))]
    live.update([Text(line) for line in lines])
    live.stop()
    assert terminal.shown == [*lines, ""]
