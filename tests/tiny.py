"""The smallest study that has everything: four architectures, four fusions, two experts each."""

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from fusionrun.components.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]

# docs/own-parts.md: its my_parts.py, and the command that trains with it
OWN_PARTS: tuple[str, str] = tuple(
    re.findall(
        r"```(?:python|bash)\n(.*?)```", (ROOT / "docs/own-parts.md").read_text(), flags=re.DOTALL
    )
)

TINY = """
output_dir: out
rows:
  - {model: densenet, fusion: multiplicative}
  - {model: resnet, fusion: multiplicativeAddition}
  - {model: improved_wide_resnet, fusion: TransformerBase}
  - {model: resnext, fusion: concatenation}
data:
  {name: synthetic, num_classes: 4, train_images: 160, test_images: 32, image_size: 16,
   val_fraction: 0.25}
models:
  densenet: {growth: 4, blocks: [1, 1], stem: 8}
  resnet: {width: 8, blocks: [1]}
  improved_wide_resnet: {depth: 10, widen: 1, width: 4}
  resnext: {depth: 11, cardinality: 2, base_width: 4, stem: 4}
experts: {count: 2, epochs: 2, batch_size: 16}
fusion: {epochs: 3, batch_size: 8}
runtime: {device: cpu, threads: 1}
checkpoint: {every_epochs: 1}
status: {every_seconds: 0.2}
"""

FUSIONS = {
    "densenet": "multiplicative",
    "resnet": "multiplicativeAddition",
    "improved_wide_resnet": "TransformerBase",
    "resnext": "concatenation",
}


def write_recipe(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def environment(**more: str) -> dict[str, str]:
    """As a user's shell, with the package importable and nothing left of an outer launch."""
    outer = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "SLURM_", "FUSIONRUN_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(outer)}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def torchrun(*arguments: str | Path, ranks: int, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A launch as the README types it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "-m", "fusionrun", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=110
    )


def alone(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """One process, no torchrun."""
    command = [sys.executable, "-m", "fusionrun", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=110
    )


def train_tiny(folder: Path, *words: str) -> Path:
    """TINY with the overrides `words`, finished by one process in `folder`, which is returned."""
    done = alone("train", write_recipe(folder), "logs.tensorboard=false", *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def copy_study(out: Path, target: Path, *, rows: Sequence[str] | None = None) -> Path:
    """A copy of the output directory `out` at `target`, which is returned, to do with as one likes.

    `rows`, such as "resnet/single", are all that it has then, as if no other had been asked for.
    """
    shutil.copytree(out, target)
    if rows is not None:
        recipe = yaml.safe_load((target / "recipe.yaml").read_text())
        kept = [row for row in recipe["rows"] if f"{row['model']}/{row['fusion']}" in rows]
        assert len(kept) == len(rows), f"{rows} are not all among {recipe['rows']}"
        for row in recipe["rows"]:
            if row not in kept:
                folder = f"{row['model']}_fusions"
                shutil.rmtree(target / folder / row["fusion"])
                log = f"{row['model']}_{row['fusion']}_training_log.csv"
                (target / "csv_logs" / folder / log).unlink()
        for path in (target / "expert_checkpoints").iterdir():
            if path.name not in {row["model"] for row in kept}:
                shutil.rmtree(path)
                shutil.rmtree(target / "csv_logs" / f"{path.name}_experts")
        (target / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "rows": kept}))
    return target


def launch_sh(*arguments: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The real launch.sh with the Python that runs the tests."""
    return subprocess.run(
        ["bash", str(ROOT / "launch.sh"), *map(str, arguments)],
        cwd=cwd,
        env=environment(**{"PYTHON": sys.executable, **more}),
        capture_output=True,
        text=True,
        timeout=110,
    )


def row_weights(folder: Path) -> dict[str, str]:
    """Hash of every row's saved weights."""
    paths = [f"out/{model}_fusions/{fusion}/manifest.json" for model, fusion in FUSIONS.items()]
    return {path: read_manifest(folder / path).weights for path in paths}


def csv_numbers(folder: Path) -> dict[str, list[list[str]]]:
    """Every CSV's rows, without what a clock decides."""
    clocks = {"images_per_second", "seconds", "timestamp"}
    tables = {}
    for path in sorted((folder / "out/csv_logs").rglob("*.csv")):
        with path.open(newline="") as file:
            rows = [{k: v for k, v in r.items() if k not in clocks} for r in csv.DictReader(file)]
        tables[path.name] = [list(row.values()) for row in rows]
    return tables
