"""The house: imports point one way, and importing does nothing else."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fusionrun"

# The rooms from the ground up, and what each may import beside itself and what stands above it in
# this table: nothing. `fusionrun` alone (the version) is everybody's.
NETWORKS = {"experts", "fusions"}
MODELS = {"common", "study", "data", "training", *NETWORKS}
MEASURING = {*MODELS, "components", "tables", "logs"}
ROOMS: dict[str, set[str]] = {
    "common": set(),
    "tables": {"common"},
    "logs": {"common", "tables"},
    "data": {"common"},
    "experts": {"common"},
    "fusions": {"common"},
    "training": {"common", "data", "fusions"},
    "study": MODELS - {"study"},
    "components": MODELS,
    "monitor": {"common", "study", "tables"},
    "evaluation": MEASURING,
    "robustness": {*MEASURING, "evaluation"},
    "report": {"common", "tables", "study", "evaluation", "robustness"},
    "launch": {*MEASURING, "monitor", "evaluation"},
    "doctor": {*MEASURING, "monitor", "launch"},
    "commands": {
        *(MODELS - NETWORKS),
        "components",
        "monitor",
        "evaluation",
        "robustness",
        "report",
        "launch",
        "doctor",
    },
    "api": {*MODELS, "components", "monitor", "evaluation", "launch", "commands"},
    "cli": {"common", "study", "commands"},
    "__main__": {"cli"},
}
MAIN = "__main__"


def modules() -> dict[str, Path]:
    """{name below the package: file}; a package's own name stands for its __init__."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imports(name: str, code: str | None = None) -> Iterator[str]:
    """Modules of the package that `name` imports anywhere in its code, in functions too."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text() if code is None else code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fusionrun":
                    yield nearest_module(alias.name.removeprefix("fusionrun").removeprefix("."))
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, package)
            if base is not None:
                for alias in node.names:
                    yield nearest_module(f"{base}.{alias.name}".removeprefix("."))


def base_of(node: ast.ImportFrom, package: str) -> str | None:
    """What `from ... import` imports from, below the package; None: something else's."""
    module = node.module or ""
    if node.level == 0:
        if module.split(".")[0] != "fusionrun":
            return None
        return module.removeprefix("fusionrun").removeprefix(".")
    parents = package.split(".") if package else []
    kept = parents[: len(parents) - (node.level - 1)]
    return ".".join([*kept, *([module] if module else [])])


def nearest_module(name: str) -> str:
    """The module itself, or the one that the name is imported from."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


GRAPH = {name: sorted(set(imports(name)) - {name, ""}) for name in MODULES}


def reachable(name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        for other in GRAPH[todo.pop()]:
            if other not in found:
                found.add(other)
                todo.append(other)
    return found


def inside(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def test_imports_are_understood() -> None:
    code = (
        "import os, fusionrun.data.loader as l\nfrom fusionrun import cli\n"
        "from fusionrun.experts import build_expert\nfrom . import losses\nfrom .optim import sgd\n"
        "from ..common.seeds import derive_seed\nfrom torch import nn\n"
        "def later():\n    from fusionrun.data.datasets import DATASETS\n"
    )
    assert sorted(imports("training.trainer", code)) == [
        "cli",
        "common.seeds",
        "data.datasets",
        "data.loader",
        "experts",
        "training.losses",
        "training.optim",
    ]
    # what stands in the code today, whatever else changes
    assert {"study.recipe", "commands.train", "common.distributed"} <= set(GRAPH["cli"])
    assert {"study.recipe_yaml", "launch.rank"} <= set(GRAPH["commands.train"])
    assert "experts.base" in GRAPH["experts"]
    assert reachable(MAIN) >= {
        "cli",
        "launch.rank",
        "training.trainer",
        "data.datasets.cifar",
        "fusions.base",
    }


def room(name: str) -> str:
    """The room of a module below the package."""
    return name.split(".")[0]


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_knows_only_what_lies_below_it(name: str) -> None:
    own = [module for module in MODULES if room(module) == name]
    wrong = {
        f"{module} imports {other}"
        for module in own
        for other in GRAPH[module]
        if room(other) not in {name, *ROOMS[name]}
    }
    assert not wrong


def test_every_module_has_its_room_and_no_arrow_of_the_table_runs_back() -> None:
    assert {room(module) for module in MODULES} - {""} <= set(ROOMS)
    order = list(ROOMS)
    for name, below in ROOMS.items():
        assert all(order.index(other) < order.index(name) for other in below), name


def test_models_data_and_training_never_meet_the_recipe() -> None:
    for name in MODULES:
        if inside(name, ["data", "experts", "fusions", "logs", "training"]):
            found = {other.split(".")[0] for other in reachable(name)}
            assert found.isdisjoint({"study", "launch", "cli"}), name


def test_only_the_command_line_and_the_api_start_a_launch() -> None:
    assert [name for name in GRAPH if "launch.rank" in GRAPH[name]] == [
        "api.train",
        "commands.train",
    ]
    assert [name for name in GRAPH if "cli" in GRAPH[name]] == [MAIN]


def test_only_distributed_reads_the_launchers_variables() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    for module, path in MODULES.items():
        texts = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if module == "common.distributed":
            assert set(names) <= texts
        else:
            assert texts.isdisjoint(names), module
            assert not any(text.startswith(("SLURM_", "TORCHELASTIC_")) for text in texts), module


def test_no_import_comes_back_to_where_it_started() -> None:
    circles = {name for name in MODULES if name in reachable(name)}
    assert not circles


def python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_command_line_starts_without_torch(tmp_path: Path) -> None:
    done = python(
        "import fusionrun.cli, fusionrun.common.distributed, fusionrun.report.write, sys; "
        "print('torch' in sys.modules, 'numpy' in sys.modules)",
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("False False\n", "")


EVERYTHING = """
import importlib, json, os, random, signal, sys, threading, warnings
import numpy, rich.console, torch  # rich draws from Python's generator

def state():
    return {
        "variables": dict(os.environ),
        "folder": os.getcwd(),
        "signals": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
        "threads": threading.active_count(),
        "torch threads": torch.get_num_threads(),
        "torch seed": torch.get_rng_state().tolist(),
        "numpy seed": [str(part) for part in numpy.random.get_state()],
        "python seed": str(random.getstate()),
        "precision": [torch.get_float32_matmul_precision(), str(torch.get_default_dtype())],
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ],
        "warnings": len(warnings.filters),
    }

before = state()
for name in NAMES:
    importlib.import_module(name)
after = state()
print(json.dumps({
    "changed": [key for key in before if before[key] != after[key]],
    "heavy": [name for name in HEAVY if name in sys.modules],
    "imported": [name in sys.modules for name in NAMES],
}))
"""


def test_importing_everything_changes_nothing(tmp_path: Path) -> None:
    """Nor does it import what takes long and only some launches need."""
    names = [f"fusionrun.{name}".removesuffix(".") for name in MODULES if name != MAIN]
    heavy = ["torchvision", "tensorboard", "torch.utils.tensorboard", "wandb", "PIL"]
    program = EVERYTHING.replace("NAMES", repr(names)).replace("HEAVY", repr(heavy))
    done = python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)  # nothing else was printed
    assert found == {"changed": [], "heavy": [], "imported": [True] * len(names)}
    assert not list(tmp_path.iterdir())
