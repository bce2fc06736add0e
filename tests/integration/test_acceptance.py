"""`python -m tests.gpu.accept` where there is no GPU: what needs none is looked at all the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos import descendants
from tests.gpu.parts import PARTS
from tests.tiny import ROOT, environment

slow = pytest.mark.slow


def command(file: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "tests.gpu.accept", "--json", str(file), *words]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(part.name, marks=[] if part.name == "float64" else slow)
        for part in PARTS[1:]
        if not part.needs_gpu and part.name != "demo"  # minutes, and trained by others
    ],
)
def test_a_part_that_needs_no_gpu(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        command(tmp_path / "a.json", "--budget=120", f"--only={name}"),
        cwd=ROOT,
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 3, done.stdout + done.stderr  # the GPU wasn't looked at
    tree = json.loads((tmp_path / "a.json").read_text())
    states = {part["name"]: part["state"] for part in tree["parts"]}
    assert states == {"card": "skipped", name: "pass"}, tree["parts"][-1]


@slow
def test_told_to_end_it_leaves_nothing_running(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    words = command(file, "--only=same_bits", "--budget=100")
    running = subprocess.Popen(words, cwd=ROOT, env=environment(CUDA_VISIBLE_DEVICES=""))
    ends = time.monotonic() + 40
    ranks: list[int] = []
    while not ranks and time.monotonic() < ends:
        time.sleep(0.2)
        lines = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in descendants(running.pid)}
        ranks = [pid for pid, line in lines.items() if b"fusionrun\0train" in line]
    assert ranks
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=30) == 1
    ends = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in ranks) and time.monotonic() < ends:
        time.sleep(0.2)
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    assert json.loads(file.read_text())["not_done"] == ["same_bits"]
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("fusionrun-accept-*"))
