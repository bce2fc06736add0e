"""What the README says exists, exists."""

import json
import re
from pathlib import Path

import pytest

from fusionrun.cli import main
from fusionrun.experts import BUILDERS
from fusionrun.fusions import FUSIONS
from fusionrun.study.recipe_yaml import load_recipe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_it_names_the_recipes_that_are_shipped_and_no_others() -> None:
    shipped = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert set(re.findall(r"configs/\w+\.yaml", README)) == shipped


def test_every_recipe_opens_with_what_how_and_what_to_expect() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        head = path.read_text().split("output_dir:")[0]
        assert head.startswith("# Trains "), path
        assert f"configs/{path.name}" in head or "bash launch.sh\n" in head, path
        assert "# Time:" in head and "# Result:" in head, path


def test_it_names_every_architecture_and_fusion() -> None:
    assert all(f"`{name}`" in README for name in [*BUILDERS, *FUSIONS])


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"-m fusionrun (\w+)", README))))
def test_its_commands_have_complete_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: fusionrun {verb}" in text
    for flag in re.findall(rf"-m fusionrun {verb} .*?`", README):
        assert all(word in text for word in re.findall(r"--\w+", flag))


def test_its_overrides_are_fields_of_the_recipe() -> None:
    overrides = set(re.findall(r"`((?:data|experts|fusion|runtime|logs|status)\.\w+=\w+)`", README))
    assert len(overrides) >= 5
    for override in overrides:
        load_recipe(ROOT / "configs/demo.yaml", [override])


def test_its_speeds_are_the_recorded_ones() -> None:
    """What it leaves out was met; all numbers are those of the files that its commands wrote."""
    shown = dict(re.findall(r"^\| (\w+: .+?) \| ([\d.]+ .+) \|$", README, re.MULTILINE))
    recorded = {}
    for name in ("cpu", "cpu_layout"):
        path = f"tests/bench/{name}.json"
        assert f"--json {path}`" in README
        for row in json.loads((ROOT / path).read_text())["rows"]:
            if row["ratio"] is not None:
                ratio, low, high = (f"{row[key]:.3g}" for key in ("ratio", "low", "high"))
                goal = row["goal"].replace(">=", "≥").replace("<=", "≤")
                verdict = "met" if row["met"] else "**missed**"
                line = f"{ratio} | {low} – {high} | {goal} | {verdict}"
                recorded[f"{row['group']}: {row['name']}"] = line
    assert len(shown) > 15 and shown.items() <= recorded.items()
    assert {name for name, line in recorded.items() if "missed" in line} <= shown.keys()


def test_it_has_the_two_commands_on_its_first_screen() -> None:
    first = README[:1500]
    assert "bash launch.sh" in first and "bash tests/run.sh" in first
