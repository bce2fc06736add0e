"""One home for each fact of the package: its requirements, its version, its tools' versions."""

import re
import tomllib
from pathlib import Path

import fusionrun
from tests.environments import wanted

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def test_requirements_txt_is_the_packages_own_list() -> None:
    assert (ROOT / "requirements.txt").read_text().splitlines() == PROJECT["dependencies"]


def test_requirements_are_bounded_at_both_ends_and_tools_pinned() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"wandb", "onnx", "timm", "safetensors", "dev"}
    lists = {"dependencies": PROJECT["dependencies"], **extras}
    for name, requirements in lists.items():
        form = r"[\w-]+==[\d.]+" if name == "dev" else r"[\w-]+>=[\d.]+,<[\d.]+"
        assert all(re.fullmatch(form, requirement) for requirement in requirements), name


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "fusionrun/common/version.py"
    written = [
        path
        for path in [ROOT / "pyproject.toml", *(ROOT / "fusionrun").rglob("*.py")]
        if f'"{fusionrun.__version__}"' in path.read_text()
    ]
    assert written == [ROOT / "fusionrun/common/version.py"]


def test_both_ends_are_tried_as_they_are_declared() -> None:
    """Beside the packages and extras, the tools that those tests need."""
    lowest, newest = wanted("lowest"), wanted("newest")
    assert {"torch==2.11", "timm==1.0.3"} < set(lowest) and all("==" in each for each in lowest)
    assert set(newest) - set(lowest) > {*PROJECT["dependencies"], "safetensors>=0.4,<1"}
    assert {name.split("==")[0] for name in set(newest) & set(lowest)} == {"pytest", "hatchling"}
