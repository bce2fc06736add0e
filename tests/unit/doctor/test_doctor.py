"""`doctor` as a command."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from fusionrun.cli import main
from fusionrun.doctor import cards, doctor, study_checks
from fusionrun.study.recipe_yaml import load_recipe
from tests.tiny import write_recipe
from tests.unit.doctor.one_row import ONE_ROW, files_below, plan, rank_info, see_gpus


def test_doctor_on_a_study_that_is_fine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_recipe(Path())
    assert main(["doctor", str(path), "--ranks", "2", "--seconds", "0.01"]) == 0
    output = capsys.readouterr().out
    assert "fail" not in output and "Ready to train" in output
    table = output[output.index("Estimate for 2 ranks") :]
    for row in load_recipe(path).rows:
        names = [row.model, row.fusion]
        (line,) = [text for text in table.splitlines() if text.split()[:2] == names]
        # Memory is the whole process's, and the one that runs all tests may need more than a GiB.
        assert "2 x " in line and re.search(r"~[\d.]+ [MG]iB", line) and "n/a" not in line
    assert "every row fits on a GPU of 16 GB" in " ".join(output.split())
    assert files_below(Path()) == {"tiny.yaml"}
    assert files_below(tmp_path / "scratch") == set()


def test_doctor_on_a_study_that_would_fail(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("taken").write_text("")
    words = ["data.name=image_folder", "data.root=nowhere", "output_dir=taken/out"]
    assert main(["doctor", str(write_recipe(Path())), *words]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    output = " ".join(captured.out.split())
    assert "-> set output_dir to a folder that you may write to" in output
    assert "fail data" in output and "Set data.root to the folder" in output
    assert "checks failed" in output
    assert files_below(tmp_path / "scratch") == set()


def test_doctor_without_the_gpu_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, 0)
    assert main(["doctor", str(write_recipe(Path(), ONE_ROW)), "runtime.device=cuda"]) == 1
    output = capsys.readouterr().out
    assert "torch sees no GPU" in output and "not measured" in output


@pytest.mark.parametrize(
    "words", [["fusion.epochs=3"], ["R", "--ranks", "0"], ["R", "--seconds", "nan"], ["R", "a.b=1"]]
)
def test_a_wrong_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(write_recipe(Path()))
    assert main(["doctor", *(recipe if word == "R" else word for word in words)]) == 2
    assert capsys.readouterr().err.startswith("fusionrun: ")


def test_an_interrupted_doctor_goes_quietly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study_checks, "open_context", interrupt)
    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(KeyboardInterrupt):
        doctor.doctor(plan(), rank_info(), console, ranks=1, seconds=0.1)
    assert files_below(tmp_path / "scratch") == set()


def test_rows_that_need_a_large_gpu_are_told_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "RESERVED", 100_000.0)  # as if the tiny row were that large
    path = write_recipe(Path(), ONE_ROW)
    assert main(["doctor", str(path), "--ranks", "1", "--seconds", "0.01"]) == 0
    table = capsys.readouterr().out.partition("Rows on GPUs, in half precision")[2]
    assert re.search(r"resnet.* 8 +[\d,.]+ GiB .*(by \d|no)\b", table, re.DOTALL)
