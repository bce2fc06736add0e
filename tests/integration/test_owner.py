"""A launch has one owner: it's stopped as a whole, and nobody else begins before it has gone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusionrun.components.manifest import read_manifest
from fusionrun.training.identity import weights_in
from tests.chaos import command_line, descendants
from tests.tiny import ROOT, TINY, alone, environment, write_recipe

pytestmark = pytest.mark.slow

TWO_ROWS = """
output_dir: out
rows:
  - {model: resnet, fusion: concatenation}
  - {model: resnet, fusion: multiplicative}
""" + TINY[TINY.index("data:") :]
ROWS = [f"task-{i}-resnet-{fusion}" for i, fusion in enumerate(("concatenation", "multiplicative"))]
LONG = ("fusion.epochs=2000", "logs.tensorboard=false")


class Launch:
    """A launch in the background, its output in a file."""

    def __init__(self, folder: Path, name: str, *words: str, ranks: int = 2) -> None:
        self.output = folder / name
        launcher = ["bash", str(ROOT / "launch.sh")]
        if ranks == 1:
            launcher = [sys.executable, "-m", "fusionrun", "train"]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*launcher, "tiny.yaml", *words],
                cwd=folder,
                env=environment(PYTHON=sys.executable, RANKS=str(ranks)),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text()

    def ranks(self) -> list[int]:
        """Process ids, rank 0 first."""
        return sorted(
            pid
            for pid in descendants(self.process.pid)
            if "-m fusionrun" in (line := command_line(pid)) and "torch" not in line
        )

    def ends(self, seconds: float = 50) -> int:
        return self.process.wait(timeout=seconds)


def wait_for(condition: Callable[[], object], seconds: float = 50) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Path]:
    """The folder of a recipe of two rows; whatever was launched there is gone afterwards."""
    write_recipe(tmp_path, TWO_ROWS)
    yield tmp_path
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink() == tmp_path:
                os.kill(int(path.name), signal.SIGKILL)
        except OSError:
            continue


def trains_both(folder: Path) -> bool:
    logs = [folder / f"out/logs/{name}.log" for name in ROWS]
    return all(path.exists() and "epoch 2/" in path.read_text() for path in logs)


def trained_twice(folder: Path) -> list[str]:
    """Epochs that stand in a row's log more than once."""
    found: list[str] = []
    for name in ROWS:
        counted = Counter(re.findall(r"epoch \d+/", (folder / f"out/logs/{name}.log").read_text()))
        found += [f"{name} {epoch}" for epoch, count in counted.items() if count > 1]
    return found


def named_pid(text: str) -> int:
    found = re.findall(r"pid (\d+), since", text)
    assert found, text
    return int(found[-1])


def test_the_named_process_stops_all_of_it_before_the_next_begins(study: Path) -> None:
    first = Launch(study, "first.txt", *LONG)
    wait_for(lambda: trains_both(study))
    second = Launch(study, "second.txt", *LONG)
    assert second.ends() == 1
    assert "in case it is just ending" in second.text()
    assert f"stop it with `kill {named_pid(second.text())}`" in second.text()
    os.kill(named_pid(second.text()), signal.SIGTERM)
    third = Launch(study, "third.txt", *LONG)  # at once: it waits for the first to end
    before = {name: (study / f"out/logs/{name}.log").stat().st_size for name in ROWS}
    wait_for(lambda: "starts on rank 1" in third.text())
    assert first.ends() == 4
    wait_for(
        lambda: all(
            (study / f"out/logs/{name}.log").stat().st_size > size + 500
            for name, size in before.items()
        )
    )
    os.kill(third.process.pid, signal.SIGTERM)
    assert third.ends() == 4
    assert trained_twice(study) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_told_to_stop_stops_the_launch(study: Path, rank: int) -> None:
    launch = Launch(study, "launch.txt", *LONG)
    wait_for(lambda: trains_both(study))
    os.kill(launch.ranks()[rank], signal.SIGTERM)
    assert launch.ends() == 4
    assert "stopped before the end" in launch.text()
    for name in ROWS:
        assert "stopped; the same command" in (study / f"out/logs/{name}.log").read_text()


@pytest.mark.parametrize("victim", ["rank 0", "torchrun"])
def test_what_a_kill_leaves_keeps_others_out(study: Path, victim: str) -> None:
    """Killed, not told: the rank that is left stands still, as in a write that takes long."""
    launch = Launch(study, "launch.txt", *LONG)
    wait_for(lambda: trains_both(study))
    ranks = launch.ranks()
    agent = int(Path(f"/proc/{ranks[0]}/stat").read_text().split(")")[1].split()[1])
    os.kill(ranks[1], signal.SIGSTOP)
    os.kill(ranks[0] if victim == "rank 0" else agent, signal.SIGKILL)
    refused = alone("train", "tiny.yaml", *LONG, cwd=study)
    assert refused.returncode == 1, refused.stdout
    assert f"another launch works here on {ROWS[0]}" in refused.stderr
    # whom it names can still be told
    assert named_pid(refused.stderr) == (agent if victim == "rank 0" else ranks[1])
    os.kill(ranks[1], signal.SIGCONT)
    if victim == "torchrun":
        assert launch.ends() == 4


def test_ranks_that_only_start_when_torchrun_dies_do_not_train_on(study: Path) -> None:
    launch = Launch(study, "first.txt", *LONG)
    wait_for(lambda: len(launch.ranks()) == 2)  # PyTorch takes them seconds
    (agent,) = (
        pid
        for pid in descendants(launch.process.pid)
        if "-m fusionrun.launch.torchrun" in command_line(pid)
    )
    os.kill(agent, signal.SIGKILL)
    # not only after the half minute that ranks have to save, by SIGKILL, having trained on
    assert launch.process.wait(timeout=20) == 4
    assert "starts on rank" not in launch.text()


def test_a_launch_that_is_being_started_again_is_still_there(study: Path) -> None:
    launch = Launch(study, "launch.txt", *LONG)
    wait_for(lambda: trains_both(study))
    for pid in launch.ranks():
        os.kill(pid, signal.SIGKILL)
    assert alone("train", "tiny.yaml", *LONG, cwd=study).returncode == 1
    log = study / f"out/logs/{ROWS[1]}.log"
    wait_for(lambda: log.read_text().count("starts on rank") == 2)
    launch.process.terminate()
    assert launch.ends() == 4


def test_two_studies_that_share_a_folder_of_experts(study: Path) -> None:
    """One trains them; the other is refused, then and when it would mix its own with those."""
    shared = ("experts.checkpoint_dir=shared", "logs.tensorboard=false", "fusion.epochs=1")
    first = Launch(study, "first.txt", *shared, "experts.epochs=300", ranks=1)
    wait_for(lambda: "epoch 2/" in first.text())
    other = ("output_dir=other", "experts.epochs=1", *shared)
    refused = alone("train", "tiny.yaml", *other, cwd=study)
    assert refused.returncode == 1
    assert "shared/resnet: another launch trains the resnet experts here" in refused.stderr
    assert "experts.checkpoint_dir" in refused.stderr
    wait_for(lambda: (study / "shared/resnet/expert_0_best.pth").exists())
    first.process.terminate()
    assert first.ends() == 4
    mixed = alone("train", "tiny.yaml", *other, cwd=study)
    assert mixed.returncode == 2
    assert "expert_0_best.pth: was made with other settings (experts.epochs: 300" in mixed.stderr
    done = alone("train", "tiny.yaml", *shared, "experts.epochs=300", cwd=study)
    assert done.returncode == 0, done.stderr
    manifests = [
        read_manifest(study / f"out/resnet_fusions/{name.rpartition('-')[2]}/manifest.json")
        for name in ROWS
    ]
    assert len({tuple(weights_in(each.experts_from or [])) for each in manifests}) == 1
    assert json.loads((study / "out/status.json").read_text())["state"] == "done"
