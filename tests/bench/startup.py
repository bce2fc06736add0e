"""Start-up: from torchrun to the end of the first training step, against a bare program."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusionrun.data.datasets.cache import Arrays, load_or_build
from tests.bench.measure import Bench, Row, share

SIZES = (50_000, 10_000)  # images for training and test, as CIFAR-100 has
GOAL = 1.3
ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
output_dir: out
rows:
  - {model: resnet, fusion: multiplicative}
  - {model: resnet, fusion: concatenation}
  - {model: resnet, fusion: TransformerBase}
  - {model: resnet, fusion: simpleAddition}
data: {name: cifar100, cache_dir: CACHE}
models:
  resnet: {width: 8, blocks: [1, 1]}
experts: {epochs: 1, batch_size: 16}
fusion: {epochs: 1, batch_size: 16}
"""


def measure(bench: Bench) -> list[Row]:
    """One rank a core, four at most; images as many as CIFAR-100 has, mapped by both."""
    folder = bench.folder("startup")
    cache = make_data_set(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("CACHE", str(folder)))
    ranks = min(4, bench.cores)
    bare, ours = bench.interleave(
        lambda: _launch(bench, ranks, ["bare", str(cache)]),
        lambda: _launch(bench, ranks, ["fusionrun", str(recipe)]),
    )
    name = f"first training step of {ranks} ranks against torch, gloo and the data alone"
    return [share("startup", name, GOAL, ours=ours, of=bare, note="a small network")]


def make_data_set(folder: Path) -> Path:
    """A prepared cache as of CIFAR-100, but with random images; returns its folder."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8) for size in SIZES]
    labels = [rng.permutation(np.arange(size) % 100) for size in SIZES]
    arrays = Arrays(
        images[0],
        labels[0],
        images[1],
        labels[1],
        classes=tuple(f"class {number}" for number in range(100)),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        fingerprint="0" * 16,
    )
    load_or_build(
        folder / "cifar100",
        "official archive",
        lambda folder: arrays,
        name="cifar100",
        progress=lambda message: None,
    )
    return folder / "cifar100"


def _launch(bench: Bench, ranks: int, what: Sequence[str]) -> float:
    """Seconds from here to the last rank's word."""
    folder = bench.folder("launch")
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node {ranks}".split()
    program = ["-m", "tests.bench.startup_child", str(folder), *what]
    command = [sys.executable, *launcher, *program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.time()  # the clock that other processes share
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    ends = [float(path.read_text()) for path in folder.glob("*.end")]
    if len(ends) != ranks:
        raise RuntimeError(
            f"{' '.join(command)}: {len(ends)} of {ranks} ranks got there\n{done.stderr}"
        )
    return max(ends) - start
