"""Things go wrong in one row: the others finish, the reason is said, nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from fusionrun.training.checkpoint import load
from tests.tiny import (
    FUSIONS,
    alone,
    copy_study,
    csv_numbers,
    environment,
    row_weights,
    write_recipe,
)

ROW = "task-1-resnet-multiplicativeAddition"
OTHERS = [f"out/{m}_fusions/{f}/manifest.json" for m, f in FUSIONS.items() if m != "resnet"]


def faulty(
    fault: str, *words: str | Path, cwd: Path, ranks: int = 4, torchrun: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """A launch with a fault in the resnet row."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *torchrun]
    command += ["--nproc-per-node", str(ranks), "-m", "tests.faulty", fault, "train"]
    return subprocess.run(
        [*command, *map(str, words), "logs.tensorboard=false"],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
    )


def outcome(folder: Path) -> dict[str, str]:
    tree: dict[str, str] = json.loads((folder / f"out/.fusionrun/outcomes/{ROW}.json").read_text())
    return tree


def status_of_row(folder: Path) -> dict[str, str]:
    tasks = json.loads((folder / "out/status.json").read_text())["tasks"]
    (row,) = (task for task in tasks if task["name"] == ROW)
    assert isinstance(row, dict)
    return row


def assert_mended(folder: Path, healthy: Path) -> None:
    """The same command without the fault does what is missing, and only that."""
    paths = [path for path in OTHERS if (folder / path).exists()]
    before = {path: (folder / path).stat().st_mtime_ns for path in paths}
    done = alone("train", folder / "tiny.yaml", "logs.tensorboard=false", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: (folder / path).stat().st_mtime_ns for path in paths} == before
    assert row_weights(folder) == row_weights(healthy)
    assert csv_numbers(folder) == csv_numbers(healthy)


def test_an_exception_fails_its_row_alone(tmp_path: Path, tiny_study: Path) -> None:
    done = faulty("exception", write_recipe(tmp_path), cwd=tmp_path)
    assert done.returncode != 0
    assert all((tmp_path / path).is_file() for path in OTHERS)
    assert "ZeroDivisionError: a bug in somebody's fusion" in outcome(tmp_path)["note"]
    assert status_of_row(tmp_path)["state"] == "failed"
    assert "ZeroDivisionError" in status_of_row(tmp_path)["note"]
    log = (tmp_path / f"out/logs/{ROW}.log").read_text()
    assert f"[{ROW}] | Traceback" in log and "in _exception" in log
    assert f"[{ROW}]" in done.stdout and "| Traceback" not in done.stdout
    assert_mended(tmp_path, tiny_study)


def test_only_the_failed_rows_again(tmp_path: Path, tiny_study: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert faulty("exception", recipe, cwd=tmp_path).returncode != 0
    unfinished = tmp_path / "out/resnext_fusions/concatenation/manifest.json"
    unfinished.unlink()
    words = ["train", recipe, "logs.tensorboard=false"]
    again = alone(*words, "--rerun", "failed", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert outcome(tmp_path)["state"] == "done"
    assert not unfinished.exists()  # it hadn't failed
    nothing = alone(*words, "--rerun", "failed", cwd=tmp_path)
    assert nothing.returncode == 1
    assert "out: no row failed in the last launch" in nothing.stderr
    assert_mended(tmp_path, tiny_study)


def test_a_number_that_is_not_finite_stops_before_the_update(
    tmp_path: Path, tiny_study: Path
) -> None:
    done = faulty("nan", write_recipe(tmp_path), cwd=tmp_path)
    assert done.returncode != 0
    assert all((tmp_path / path).is_file() for path in OTHERS)
    note = outcome(tmp_path)["note"]
    assert "not finite in epoch 2, step 3 of 3" in note
    state = load(tmp_path / "out/resnet_fusions/multiplicativeAddition/checkpoint.pth")
    assert state["epoch"] == 1  # the last good one
    assert all(value.isfinite().all() for value in state["model"].values())
    assert_mended(tmp_path, tiny_study)


def test_a_process_that_always_dies_is_given_up_and_the_others_finish(
    tmp_path: Path, tiny_study: Path
) -> None:
    rows = "[{model: resnext, fusion: concatenation}, {model: resnet, fusion: %s}]"
    done = faulty(
        "crash",
        write_recipe(tmp_path),
        f"rows={rows % FUSIONS['resnet']}",
        cwd=tmp_path,
        ranks=2,
        torchrun=("--max-restarts", "4"),
    )
    assert done.returncode != 0
    assert (tmp_path / "out/resnext_fusions/concatenation/manifest.json").is_file()
    assert "died 3 times without getting further" in outcome(tmp_path)["note"]
    mended = alone("train", tmp_path / "tiny.yaml", "logs.tensorboard=false", cwd=tmp_path)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert row_weights(tmp_path) == row_weights(tiny_study)


def test_a_rank_that_stands_still_is_named_and_the_launch_ends(tmp_path: Path) -> None:
    # torch 2.11's torchrun has a fixed grace of 30 s
    known = "--shutdown-timeout" in get_args_parser().format_help()
    done = faulty(
        "hang",
        write_recipe(tmp_path),
        "runtime.hang_minutes=0.1",
        cwd=tmp_path,
        torchrun=("--shutdown-timeout", "3") if known else (),
    )
    assert done.returncode != 0
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("fusionrun: "))
    assert f"rank 1 ({ROW}) has made no progress" in line
    assert all((tmp_path / path).is_file() for path in OTHERS)


def test_a_damaged_checkpoint_is_said_and_costs_only_time(tmp_path: Path, tiny_study: Path) -> None:
    copy_study(tiny_study / "out", tmp_path / "out")
    row = tmp_path / "out/resnet_fusions/multiplicativeAddition"
    (row / "manifest.json").unlink()
    checkpoint = row / "checkpoint.pth"
    content = bytearray(checkpoint.read_bytes())
    weights = load(checkpoint)["model"]["global_head.weight"]
    place = content.index(weights.numpy().tobytes())
    content[place] ^= 1
    checkpoint.write_bytes(content)
    done = alone("train", write_recipe(tmp_path), "logs.tensorboard=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{checkpoint.relative_to(tmp_path)}: is damaged" in done.stdout
    assert row_weights(tmp_path) == row_weights(tiny_study)
    assert csv_numbers(tmp_path) == csv_numbers(tiny_study)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of a few hundred kilobytes at <tmp_path>/out."""
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("can't mount a file system here (needs root)")
    return out


def test_a_full_disk_is_said_and_costs_no_earlier_result(
    tmp_path: Path, small_disk: Path, tiny_study: Path
) -> None:
    try:
        recipe = write_recipe(tmp_path)
        refused = alone("train", recipe, "logs.tensorboard=false", cwd=tmp_path)
        assert refused.returncode == 1 and "disk space" in refused.stderr
        command = [sys.executable, "-m", "tests.faulty", "unexamined", "train", str(recipe)]
        full = subprocess.run(
            [*command, "logs.tensorboard=false"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert full.returncode == 3, full.stdout + full.stderr
        assert "No space left on device" in full.stdout + full.stderr
        assert "Traceback" not in full.stdout + full.stderr
        experts = list(small_disk.glob("expert_checkpoints/*/*.pth"))
        assert experts and all(torch.load(path, weights_only=True) for path in experts)
        for path in small_disk.rglob("*.csv"):
            assert path.read_text().endswith("\n")
        subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
        done = alone("train", recipe, "logs.tensorboard=false", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert row_weights(tmp_path) == row_weights(tiny_study)
    finally:
        subprocess.run(["umount", str(small_disk)], check=False)
