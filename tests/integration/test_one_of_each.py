"""After a study of four architectures: a row of one expert of each, and all that is asked of it."""

import csv
from pathlib import Path

import pytest

import fusionrun
from fusionrun.cli import main
from tests.tiny import FUSIONS, train_tiny

pytestmark = pytest.mark.slow

QUICK = ("experts.count=4", "experts.epochs=1", "fusion.epochs=1", "logs.tensorboard=false")
EACH = f"[{', '.join(FUSIONS)}]"
MEMBERS = "densenet 0, resnet 1, improved_wide_resnet 2, resnext 3"


def test_a_row_of_one_expert_of_each_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train_tiny(tmp_path, *QUICK) / "out"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    files = [path for path in out.rglob("*.pth") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    capsys.readouterr()

    row = f"rows=[{{model: {EACH}, fusion: concatenation, name: each}}]"
    assert main(["train", "tiny.yaml", *QUICK, row]) == 0
    printed = capsys.readouterr().out
    assert MEMBERS in printed and "[expert-" not in printed  # it costs no expert's training
    assert {path: path.stat().st_mtime_ns for path in files} == before

    with (out / "results.csv").open(newline="") as file:
        results = {(row["model"], row["fusion_type"]): row for row in csv.DictReader(file)}
    assert list(results) == [*FUSIONS.items(), ("mixed-each", "concatenation")]
    assert float(results["mixed-each", "concatenation"]["fused"]) > 0
    page = (out / "results.md").read_text()
    assert "| mixed-each | concatenation |" in page and MEMBERS in page

    assert main(["evaluate", "out"]) == 0 and main(["report", "out"]) == 0
    for name in ("evaluation.md", "report.md", "report.html"):
        assert "mixed-each" in (out / name).read_text() and MEMBERS in (out / name).read_text()
    folder = "out/mixed-each_fusions/concatenation"
    assert main(["export", folder, "--format", "onnx"]) == 0
    assert Path(folder, "model.onnx").is_file()
    images = fusionrun.open_study("out").load_data().test_images[:8]
    assert fusionrun.load_model(folder).predict(images).shape == (8, 4)
