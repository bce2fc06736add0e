"""One machine's launch needs no network and opens nothing to it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos import descendants, listeners
from tests.tiny import ROOT, environment, write_recipe

ROWS = "rows=[{model: resnet, fusion: concatenation}, {model: resnext, fusion: concatenation}]"
WORDS = (ROWS, "logs.tensorboard=false")

# On a machine whose own name no resolver knows.
UNKNOWN_HOST = """
hostname gpu-box-17
echo "hosts: files" > nsswitch.conf && mount --bind nsswitch.conf /etc/nsswitch.conf
exec "$@"
"""


@pytest.mark.parametrize("way", ["launch.sh", "torchrun"])
def test_nothing_listens_but_on_loopback(tmp_path: Path, way: str) -> None:
    recipe = write_recipe(tmp_path)
    command = ["bash", str(ROOT / "launch.sh"), str(recipe)]
    if way == "torchrun":
        options = "--nproc-per-node=2 --rdzv-backend=c10d --rdzv-conf=store_type=file"
        options += " --local-addr=127.0.0.1"
        module = [sys.executable, "-m", "torch.distributed.run", *options.split()]
        command = [*module, "-m", "fusionrun", "train", str(recipe)]
    seen: set[str] = set()
    running = subprocess.Popen(
        [*command, *WORDS],
        cwd=tmp_path,
        env=environment(PYTHON=sys.executable, RANKS="2", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 100
    while running.poll() is None and time.monotonic() < deadline:
        seen |= set(listeners([running.pid, *descendants(running.pid)]))
        time.sleep(0.1)
    running.kill()
    assert running.stdout is not None
    text = running.stdout.read()
    assert running.returncode == 0, text
    assert "starts on rank 1" in text
    assert seen and all(address.startswith("127.0.0.1:") for address in seen)


def test_the_machines_own_name_need_not_be_known(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("another host name needs root and unshare")
    launch = ["bash", str(ROOT / "launch.sh"), str(write_recipe(tmp_path)), *WORDS]
    done = subprocess.run(
        ["unshare", "--uts", "--mount", "sh", "-c", UNKNOWN_HOST, "sh", *launch],
        cwd=tmp_path,
        env=environment(PYTHON=sys.executable, RANKS="2", http_proxy="http://nowhere.invalid:1"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all rows done" in done.stdout
