"""Whole commands on a GPU: a row of two epochs, and a short study of all architectures at once."""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from fusionrun.experts import build_expert
from tests.bench.measure import Bench, Row, share
from tests.bench.startup import make_data_set
from tests.tiny import ROOT, environment

ROW_MODEL, ROW_EPOCHS, ROW_BAR = (
    "densenet",
    2,
    20.0,
)  # seconds on an H100; its predecessor took 43.8
STUDY = ROOT / "configs/cifar100_all16.yaml"
RANKS = 4
MODELS: dict[str, dict[str, object]] = {}  # arguments that a recipe gives; tests make them tiny
LINES = 15  # of a launch's output, where it fails


def row_command(bench: Bench) -> list[Row]:
    """One row of DenseNets that others trained, 9,000 images an epoch, from launch to exit."""
    folder = bench.folder("row")
    for k in range(4):
        path = folder / "experts" / ROW_MODEL / f"expert_{k}_best.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        expert = build_expert(ROW_MODEL, 100, **MODELS.get(ROW_MODEL, {}))
        torch.save(expert.state_dict(), path)
    recipe = folder / "row.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "output_dir": "out",
                "rows": [{"model": ROW_MODEL, "fusion": "multiplicative"}],
                "data": {"name": "cifar100"},
                "models": MODELS,
                "experts": {"checkpoint_dir": "experts"},
                "fusion": {"epochs": ROW_EPOCHS},
            }
        )
    )
    seconds = launched(bench, folder, recipe, ranks=1)
    name = f"{ROW_MODEL} row, {ROW_EPOCHS} epochs of 9,000 images: whole command"
    note = f"the bar: {ROW_BAR:g} s on an H100"
    return [share("gpu", name, 1.0, ours=[seconds], of=[ROW_BAR], note=note)]


def study_command(bench: Bench) -> list[Row]:
    """All sixteen rows and experts of the largest shipped recipe, an epoch of each."""
    folder = bench.folder("study")
    words = ["experts.epochs=1", "fusion.epochs=1", f"models={json.dumps(MODELS)}"]
    seconds = launched(bench, folder, STUDY, *words, ranks=RANKS)
    outcomes = folder.glob("*/.fusionrun/outcomes/*.json")
    tasks = [json.loads(path.read_text())["seconds"] for path in outcomes]
    name = f"{STUDY.stem}, an epoch of {len(tasks)} tasks on {RANKS} ranks: makespan"
    note = "against the tasks' own seconds divided by the ranks"
    return [share("gpu", name, None, ours=[seconds], of=[sum(tasks) / RANKS], note=note)]


def launched(bench: Bench, folder: Path, recipe: Path, *words: str, ranks: int) -> float:
    """Seconds of the command, on made images like CIFAR-100's. Raises RuntimeError if it fails."""
    cache = make_data_set(folder).parent
    where = [f"data.cache_dir={cache}", f"runtime.device={bench.device.type}"]
    command = ["bash", str(ROOT / "launch.sh"), str(recipe), *where, *words]
    start = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(PYTHON=sys.executable, RANKS=str(ranks)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-LINES:])
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{end}")
    return seconds
