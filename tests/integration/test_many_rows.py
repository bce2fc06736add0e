"""More rows than ranks, fewer rows than ranks: every task done exactly once, nobody in the way."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fusionrun.components.manifest import read_manifest
from tests.chaos import Chaos
from tests.tiny import TINY, alone, csv_numbers, launch_sh, torchrun, write_recipe

MODELS = ("densenet", "resnet", "improved_wide_resnet", "resnext")
FUSIONS = ("multiplicative", "multiplicativeAddition", "TransformerBase", "concatenation")
QUIET = "logs.tensorboard=false"
EXPERTS = [f"expert-{model}-{k}" for model in MODELS for k in range(2)]


def grid(**axes: Any) -> str:
    """The tiny study with a grid for its rows."""
    rows = json.dumps({"models": MODELS, "fusions": FUSIONS, **axes})
    text = TINY.replace("blocks: [1, 1], stem: 8", "blocks: [1, 1], stem: 4")  # D = 8, for 8 heads
    return re.sub(r"rows:\n(  - .*\n)+", f"grid: {rows}\n", text)


def lines_of(folder: Path, pattern: str) -> Counter[str]:
    """How many lines of each task's log end with `pattern`."""
    logs = sorted((folder / "out/logs").glob("*.log"))
    return Counter(
        {log.stem: len(re.findall(rf"{pattern}$", log.read_text(), re.M)) for log in logs}
    )


def weights(folder: Path) -> dict[str, str]:
    """Hash of every row's saved weights."""
    paths = sorted((folder / "out").glob("*_fusions/*/manifest.json"))
    return {str(path.relative_to(folder)): read_manifest(path).weights for path in paths}


def status(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "out/status.json").read_text())
    return tree


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of sixteen rows that four ranks have done."""
    folder = tmp_path_factory.mktemp("sixteen")
    done = launch_sh(write_recipe(folder, grid()), QUIET, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_sixteen_rows_on_four_ranks(sixteen: Path) -> None:
    rows = [f"task-{i}-{MODELS[i % 4]}-{FUSIONS[i // 4]}" for i in range(16)]
    once = dict.fromkeys([*rows, *EXPERTS], 1)
    assert lines_of(sixteen, "starts on rank .*") == once
    assert lines_of(sixteen, " done") == once
    assert len(weights(sixteen)) == 16
    tasks = status(sixteen)["tasks"]
    assert {task["name"] for task in tasks if task["state"] == "done"} == once.keys()


def test_row_i_begins_on_rank_i(sixteen: Path) -> None:
    for rank, model in enumerate(MODELS):
        log = (sixteen / f"out/logs/expert-{model}-0.log").read_text()
        assert f"starts on rank {rank}," in log


def test_the_end_tells_how_busy_the_ranks_were(sixteen: Path) -> None:
    output = (sixteen / "output.txt").read_text()
    assert re.search(r"^\d+s of work in \d+s: \d\.\d of 4 ranks busy on average$", output, re.M)
    assert re.search(
        r"^idle .*: rank 0 \d+ %, rank 1 \d+ %, rank 2 \d+ %, rank 3 \d+ %$", output, re.M
    )
    ranks, elapsed = status(sixteen)["ranks"], status(sixteen)["elapsed"]
    assert all(0 < rank["busy_seconds"] < elapsed for rank in ranks)
    # each row's own time is in its rank's
    tasks = status(sixteen)["tasks"]
    spent = [sum(task["seconds"] for task in tasks if task["rank"] == rank) for rank in range(4)]
    assert all(rank["busy_seconds"] >= mine for rank, mine in zip(ranks, spent, strict=True))


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [12, 13])
def test_workers_killed_on_the_way(tmp_path: Path, sixteen: Path, seed: int) -> None:
    """What is done is never done again, and all of it ends the same."""
    write_recipe(tmp_path, grid())
    chaos = Chaos(tmp_path, seed, kills=3, seconds=(3.0, 7.0), words=(QUIET,))
    chaos.run(patience=240)
    assert sum(chaos.done.values()) > 0
    # a task that was killed between saving and saying so is done without the word
    assert max(lines_of(tmp_path, " done").values()) == 1
    assert weights(tmp_path) == weights(sixteen)
    assert csv_numbers(tmp_path) == csv_numbers(sixteen)


def test_only_some_rows_then_the_rest(tmp_path: Path, sixteen: Path) -> None:
    """Names and results don't depend on how the rows were divided among launches."""
    recipe = write_recipe(tmp_path, grid())
    some = ["--only", "resnet/*", "--only", "*/TransformerBase"]
    done = launch_sh(recipe, QUIET, *some, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = weights(sixteen)
    wanted = {path for path in expected if "resnet_fusions" in path or "TransformerBase" in path}
    wanted -= {path for path in wanted if "wide_resnet" in path and "TransformerBase" not in path}
    assert weights(tmp_path) == {path: expected[path] for path in wanted}
    assert (tmp_path / "out/results.csv").read_text().count("n/a") > 0
    rest = launch_sh(recipe, QUIET, cwd=tmp_path)
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert weights(tmp_path) == expected
    assert set(lines_of(tmp_path, " done").values()) == {1}


def test_a_filter_that_fits_nothing_is_a_mistake(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    done = alone("train", recipe, "--only", "resnet/multiplicativeaddition", cwd=tmp_path)
    assert done.returncode == 2
    assert "--only: 'resnet/multiplicativeaddition' fits no row" in done.stderr
    assert "did you mean 'resnet/multiplicativeAddition'?" in done.stderr


def test_more_ranks_than_tasks(tmp_path: Path) -> None:
    """One row whose two experts two ranks train; the other two never load the data."""
    recipe = write_recipe(tmp_path)
    words = ["rows=[{model: resnet, fusion: concatenation}]", "experts.epochs=20", QUIET]
    words.append("status.summary_minutes=0.01")
    done = torchrun("train", recipe, *words, ranks=4, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = status(tmp_path)["ranks"]
    assert sum(rank["busy_seconds"] == 0 for rank in ranks) >= 1
    assert {rank["state"] for rank in ranks} == {"finished"}
    assert "idle: no task can start yet" in done.stdout


def test_seeds_are_summarised(tmp_path: Path) -> None:
    text = grid(models=["resnet"], fusions=["concatenation"], seeds=[42, 43, 44])
    done = alone("train", write_recipe(tmp_path, text), QUIET, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = {path.parent.name for path in (tmp_path / "out").glob("*_fusions/*/manifest.json")}
    assert folders == {"concatenation", "concatenation-seed43", "concatenation-seed44"}
    summary = re.findall(
        r"^\| resnet \| concatenation \| 1 \| 3 \| .* ± ",
        (tmp_path / "out/results.md").read_text(),
        re.M,
    )
    assert len(summary) == 1
    assert "Mean ± standard deviation over seeds" in done.stdout
