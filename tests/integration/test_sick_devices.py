"""Errors after which a process can't use its device: it leaves, and others go on."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.tiny import alone, launch_sh, write_recipe

pytestmark = pytest.mark.slow

# Raises where a GPU's error would show: in a training step, of the runs and on the rank it's told.
SICK = """
import os
from pathlib import Path
from torch import nn
from fusionrun import Expert

RUNS = Path("runs.txt")

class Sick(Expert):
    def __init__(self, num_classes, words="", runs=99, rank="", depth=1):
        super().__init__(num_classes, nn.Sequential(nn.Conv2d(3, 8, 4, stride=4)), feature_dim=8)
        self.words, self.runs, self.rank, self.fails = words, runs, rank, False

    def forward(self, images):
        if self.training and images.device.type == "cpu" and not self.fails:
            here = os.environ.get("RANK", "")
            done = RUNS.read_text().count("x") if RUNS.exists() else 0
            if done < self.runs and here in (self.rank or here):
                self.fails = True
                with RUNS.open("a") as file:
                    file.write("x")
                try:
                    raise RuntimeError(self.words)
                except RuntimeError as error:
                    raise ValueError("somebody's layer failed") from error
        return super().forward(images)
"""
ASSERT = "CUDA error: device-side assert triggered"
ECC = "CUDA error: uncorrectable ECC error encountered"
HEALTHY = "{model: resnet, fusion: single}", "{model: resnext, fusion: single}"


def launch(
    folder: Path, *rows: str, settings: str, by: str = "launch.sh", **more: str
) -> CompletedProcess[str]:
    (folder / "sick.py").write_text(SICK)
    names = sorted(set(re.findall(r"sick\d", " ".join(rows))))
    words = [
        f"rows=[{', '.join(rows)}]",
        f"plugins={{{', '.join(f'{name}: {folder}/sick.py:Sick' for name in names)}}}",
        *(f"models.{name}={{{settings}}}" for name in names),
        "logs.tensorboard=false",
    ]
    recipe = write_recipe(folder)
    if by == "alone":
        return alone("train", recipe, *words, cwd=folder)
    return launch_sh(recipe, *words, cwd=folder, **{"RANKS": "2", **more})


def sick(number: int) -> str:
    return f"{{model: sick{number}, fusion: single}}"


def notes(folder: Path) -> dict[str, str]:
    """Of every row that has ended, why it failed."""
    paths = (folder / "out/.fusionrun/outcomes").glob("*.json")
    return {path.stem.split("-")[2]: json.loads(path.read_text())["note"] for path in paths}


def starts(folder: Path, name: str) -> int:
    (log,) = (folder / "out/logs").glob(f"task-*-{name}-single.log")
    return log.read_text().count(" starts on rank ")


def stops(folder: Path, name: str) -> int:
    (log,) = (folder / "out/logs").glob(f"task-*-{name}-single.log")
    return log.read_text().count(" stopped; ")


def test_the_process_leaves_and_a_new_one_resumes(tmp_path: Path) -> None:
    done = launch(tmp_path, *HEALTHY, sick(0), settings=f"words: '{ASSERT}', runs: 2")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert notes(tmp_path) == {"resnet": "", "resnext": "", "sick0": ""}
    assert starts(tmp_path, "sick0") == 3
    assert said.count("starts again: task-2-sick0-single took its process") == 2
    assert ASSERT in said and "Traceback" not in said
    (log,) = (tmp_path / "out/logs").glob("task-2-*.log")
    assert f"| RuntimeError: {ASSERT}" in log.read_text()


def test_given_up_after_three_crashes_for_good_and_the_others_go_on(tmp_path: Path) -> None:
    done = launch(tmp_path, sick(0), sick(1), *HEALTHY, settings=f"words: '{ASSERT}'")
    assert done.returncode == 3, done.stdout + done.stderr
    found = notes(tmp_path)
    assert found["resnet"] == found["resnext"] == ""
    for name in ("sick0", "sick1"):
        assert "died 3 times without getting further" in found[name] and ASSERT in found[name]
        # a crash of the other task doesn't try it again; what was stopped by it may be
        assert 3 <= starts(tmp_path, name) - stops(tmp_path, name) <= 4


def test_what_only_one_card_does_costs_one_task_at_most(tmp_path: Path) -> None:
    rows = [sick(number) for number in range(4)]
    done = launch(tmp_path, *rows, settings=f"words: '{ECC}', rank: '1'")
    failed = [name for name, note in notes(tmp_path).items() if note]
    assert len(failed) <= 1, done.stdout + done.stderr
    assert done.returncode == (3 if failed else 0)


def test_where_nobody_starts_it_again_the_other_rank_goes_on(tmp_path: Path) -> None:
    rows = (*HEALTHY, sick(0), sick(1))
    done = launch(tmp_path, *rows, settings=f"words: '{ASSERT}', runs: 1", MAX_RESTARTS="0")
    said = done.stdout + done.stderr
    assert done.returncode == 3, said
    failed = [name for name, note in notes(tmp_path).items() if note]
    assert len(failed) == 1 and failed[0].startswith("sick")
    assert notes(tmp_path)[failed[0]] == ASSERT
    assert "gave up: " in said and "can't use cpu any more" in said


def test_alone_it_ends_with_what_is_done(tmp_path: Path) -> None:
    rows = (HEALTHY[0], sick(0), HEALTHY[1])
    done = launch(tmp_path, *rows, settings=f"words: '{ASSERT}', runs: 1", by="alone")
    said = done.stdout + done.stderr
    assert done.returncode == 3 and "Traceback" not in said, said
    assert notes(tmp_path)["sick0"] == ASSERT
    again = launch(tmp_path, *rows, settings=f"words: '{ASSERT}', runs: 1", by="alone")
    assert again.returncode == 0, again.stdout + again.stderr
