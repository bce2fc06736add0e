"""Terminals that go, Ctrl-Z, deaths in native code: in every way of launching."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionrun.launch.shutdown import is_suspended
from tests.chaos import descendants
from tests.tiny import ROOT, environment, launch_sh, write_recipe

pytestmark = pytest.mark.slow

ROWS = "rows=[{model: resnet, fusion: concatenation}, {model: resnext, fusion: concatenation}]"
LONG = (ROWS, "logs.tensorboard=false", "fusion.epochs=300", "checkpoint.every_epochs=1000")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAYS = {
    "alone": [sys.executable, "-m", "fusionrun", "train"],
    "torchrun": [sys.executable, *TORCHRUN, "-m", "fusionrun", "train"],
    "launch.sh": ["bash", str(ROOT / "launch.sh")],
}


def start(way: str, folder: Path, *before: str) -> subprocess.Popen[str]:
    """A launch in a session of its own, which has begun its rows when this returns."""
    running = subprocess.Popen(
        [*before, *WAYS[way], str(write_recipe(folder)), *LONG],
        cwd=folder,
        env=environment(PYTHON=sys.executable, RANKS="2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if " epoch 2/300 " in line:
            return running
    raise AssertionError(f"{way}: no row has begun")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_a_lost_terminal_is_a_stop_signal(tmp_path: Path, way: str, number: signal.Signals) -> None:
    running = start(way, tmp_path)
    os.killpg(running.pid, number)
    running.communicate(timeout=40)
    assert running.returncode in (1, 4)  # torchrun's own is 1
    assert list((tmp_path / "out").glob("*_fusions/*/checkpoint.pth"))


def test_nohup_still_protects(tmp_path: Path) -> None:
    running = start("alone", tmp_path, "nohup")
    os.killpg(running.pid, signal.SIGHUP)
    assert running.stdout is not None
    lines = (line for line in running.stdout if " epoch " in line)
    assert all(next(lines) for _ in range(5)) and running.poll() is None
    running.terminate()
    running.communicate(timeout=40)
    assert running.returncode == 4


class Shell:
    """An interactive shell with job control, in a terminal."""

    def __init__(self, folder: Path) -> None:
        self.seen = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(
                "bash",
                ["bash", "--norc", "--noprofile", "-i"],
                environment(TERM="xterm", PYTHON=sys.executable, RANKS="2"),
            )

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def read(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self.terminal], [], [], 0.1)[0]:
                self.seen += os.read(self.terminal, 1 << 16)

    def until(self, words: str, seconds: float = 40) -> None:
        start, deadline = len(self.seen), time.monotonic() + seconds
        while not re.search(words.encode(), self.seen[start:]):
            assert time.monotonic() < deadline, self.seen[-3000:].decode(errors="replace")
            self.read(0.1)


@pytest.mark.parametrize("way", ["torchrun", "launch.sh"])
def test_ctrl_z_holds_the_ranks_and_fg_wakes_them(tmp_path: Path, way: str) -> None:
    def epochs() -> int:
        text = "".join(path.read_text() for path in (tmp_path / "out/csv_logs").rglob("*.csv"))
        return len(text.splitlines())

    words = shlex.join([*WAYS[way], str(write_recipe(tmp_path)), *LONG])
    shell = Shell(tmp_path)
    try:
        shell.type(f"{words}\n")
        shell.until("2 running")
        shell.type("\x1a")
        shell.until("Stopped")
        shell.read(3)  # what was being drawn
        if way == "launch.sh":
            assert len(descendants(shell.pid)) >= 4
            assert all(map(is_suspended, descendants(shell.pid)))
        before, seen = epochs(), len(shell.seen)
        shell.read(2)
        assert (epochs(), len(shell.seen)) == (before, seen)
        shell.type("fg\n")
        shell.read(3)
        assert epochs() > before
        shell.type("\x03")
        shell.until("stopped before the end")
    finally:
        for pid in descendants(shell.pid):
            os.kill(pid, signal.SIGKILL)
        os.kill(shell.pid, signal.SIGKILL)
        os.waitpid(shell.pid, 0)
        os.close(shell.terminal)


FRAGILE = '''
import os, signal
from torch import nn
from fusionrun import Expert

class Fragile(Expert):
    """Its native code says why it gives up, and ends the process; as a driver does."""

    def __init__(self, num_classes, words=""):
        super().__init__(num_classes, nn.Sequential(nn.Conv2d(3, 8, 4, stride=4)), feature_dim=8)
        self.words = words

    def forward(self, images):
        if self.training and images.device.type == "cpu":
            os.write(2, self.words.encode())
            os.kill(os.getpid(), signal.SIGABRT if self.words else signal.SIGKILL)
        return super().forward(images)
'''


@pytest.mark.parametrize("words", ["libdriver: ECC error on unit 7", ""])
def test_why_a_process_died_is_said_and_kept(tmp_path: Path, words: str) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    rows = "rows=[{model: resnet, fusion: single}, {model: fragile, fusion: single}]"
    models = f"models.fragile={{words: '{words}'}}"
    plugin = f"plugins={{fragile: {tmp_path}/fragile.py:Fragile}}"
    recipe = write_recipe(tmp_path)
    done = launch_sh(recipe, rows, plugin, models, *LONG[1:2], cwd=tmp_path, RANKS="2")
    assert done.returncode == 3, done.stdout + done.stderr
    note = json.loads(
        (tmp_path / "out/.fusionrun/outcomes/task-1-fragile-single.json").read_text()
    )["note"]
    assert "died 3 times without getting further" in note
    log = tmp_path / "out/logs/rank-1.log"
    if words:
        assert f"{words!r} (out/logs/rank-1.log)" in note
        assert log.read_text().count(words) == 3
        assert log.read_text().count(" started again") == 3
    else:
        assert "killed by signal 9: out of memory?" in note
