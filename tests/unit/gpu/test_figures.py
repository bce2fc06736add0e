"""The GPU's figures on one that is pretended: each is there, and keeps no other away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fusionrun.training import graphs
from tests.bench import fusionrun_side, gpu, gpu_launches, gpu_steps, gpu_tasks, startup
from tests.bench import ranks as ranks_bench
from tests.bench.gpu import Figure
from tests.bench.measure import Bench, Goal, Row
from tests.gpu import figures
from tests.gpu.part import Verdict
from tests.tiny import TINY

from .conftest import Pretended


def rows_of(found: Verdict) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found.figures["rows"]}


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_steps(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures.step("densenet", bench)
    assert found.state in ("pass", "missed")  # a CPU's times mean nothing
    rows = rows_of(found)
    goals = {
        "densenet row, batch 128: eager": None,
        "densenet row, batch 128: graph": None,
        "densenet row, batch 128: launched": ">= 4",
        "densenet row, batch 128: at the peak": None,
        "densenet row, batch 128: the loader's part": "<= 0.03",
        "densenet expert, batch 64: launched against eager": None,
        "densenet expert, batch 64: at the peak": None,
        "densenet expert, batch 64: the loader's part": "<= 0.03",
        "densenet expert, batch 64: 4 at once, a step of each with its batch": "<= 1",
    }
    assert {name: row["goal"] for name, row in rows.items()} == goals
    assert all(row["ratio"] is not None for row in rows.values())
    assert "1,612 kernels, 30 MiB" in rows["densenet row, batch 128: launched"]["note"]


def test_what_finds_no_room_leaves_the_others(
    bench: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusionrun_side, "reference_trainer", full)
    rows = rows_of(figures.step("resnet", bench))
    assert rows["resnet row, batch 128: conventional"]["note"] == "out of memory"
    launched = rows["resnet row, batch 128: launched"]
    assert launched["ratio"] is None and launched["ours"] > 0
    assert rows["resnet expert, batch 128: launched against eager"]["ratio"] is not None


def test_a_step_done_in_another_way_has_no_figure(
    bench: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("stream is capturing")

    monkeypatch.setattr(graphs, "record", fails)
    found = figures.compiled("resnet", bench)
    assert found.state == "fail"
    assert "failed: OtherWayError: steps stay single kernels" in found.text
    assert "stream is capturing" in found.text
    with pytest.raises(gpu_steps.OtherWayError, match="stream is capturing"):
        gpu_steps.timed(bench, "resnet", "row", "graph")
    assert gpu_steps.timed(bench, "resnet", "row", "eager").kernels == 1612


def test_steps_with_kernels_made_for_them(bench: Pretended) -> None:
    rows = rows_of(figures.compiled("resnet", bench))
    assert list(rows) == [
        "resnet expert, batch 128: compiled against launched",
        "resnet row, batch 128: compiled against launched",
    ]
    assert all(row["ratio"] is not None for row in rows.values())


def test_halves(bench: Pretended) -> None:
    (row,) = gpu_steps.halves(bench, "resnext")
    assert row.name == "resnext row, batch 128: fp16 against bf16" and row.ratio is not None


def test_tasks(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tasks, "CURVE_STEPS", 4)
    monkeypatch.setattr(gpu_tasks, "CURVE_END", 2)
    monkeypatch.setattr(gpu_tasks, "WorkerPool", InProcess)
    monkeypatch.setattr(gpu_tasks, "EPOCH_IMAGES", 40)
    for part in (figures.curve, figures.save, figures.first_epoch):
        (row,) = part(bench).figures["rows"]
        assert row["ratio"] is not None and row["goal"]
    rounds = []

    def measured(of: Bench) -> list[Row]:
        rounds.append(of.rounds)
        return [Row("ranks", "four", Goal(0.95), [0.9])]

    monkeypatch.setattr(ranks_bench, "measure_speed", measured)
    assert figures.ranks(bench).text == "four: 0.9 (goal >= 0.95)" and rounds == [2]
    (row,) = gpu_tasks.waits(bench)
    assert row.met


class InProcess:
    """A WorkerPool whose members work here."""

    def __init__(self, members: list[Callable[[], Callable[[], float]]]) -> None:
        self._parts = [member() for member in members]

    def __call__(self) -> list[float]:
        return [part() for part in self._parts]

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.mark.slow
def test_the_command_of_a_row(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "SIZES", (1000, 200))
    monkeypatch.setattr(gpu_launches, "ROW_MODEL", "resnet")
    monkeypatch.setattr(gpu_launches, "ROW_EPOCHS", 1)
    monkeypatch.setattr(gpu_launches, "MODELS", fusionrun_side.TINY_MODELS)
    (row,) = figures.whole_command(bench).figures["rows"]
    assert row["ours"] > 1 and row["goal"] == "<= 1"


@pytest.mark.slow
def test_the_command_of_a_study(
    bench: Pretended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(startup, "SIZES", (1000, 200))
    monkeypatch.setattr(gpu_launches, "MODELS", fusionrun_side.TINY_MODELS)
    monkeypatch.setattr(gpu_launches, "STUDY", tmp_path / "study.yaml")
    monkeypatch.setattr(gpu_launches, "RANKS", 2)
    recipe = yaml.safe_load(TINY)
    recipe |= {"data": {"name": "cifar100"}, "rows": recipe["rows"][1:2]}
    gpu_launches.STUDY.write_text(yaml.safe_dump(recipe))
    (row,) = gpu_launches.study_command(bench)
    assert row.name == "study, an epoch of 3 tasks on 2 ranks: makespan"
    assert row.ratio is not None and row.ratio > 1
    gpu_launches.STUDY.write_text("rows: []")
    with pytest.raises(RuntimeError, match="exit status 2\n"):
        gpu_launches.study_command(bench)


# ---------------------------------------------------------------- the list of figures


def test_without_a_gpu_every_figure_has_its_line(tmp_path: Path) -> None:
    rows = gpu.measure(Bench(torch.device("cpu"), 1, tmp_path, print))
    assert [row.name for row in rows] == [each.name for each in (*gpu.FIGURES, *gpu.COMPILED)]
    assert {row.note for row in rows} == {"there is no GPU here"}


def test_what_fails_or_has_no_time_left_keeps_no_other_away(bench: Pretended) -> None:
    def fails(bench: Bench) -> list[Row]:
        raise RuntimeError("a sick card\nwith details")

    def finds(bench: Bench) -> list[Row]:
        return [Row("gpu", "found", None, [1.0])]

    listed = [Figure("a", 1, fails), Figure("b", 100, finds), Figure("c", 1, finds)]
    rows = gpu.figures_of(bench, listed, 50.0)
    assert [row.name for row in rows] == ["a", "b", "found"]
    assert rows[0].note == "failed: RuntimeError: a sick card with details"
    assert rows[1].note.startswith("no time left: ")


def test_the_figures_fit_into_eight_minutes() -> None:
    assert sum(figure.seconds for figure in gpu.FIGURES) <= gpu.BUDGET < 8 * 60
