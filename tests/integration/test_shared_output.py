"""Launches that share an output directory: one study, nothing of it overwritten."""

import csv
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusionrun.study.recipe_yaml import load_recipe
from tests.tiny import FUSIONS, TINY, alone, environment, row_weights, write_recipe

ONE_ROW = TINY.replace("fusion: {epochs: 3,", "fusion: {epochs: 1,").replace(
    "experts: {count: 2, epochs: 2,", "experts: {count: 2, epochs: 1,"
)


def command(model: str, fusion: str) -> list[str]:
    """A row as the seed's scripts train it."""
    flags = ["--model", model, "--fusion_type", fusion, "--output_dir", "out"]
    return [sys.executable, "-m", "fusionrun", "train", "tiny.yaml", *flags]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_results(folder: Path) -> list[tuple[str, str]]:
    """(row's name, its fused accuracy) by the table of results."""
    with (folder / "out/results.csv").open(newline="") as file:
        return [(line["task"], line["fused"]) for line in csv.DictReader(file)]


def require_all_four(folder: Path, names: list[str]) -> None:
    assert [name for name, _ in in_results(folder)] == names
    assert all(fused != "n/a" for _, fused in in_results(folder))
    text = (folder / "out/results.md").read_text()
    assert all(f"| {model} | {fusion} |" in text for model, fusion in FUSIONS.items())
    recipe = load_recipe(folder / "out/recipe.yaml")
    assert [f"{r.model}-{r.fusion}" for r in recipe.rows] == [n.split("-", 2)[2] for n in names]
    for name in names:
        assert (folder / f"out/logs/{name}.log").read_text().startswith(f"[{name}] ")


def test_the_seeds_four_commands_one_after_another(tmp_path: Path) -> None:
    write_recipe(tmp_path, ONE_ROW)
    names = [f"task-{i}-{model}-{fusion}" for i, (model, fusion) in enumerate(FUSIONS.items())]
    for index, (model, fusion) in enumerate(FUSIONS.items()):
        done = subprocess.run(
            command(model, fusion), cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"[{names[index]}] " in done.stdout  # the seed's greps find it
    require_all_four(tmp_path, names)
    assert alone("evaluate", "out", cwd=tmp_path).returncode == 0
    measured = json.loads((tmp_path / "out/evaluation.json").read_text())["rows"]
    assert [row["task"] for row in measured] == names
    # the recipe's own launch finds all of them done, under their names
    before = row_weights(tmp_path)
    again = alone("train", "tiny.yaml", cwd=tmp_path)
    assert again.returncode == 0 and "starts on rank" not in again.stdout
    assert row_weights(tmp_path) == before


def test_the_seeds_four_commands_at_once(tmp_path: Path) -> None:
    write_recipe(tmp_path, ONE_ROW)
    running = [
        subprocess.Popen(
            command(model, fusion),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for model, fusion in FUSIONS.items()
    ]
    outputs = [process.communicate(timeout=110)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    names = [name for name, _ in in_results(tmp_path)]
    assert {name.split("-", 2)[2] for name in names} == {f"{m}-{f}" for m, f in FUSIONS.items()}
    assert [name.split("-")[1] for name in names] == ["0", "1", "2", "3"]
    require_all_four(tmp_path, names)
    status = json.loads((tmp_path / "out/status.json").read_text())
    assert status["state"] == "done"
    assert not list((tmp_path / "out").rglob(".*.tmp"))


def test_a_launch_of_the_same_row_is_refused_while_it_works(tmp_path: Path) -> None:
    write_recipe(tmp_path, ONE_ROW.replace("{epochs: 1, batch_size: 8}", "{epochs: 900}"))
    row = command("resnet", "concatenation")
    with subprocess.Popen(
        row, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert any("epoch 1/900" in line for line in first.stdout)
        second = subprocess.run(
            row, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
        )
        first.terminate()
        first.stdout.read()
    assert second.returncode == 1
    assert "another launch works here on task-0-resnet-concatenation" in second.stderr
    assert f"pid {first.pid}" in second.stderr
    assert first.returncode == 4


@pytest.fixture
def two_rows(tmp_path: Path) -> Path:
    """A finished study of two rows."""
    write_recipe(tmp_path, ONE_ROW)
    rows = "rows=[{model: resnet, fusion: concatenation}, {model: resnet, fusion: simpleAddition}]"
    assert alone("train", "tiny.yaml", rows, cwd=tmp_path).returncode == 0
    return tmp_path


def test_rows_that_are_added_come_after_those_that_are_there(two_rows: Path) -> None:
    rows = "rows=[{model: resnet, fusion: multiplicative}, {model: resnet, fusion: concatenation}]"
    done = alone("train", "tiny.yaml", rows, cwd=two_rows)
    assert done.returncode == 0, done.stderr
    assert [name for name, fused in in_results(two_rows) if fused != "n/a"] == [
        "task-0-resnet-concatenation",
        "task-1-resnet-simpleAddition",
        "task-2-resnet-multiplicative",
    ]
    assert "task-0-resnet-multiplicative]" not in done.stdout


def test_fewer_rows_keep_the_others(two_rows: Path) -> None:
    before = in_results(two_rows)
    rows = "rows=[{model: resnet, fusion: simpleAddition}]"
    assert alone("train", "tiny.yaml", rows, cwd=two_rows).returncode == 0
    assert in_results(two_rows) == before
    both = "rows=[{model: resnet, fusion: concatenation}, {model: resnet, fusion: simpleAddition}]"
    only = alone("train", "tiny.yaml", both, "--only", "*/simple*", cwd=two_rows)
    assert only.returncode == 0
    assert in_results(two_rows) == before


def test_experts_that_only_finished_rows_need_are_not_trained_again(two_rows: Path) -> None:
    for path in (two_rows / "out/expert_checkpoints/resnet").iterdir():
        path.unlink()
    rows = "rows=[{model: resnet, fusion: concatenation}, {model: resnet, fusion: simpleAddition}]"
    done = alone("train", "tiny.yaml", rows, cwd=two_rows)
    assert done.returncode == 0 and "starts on rank" not in done.stdout
    assert not list((two_rows / "out/expert_checkpoints/resnet").iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["fusion.epochs=2"], "fusion.epochs: 1 there, 2 in this recipe"),
        (["experts.epochs=2", "experts.lr=0.5"], "experts.lr: None there, 0.5 in this recipe"),
        (["data.holdout_fraction=0.3"], "data.holdout_fraction: 0.2 there, 0.3 in this recipe"),
        (["seed=1"], "seed: 42 there, 1 in this recipe"),
    ],
)
def test_another_study_is_refused_and_nothing_is_written(
    two_rows: Path, changes: list[str], said: str
) -> None:
    before = files(two_rows)
    for rows in ([], ["rows=[{model: resnet, fusion: concatenation}]"]):
        refused = alone("train", "tiny.yaml", *rows, *changes, cwd=two_rows)
        assert refused.returncode == 2
        assert said in refused.stderr and "Traceback" not in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert files(two_rows) == before


def test_other_splits_and_other_experts_are_noticed(two_rows: Path) -> None:
    """The recipe is the same; what it was trained on is not."""
    rows = "rows=[{model: resnet, fusion: concatenation}]"
    elsewhere = alone("prepare", "tiny.yaml", "output_dir=x", "data.seed=7", cwd=two_rows)
    assert elsewhere.returncode == 0
    meta = two_rows / "x/splits/split_meta.json"
    meta.write_text(meta.read_text().replace('"seed": 7', '"seed": 42'))
    refused = alone("train", "tiny.yaml", rows, "data.splits_dir=x/splits", cwd=two_rows)
    assert refused.returncode == 2 and "data.split_hash: " in refused.stderr
    experts = two_rows / "out/expert_checkpoints/resnet"
    (experts / "expert_0_best.pth").write_bytes((experts / "expert_1_best.pth").read_bytes())
    refused = alone("train", "tiny.yaml", rows, cwd=two_rows)
    assert refused.returncode == 2 and "experts.weights: " in refused.stderr


def test_failed_rows_again_are_those_of_the_launch_alone(two_rows: Path) -> None:
    """Another row of the folder that failed is another launch's business, and so is its record."""
    state = two_rows / "out/.fusionrun"
    for name in ("task-0-resnet-concatenation", "task-1-resnet-simpleAddition"):
        outcome = state / f"outcomes/{name}.json"
        outcome.write_text(json.dumps({"state": "failed", "note": "by hand"}))
        row = two_rows / "out/resnet_fusions" / name.split("-")[-1]
        (row / "manifest.json").unlink()
    again = [*command("resnet", "simpleAddition"), "--rerun", "failed"]
    with (state / "lock").open("a") as folder, (state / "locks/status.lock").open("a") as status:
        fcntl.flock(folder, fcntl.LOCK_SH)  # another launch is at work here
        fcntl.flock(status, fcntl.LOCK_SH)
        done = subprocess.run(
            again, cwd=two_rows, env=environment(), capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert "[task-1-resnet-simpleAddition]" in done.stdout
    assert "[task-0-resnet-concatenation]" not in done.stdout
    assert json.loads((state / "outcomes/task-0-resnet-concatenation.json").read_text())["note"]
    # where the other launch's restarts would look there is nothing of this one
    own = state / "selections/task-1-resnet-simpleAddition.json"
    assert [path for path in state.rglob("*.json") if "selection" in str(path)] == [own]
