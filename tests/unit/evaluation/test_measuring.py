"""evaluate, robustness and preview where memory runs out, or an error breaks the process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusionrun.cli import main
from fusionrun.data.errors import DataError
from fusionrun.data.room import room_for_data
from fusionrun.evaluation import measuring
from fusionrun.experts import Expert
from fusionrun.study import context
from tests.tiny import copy_study

VERBS = (["evaluate"], ["robustness", "--images", "6"], ["preview", "--epochs", "1"])
ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously"
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
MOST = 5  # images that fit


@pytest.fixture
def out(trained_study: Path, tmp_path: Path) -> Path:
    return copy_study(trained_study, tmp_path / "out", rows=["resnet/simpleAddition"])


def measure(verb: list[str], out: Path) -> int:
    return main([verb[0], str(out), *verb[1:]])


def break_experts(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], most: int = 0
) -> None:
    """Once the study is open, experts raise `error` when asked about more than `most` images."""
    healthy, open_study = Expert.forward, measuring.open_study

    def forward(self: Expert, images: Tensor) -> Any:
        if len(images) > most and images.device.type == "cpu":
            raise error()
        return healthy(self, images)

    def opened(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(Expert, "forward", forward)
        return open_study(*arguments, **more)

    monkeypatch.setattr(measuring, "open_study", opened)


def assertion() -> Exception:
    return torch.AcceleratorError(ASSERT)


def wrapped() -> Exception:
    error = ValueError("somebody's layer failed")
    error.__cause__ = RuntimeError(ASSERT)
    return error


@pytest.mark.parametrize(
    ("verb", "error"), zip(VERBS, [wrapped, assertion, wrapped], strict=True), ids=str
)
def test_an_error_that_breaks_the_process_ends_it_in_a_line(
    verb: list[str],
    error: Callable[[], Exception],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_experts(monkeypatch, error)
    assert measure(verb, out) == 1
    said = capsys.readouterr().err.splitlines()
    name = "resnet" if verb[0] == "preview" else "task-0-resnet-simpleAddition"
    first = ASSERT.partition("\n")[0]
    assert said[-2] == f"fusionrun: {name}: {first}"
    assert said[-1].startswith(f"fusionrun: {first}: this process can't use its device any more")
    assert not list(out.glob(f"{verb[0]}.json")) and not list(out.glob("evaluation.json"))


@pytest.mark.parametrize("verb", [VERBS[0], VERBS[2]], ids=lambda verb: verb[0])
def test_where_not_an_image_fits_the_row_has_no_numbers(
    verb: list[str], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_experts(monkeypatch, lambda: RuntimeError(CUBLAS))
    assert measure(verb, out) == 3
    assert "not even one image fits" in capsys.readouterr().err
    name = "evaluation" if verb[0] == "evaluate" else verb[0]
    assert "not even one image fits" in (out / f"{name}.json").read_text()


@pytest.mark.parametrize("verb", [VERBS[0], VERBS[2]], ids=lambda verb: verb[0])
def test_with_fewer_images_at_a_time_the_numbers_are_the_same(
    verb: list[str], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = copy_study(out, tmp_path / "again")
    assert measure(verb, out) == 0
    break_experts(monkeypatch, lambda: torch.OutOfMemoryError("CUDA out of memory"), MOST)
    assert measure(verb, again) == 0
    if verb[0] == "evaluate":
        files = [next(each.rglob("predictions.npz")) for each in (out, again)]
        answers, others = (np.load(file) for file in files)
        for name in answers.files:
            if answers[name].dtype.kind == "f":
                np.testing.assert_allclose(answers[name], others[name], rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(answers[name], others[name])
        return
    previews = (json.loads((each / "preview.json").read_text()) for each in (out, again))
    fusions = [each["models"][0]["fusions"] for each in previews]
    numbers, same = ({of["fusion"]: of["accuracies"] for of in each} for each in fusions)
    assert numbers == same


def test_a_device_that_takes_no_data_is_said() -> None:
    with (
        pytest.raises(DataError, match="cpu can't be used: CUDA error: device-side"),
        room_for_data(torch.device("cpu")),
    ):
        raise assertion()


@pytest.mark.parametrize("place", ["loading the data", "loading a row"])
def test_memory_that_runs_out_elsewhere_is_said(
    place: str,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def short(*_: object, **__: object) -> Any:
        raise RuntimeError(CUBLAS)

    if place == "loading the data":
        monkeypatch.setattr(context, "load_data", short)
    else:
        monkeypatch.setattr(measuring, "load_single", short)
        monkeypatch.setattr(measuring, "load_model", short)
    code = measure(VERBS[0], out)
    said = capsys.readouterr().err
    assert code == (1 if place == "loading the data" else 3)
    assert CUBLAS in said and "Traceback" not in said
