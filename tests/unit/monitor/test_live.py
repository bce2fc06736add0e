"""Showing a launch: on a real (pseudo) terminal, in a file, and from another shell."""

import dataclasses
import errno
import io
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console, RenderableType

from fusionrun.common.typed_fields import plain, read_json
from fusionrun.monitor import live, screen
from fusionrun.monitor.live import Display
from fusionrun.monitor.snapshot import RankStatus, Snapshot, TaskStatus
from fusionrun.monitor.watch import watch
from fusionrun.study.paths import Layout

ROOT = Path(__file__).resolve().parents[3]
NAME = "task-0-densenet-multiplicative"
OTHER = "task-1-resnet-concatenation"


def snapshot(state: Any = "running", *, updated: float | None = None) -> Snapshot:
    ended: Any = "done" if state == "failed" else state  # in a failed launch, one row is
    first = TaskStatus(
        NAME, "row", "densenet", "multiplicative", ended, 100, rank=0, epoch=41, val_accuracy=81.25
    )
    second = TaskStatus(OTHER, "row", "resnet", "concatenation", "running", 100, rank=1, epoch=7)
    if state == "failed":
        second = dataclasses.replace(second, state="failed", note="ValueError: [/tmp/x] is empty")
    elif state != "running":
        second = dataclasses.replace(second, state=state)
    return Snapshot(
        study="demo",
        output_dir="runs/demo",
        state=state,
        started=0.0,
        updated=time.time() if updated is None else updated,
        elapsed=65.0,
        eta_seconds=120.0,
        progress=1.0 if state == "done" else 0.4,
        world_size=2,
        threads=1,
        device="cpu",
        nodes=1,
        restarts=0,
        job_id=None,
        channel="",
        tasks=(first, second),
        ranks=(
            RankStatus(0, "working", NAME, 0.1, None),
            RankStatus(1, "working", OTHER, 0.1, None),
        ),
    )


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


class Off:
    """A Display off a terminal, its output, and the log of one of its tasks."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.layout = Layout(directory)
        self.log = self.layout.task_log(NAME)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.file = io.StringIO()
        self.console = Console(file=self.file, **options.pop("console", {}))
        self.seen = 0
        settings = {"every_seconds": 0.01, "summary_minutes": 60.0} | options
        observe = settings.pop("observe", snapshot)
        self.display = Display(
            lambda: self._observed(observe),
            self.layout,
            [NAME, OTHER],
            **settings,
            console=self.console,
        )

    def _observed(self, observe: Callable[[], Snapshot]) -> Snapshot:
        self.seen += 1
        return observe()

    def write(self, text: str, log: Path | None = None) -> None:
        with (log or self.log).open("a") as file:
            file.write(text)

    def ticks(self, count: int = 2) -> None:
        start = self.seen
        until(lambda: self.seen >= start + count)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()

    @property
    def mirrored(self) -> list[str]:
        """All that was printed before the first summary."""
        return list(itertools.takewhile(lambda line: not line.startswith("demo:"), self.lines))


def test_every_complete_line_is_mirrored_once_and_in_order(tmp_path: Path) -> None:
    off = Off(tmp_path)
    off.display.start()
    try:
        for k in range(20):
            off.write(f"[{NAME}] line {k}\n")
            if k % 5 == 0:
                off.ticks()
        off.write(f"[{OTHER}] hello\n", off.layout.task_log(OTHER))
        off.write(f"[{NAME}] the first half")
        off.ticks()
        assert "half" not in off.file.getvalue()
        off.write(" and the second é\n[")
        off.ticks()
    finally:
        off.display.stop()
    wanted = [f"[{NAME}] line {k}" for k in range(20)]
    wanted.append(f"[{NAME}] the first half and the second é")
    assert [line for line in off.mirrored if NAME in line] == wanted
    assert [line for line in off.mirrored if OTHER in line] == [f"[{OTHER}] hello"]


def test_what_an_earlier_launch_logged_and_traceback_details_stay_out(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.task_log(NAME).parent.mkdir()
    layout.task_log(NAME).write_text(f"[{NAME}] of yesterday\n[{NAME}] cut in the mid")
    off = Off(tmp_path)
    off.write(f"[{NAME}] new\n[{NAME}] | Traceback\n[{NAME}] |   File\n[{NAME}] failed: a | b\n")
    off.display.start()
    off.display.stop()
    assert off.mirrored == [f"[{NAME}] new", f"[{NAME}] failed: a | b"]


def test_lines_written_just_before_the_stop_are_not_lost(tmp_path: Path) -> None:
    off = Off(tmp_path, every_seconds=60.0)
    off.display.start()
    until(lambda: off.seen == 1)
    off.write(f"[{NAME}] last words\n")
    off.display.stop()
    off.display.stop()
    assert off.mirrored == [f"[{NAME}] last words"]
    assert sum(line.startswith("demo: running") for line in off.lines) == 1  # and a last summary
    assert not any(thread.name == "display" for thread in threading.enumerate())


def test_summaries_come_at_their_interval(tmp_path: Path) -> None:
    off = Off(tmp_path, summary_minutes=0.05 / 60)
    off.display.start()
    until(lambda: off.file.getvalue().count("demo: running") >= 3)
    off.display.stop()
    assert off.file.getvalue().count("demo: running") < off.seen


def test_no_escapes_off_a_terminal_whatever_the_environment_says(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.unit.monitor.test_live import NAME, Display, Layout, snapshot
layout = Layout(Path({str(tmp_path)!r}))
layout.task_log(NAME).parent.mkdir()
shown = Display(snapshot, layout, [NAME], every_seconds=0.01, summary_minutes=0.001)
layout.task_log(NAME).write_bytes(f"[{{NAME}}] \\x1b[31mred\\x07 \\xff end\\n".encode("latin-1"))
shown.start()
shown.stop()
"""
    environ = os.environ | {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f"[{NAME}]  [31mred  ? end" in done.stdout.decode("ascii")
    assert b"demo: running" in done.stdout
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f-\xff]", done.stdout)


def test_the_status_file_holds_the_last_snapshot(tmp_path: Path) -> None:
    state = ["running"]
    off = Off(tmp_path, observe=lambda: snapshot(state[0], updated=7.0))
    off.display.start()
    off.ticks()
    assert json.loads(off.layout.status.read_text())["state"] == "running"
    state[0] = "done"
    off.display.stop()
    assert read_json(off.layout.status, Snapshot) == snapshot("done", updated=7.0)


def test_a_full_disk_is_said_once_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]

    def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_text(json.dumps(value))

    monkeypatch.setattr(live, "write_json", write_json)
    off = Off(tmp_path)
    off.display.start()
    off.ticks(5)
    full[0] = False
    off.ticks(3)
    off.display.stop()
    assert off.file.getvalue().count("No space left on device") == 1
    assert json.loads(off.layout.status.read_text())["study"] == "demo"


def test_a_failing_picture_is_said_once_and_the_logs_go_on(tmp_path: Path) -> None:
    broken = [True]

    def observe() -> Snapshot:
        if broken[0]:
            raise KeyError(f"surprise {time.monotonic()}")
        return snapshot()

    off = Off(tmp_path, observe=observe)
    off.display.start()
    off.ticks(5)
    off.write(f"[{NAME}] still here\n")
    off.ticks(3)
    assert off.mirrored[1:] == [f"[{NAME}] still here"]  # after the complaint
    broken[0] = False
    off.display.stop()
    text = off.file.getvalue()
    assert text.count("surprise") == 1
    assert "KeyError" in text
    assert "demo: running" in text


# -- on a terminal -----------------------------------------------------------------------------


def in_terminal(
    act: Callable[[], int], *, interrupt: str = "", columns: int = 100, lines: int = 40
) -> tuple[int, str]:
    """Run `act` in a process with a pseudo-terminal; SIGINT once it printed `interrupt`.

    Returns its exit status and output. A fork, because importing torch anew takes seconds.
    """
    process, master = pty.fork()
    if process == 0:
        _be_child(act, columns, lines)
    output = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 0.1)[0]:
            continue
        try:
            output += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if interrupt and interrupt.encode() in output:
            os.kill(process, signal.SIGINT)
            interrupt = ""
    else:
        os.kill(process, signal.SIGKILL)
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), output.decode()


def _be_child(act: Callable[[], int], columns: int, lines: int) -> NoReturn:
    status = 99
    # a shell starts what it runs in the background with SIGINT ignored, these tests too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        termios.tcsetwinsize(1, (lines, columns))
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        os.environ["TERM"] = "xterm-256color"
        # in the place of pytest's
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), "utf-8", line_buffering=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), "utf-8", line_buffering=True)
        status = act()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def picture(output: str) -> list[str]:
    """What a terminal (of any height) shows after `output`: the few codes that rich uses."""
    lines, y, x = [""], 0, 0
    for code, text in re.findall(r"(\x1b\[[?0-9;]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", output):
        if text:
            lines[y] = lines[y][:x].ljust(x) + text + lines[y][x + len(text) :]
            x += len(text)
        elif code == "\r":
            x = 0
        elif code == "\n":
            y += 1
            lines += [""] * (y + 1 - len(lines))
        elif code.endswith("A"):
            y -= int(code[2:-1] or 1)
        elif code.endswith("C"):
            x += int(code[2:-1] or 1)
        elif code.endswith("K"):
            lines[y] = ""
        elif code == "\x1b[J":
            lines[y:] = [lines[y][:x]]
        else:
            assert code[-1] in "mhl", f"unforeseen {code!r}"
    return lines


def launch(directory: Path, end: str = "failed") -> int:
    """A launch as rank 0 shows it, from running to `end`."""
    state, seen = ["running"], [0]

    def observe() -> Snapshot:
        seen[0] += 1
        return replace(snapshot(state[0]), elapsed=60.0 + seen[0])

    shown = Display(
        observe, Layout(directory), [NAME, OTHER], every_seconds=0.01, summary_minutes=0.0
    )
    shown.start()
    until(lambda: seen[0] > 9)
    print("from the main thread")
    state[0] = end
    until(lambda: seen[0] > 14)
    shown.stop()
    print("after")
    return 0


def cursor_is_visible(output: str) -> bool:
    return re.findall(r"\x1b\[\?25([hl])", output)[-1:] != ["l"]


def test_a_terminal_shows_one_table_and_gets_its_cursor_back(tmp_path: Path) -> None:
    status, output = in_terminal(lambda: launch(tmp_path))
    assert status == 0, output
    lines = picture(output)
    text = "\n".join(lines)
    assert output.count("elapsed 1m") > 10  # drawn again and again
    assert output.count("fused %") < 9  # but not what stays as it is
    assert sum("fused %" in line for line in lines) == 1  # but there's one
    assert sum(bool(re.search("densenet +multiplicative", line)) for line in lines) == 1
    assert "\x1b[?25l" in output
    assert cursor_is_visible(output)
    assert "✗ failed" in text
    assert lines[0] == "from the main thread"
    # above the table, as it is, once
    assert lines.index(f"✗ {OTHER} failed: ValueError: [/tmp/x] is empty") < 3
    assert lines.index(f"✓ {NAME} done: val accuracy 81.25 %") < 3
    assert text.count("[/tmp/x] is empty") == 2  # the line above and the reason in the table
    assert lines[-2] == "after"
    assert "demo: failed" not in text


def test_a_table_taller_than_the_terminal_leaves_no_remnants(tmp_path: Path) -> None:
    status, output = in_terminal(lambda: launch(tmp_path), columns=60, lines=9)
    lines = picture(output)
    assert status == 0
    assert "Ctrl-C once" in output  # it's rows that are left out
    assert f"✗ {OTHER} failed: ValueError: [/tmp/x] is empty" in lines  # not broken at 60 columns
    assert sum("fused" in line for line in lines) == 1
    frames = re.findall(r"(?:\x1b\[1A\x1b\[2K)+", output)
    assert max(frame.count("\x1b[1A") for frame in frames) < 9  # what has scrolled away stays
    assert sum(bool(re.search("1 resnet +concatenation", line)) for line in lines) == 1
    assert len(lines) > 12  # the last one is whole


def test_a_failing_drawing_on_a_terminal_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, calls = screen.table, [0]

    def table(*args: Any, **options: Any) -> RenderableType:
        calls[0] += 1
        if calls[0] < 6:
            raise ZeroDivisionError("in the drawing")
        return draw(*args, **options)

    monkeypatch.setattr(screen, "table", table)
    status, output = in_terminal(lambda: launch(tmp_path, "done"))
    text = "\n".join(picture(output))
    assert status == 0
    assert text.count("ZeroDivisionError: in the drawing") == 1
    assert text.count("fused %") == 1
    assert cursor_is_visible(output)


# -- watch -------------------------------------------------------------------------------------


def stored(directory: Path, shown: Snapshot) -> Path:
    directory.mkdir(exist_ok=True)
    path = Layout(directory).status
    path.write_text(json.dumps(plain(shown)))
    return path


def watched(directory: Path, seconds: float = 0.05) -> tuple[int, str]:
    console = Console(file=(file := io.StringIO()), force_terminal=True)
    code = watch(directory, every_seconds=0.01, wait_seconds=seconds, console=console)
    return code, file.getvalue()


@pytest.mark.parametrize(
    ("state", "status"), [("running", 0), ("done", 0), ("failed", 3), ("stopped", 4)]
)
def test_watch_off_a_terminal_is_one_summary(tmp_path: Path, state: str, status: int) -> None:
    stored(tmp_path, snapshot(state))
    newer = stored(tmp_path / "newer", snapshot(state, updated=7.0))
    threading.Timer(0.2, lambda: newer.replace(Layout(tmp_path).status)).start()
    code, text = watched(tmp_path)
    assert code == status
    assert text.startswith(f"demo: {state}")
    assert "\x1b" not in text
    assert "no update" not in text


@pytest.mark.parametrize("skew", [-1e6, 0.0, 90.0])
@pytest.mark.parametrize(("state", "said"), [("running", True), ("stopped", False)])
def test_watch_says_when_nothing_comes_any_more(
    tmp_path: Path, state: str, said: bool, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the launch's clock says."""
    monkeypatch.setattr("fusionrun.monitor.watch.STALE_SECONDS", 0.3)
    monkeypatch.setattr("fusionrun.monitor.watch.SAY_SECONDS", 0.1)
    last = snapshot(state, updated=time.time() + skew)
    stored(tmp_path, replace(last, every_seconds=0.01))
    assert ("no update for " in watched(tmp_path)[1]) == said


def half_a_schema() -> str:
    tree = plain(snapshot())
    del tree["tasks"][0]["kind"], tree["progress"]
    return json.dumps(tree)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "{}", '{"tasks": 3, "ranks": []}', half_a_schema(), "\x00\x01"]
    + [
        json.dumps(plain(snapshot()) | change)
        for change in (
            {"progress": "half"},
            {"state": "paused"},
            {"elapsed": None, "eta_seconds": "soon"},
            {"tasks": ["a"]},
            {"ranks": [{"rank": 0}]},
            {"study": None},
        )
    ],
)
def test_watch_explains_a_file_it_cannot_show(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Layout(tmp_path).status.write_text(content)
    code, text = watched(tmp_path)
    error = capsys.readouterr().err
    assert (code, text) == (1, "")
    assert len(error.splitlines()) == 1
    assert str(Layout(tmp_path).status) in error
    assert "isn't a status file of this version" in error


def test_watch_reads_the_status_of_other_versions(tmp_path: Path) -> None:
    tree = plain(snapshot("done", updated=7.0)) | {"invented": 1}
    tree["tasks"][0]["of_a_later_version"] = {}
    for name in ("note", "seconds"):
        del tree["tasks"][0][name]
    del tree["ranks"][0]["host"], tree["ranks"][0]["memory_total"], tree["cards"]
    Layout(tmp_path).status.write_text(json.dumps(tree))
    shown = watched(tmp_path)
    stored(tmp_path, snapshot("done", updated=7.0))
    assert shown == watched(tmp_path)


def test_watch_without_a_launch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = watched(tmp_path / "nowhere")
    assert code == 1 and said.count("\n") == 1  # waits, in words
    assert "nowhere/status.json yet; waits" in said
    error = capsys.readouterr().err
    assert "no launch has written" in error and "train RECIPE" in error
    Layout(tmp_path).status.mkdir()
    assert watched(tmp_path) == (1, "")
    assert "can't be read: Is a directory" in capsys.readouterr().err


def test_watch_on_a_terminal_follows_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, replace(snapshot("running"), every_seconds=0.01))

    def go_on() -> None:
        time.sleep(0.2)
        Layout(tmp_path).status.unlink()
        time.sleep(0.2)
        stored(tmp_path / "later", snapshot("failed")).replace(Layout(tmp_path).status)

    def act() -> int:
        threading.Thread(target=go_on).start()
        return watch(tmp_path, every_seconds=0.02)

    monkeypatch.setattr("fusionrun.monitor.watch.STALE_SECONDS", 0.1)
    status, output = in_terminal(act)
    text = "\n".join(picture(output))
    assert status == 3, output
    assert "no update for 0 s" in output
    assert "no launch has written" in output  # said while it was gone, and not the end
    assert text.count("fused %") == 1
    assert "✗ failed" in text
    assert "no update" not in text
    assert cursor_is_visible(output)


@pytest.mark.parametrize("has_begun", [True, False])
def test_ctrl_c_leaves_watch_quietly(tmp_path: Path, has_begun: bool) -> None:
    if has_begun:
        stored(tmp_path, snapshot())

    def act() -> int:
        with pytest.raises(KeyboardInterrupt):  # the command line says so
            watch(tmp_path, every_seconds=0.05)
        return 0

    status, output = in_terminal(act, interrupt="Ctrl-C leaves")
    assert status == 0, output
    assert "Traceback" not in output
    assert "checkpoint" not in output  # that hint is for the launch's own terminal
    assert cursor_is_visible(output)


def begin_later(out: Path) -> None:
    """A launch that ends as it begins, in a moment."""

    def begin() -> None:
        time.sleep(0.3)
        out.mkdir()
        stored(out.with_name("written"), snapshot("done")).replace(Layout(out).status)

    threading.Thread(target=begin).start()


def test_watch_waits_for_the_first_launch(tmp_path: Path) -> None:
    begin_later(tmp_path / "out")
    code, said = watched(tmp_path / "out", 5.0)
    first, then = said.split("\n", 1)
    assert code == 0 and "no launch has written" in first and then.startswith("demo: done")


def test_watch_waits_on_a_terminal_as_long_as_one_likes(tmp_path: Path) -> None:
    def act() -> int:
        begin_later(tmp_path / "out")
        return watch(tmp_path / "out", every_seconds=0.02, wait_seconds=0.0)

    status, output = in_terminal(act)
    assert status == 0, output
    assert "no launch has written" in output and "All rows are done" in output
