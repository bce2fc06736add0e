"""A row of different experts is added to a finished study: no expert is trained for it."""

import json
from pathlib import Path

import pytest

from fusionrun.components.manifest import read_manifest
from fusionrun.components.store import load_model, state_hash
from tests.tiny import alone, copy_study

MEMBERS = "densenet 0, resnet 1"
ROW = "{model: [densenet, resnet], fusion: concatenation, name: duo}"


@pytest.fixture(scope="module")
def added(trained_study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the study with such a row and its controls, what the launch printed)."""
    out = copy_study(trained_study, tmp_path_factory.mktemp("mixed") / "out")
    recipe, rows = out / "recipe.yaml", f"rows=[{ROW}]"
    controls = "controls=[frozen, detached, single]"
    done = alone("train", recipe, rows, controls, "logs.tensorboard=false", cwd=out.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_it_is_trained_from_experts_that_are_there(added: tuple[Path, str]) -> None:
    out, printed = added
    status = json.loads((out / "status.json").read_text())
    tasks = {task["name"]: task for task in status["tasks"]}
    assert [name for name in tasks if name.startswith("task-")] == [
        f"task-{4 + i}-mixed-duo-concatenation{control}"
        for i, control in enumerate(("", "-frozen", "-detached"))
    ]
    assert all(task["state"] == "done" for task in tasks.values())
    assert [task["members"] for task in tasks.values() if task["members"]] == 3 * [MEMBERS]
    assert "[expert-" not in printed
    assert "single is left out of mixed-duo" in printed
    for control in ("", "-frozen", "-detached"):
        row = out / f"mixed-duo_fusions/concatenation{control}"
        manifest = read_manifest(row / "manifest.json")
        assert ", ".join(manifest.members) == MEMBERS
        assert state_hash(load_model(row).state_dict()) == manifest.weights
    table = (out / "results.md").read_text()
    assert "mixed-duo" in table and "resnet" in table


def test_the_same_command_does_it_once(added: tuple[Path, str]) -> None:
    out, _ = added
    before = (out / "mixed-duo_fusions/concatenation/manifest.json").stat().st_mtime_ns
    again = alone("train", out / "recipe.yaml", "--only", "mixed-*/*", cwd=out.parent)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "rows: 3 done" in again.stdout and "experts: 2 of 2 done" in again.stdout
    assert (out / "mixed-duo_fusions/concatenation/manifest.json").stat().st_mtime_ns == before


def test_who_adds_rows_of_the_same_experts_need_not_know_their_name(
    added: tuple[Path, str],
) -> None:
    out, _ = added
    row = "rows=[{model: {densenet: 1, resnet: 1}, fusion: simpleAddition}]"
    more = alone("train", out / "recipe.yaml", row, "logs.tensorboard=false", cwd=out.parent)
    assert more.returncode == 0, more.stdout + more.stderr
    assert (out / "mixed-duo_fusions/simpleAddition/manifest.json").is_file()
    assert "rows: 1 done" in more.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fusion.dim=64"], "fusion.dim: None there, 64 in this recipe"),
        (["models.densenet.growth=6"], "models.densenet.growth: 4 there, 6 in this recipe"),
        (["fusion.mixing=none"], "fusion.mixing"),
        ([f"rows=[{ROW.replace('duo', 'two')}]"], "mixed-two are called mixed-duo there"),
    ],
)
def test_it_stays_the_same_experiment(added: tuple[Path, str], words: list[str], said: str) -> None:
    out, _ = added
    refused = alone("train", out / "recipe.yaml", *words, cwd=out.parent)
    assert refused.returncode == 2 and said in refused.stderr, refused.stderr
