"""Studies that version 0.1.0 wrote are readable, measurable, and resumed.

tests/data/studies_0_1_0.tar.xz holds `finished`, four rows of two experts that were trained and
evaluated, and `half`, a row that was stopped in its fourth of six epochs; each with its recipe.
"""

import csv
import dataclasses
import json
import tarfile
from pathlib import Path

import pytest

from fusionrun.cli import main
from fusionrun.common.typed_fields import flatten
from fusionrun.components.manifest import read_manifest
from fusionrun.study import identity, recipe_yaml
from fusionrun.study.recipe import FusionConfig, Recipe
from tests.tiny import ROOT

ROWS = [
    "multiplicativeAddition",
    "concatenation",
    "multiplicativeAddition-frozen",
    "concatenation-frozen",
]


@dataclasses.dataclass(frozen=True)
class NextFusionConfig(FusionConfig):
    """As the next version may have it."""

    added_later: float | None = None


@dataclasses.dataclass(frozen=True)
class NextRecipe(Recipe):
    fusion: NextFusionConfig = dataclasses.field(default_factory=NextFusionConfig)


@pytest.fixture(params=["this version", "a version with one more field"], autouse=True)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "this version":
        defaults = {**identity.RECIPE_DEFAULTS, **flatten(NextFusionConfig(), "fusion")}
        monkeypatch.setattr(identity, "RECIPE_DEFAULTS", defaults)
        monkeypatch.setattr(recipe_yaml, "Recipe", NextRecipe)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(ROOT / "tests/data/studies_0_1_0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def weights(folder: Path) -> dict[str, str]:
    return {row: str(read_manifest(folder / row / "manifest.json").weights) for row in ROWS}


def test_there_is_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("finished")
    rows = Path("out/resnet_fusions")
    before, told = weights(rows), numbers(Path("out/results.csv"))
    assert main(["train", "tiny.yaml"]) == 0
    said = capsys.readouterr().out
    assert "all rows done" in said and "starts on rank" not in said
    assert weights(rows) == before
    for old, new in zip(told, numbers(Path("out/results.csv")), strict=True):
        gain = new.pop("gain")  # it was over whichever alternative was best on the test set
        del old["gain"]
        assert gain == pytest.approx(new["fused"] - new["mean_probabilities"])
        assert {key: new[key] for key in old} == pytest.approx(old, abs=0.006)


def numbers(path: Path) -> list[dict[str, float]]:
    """The columns of numbers, line by line."""
    words = ("task", "model", "fusion_type", "best_expert_name", "members", "expert_seed")
    words = (*words, "other_experts")
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    known = [{k: v for k, v in line.items() if k not in words and v != "n/a"} for line in lines]
    return [{key: float(value) for key, value in line.items()} for line in known]


def test_it_is_measured_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("finished")
    before = json.loads(Path("out/evaluation.json").read_text())
    assert main(["report", "out"]) == 0  # of the evaluation that the older version wrote
    assert main(["evaluate", "out"]) == 0
    after = json.loads(Path("out/evaluation.json").read_text())
    newer = {"gain_over_averaging", "members", "best_expert"}
    assert after["rows"][0].keys() >= {*before["rows"][0], *newer}
    assert "gain over averaging" in Path("out/report.md").read_text()
    for old, new in zip(before["rows"], after["rows"], strict=True):
        found = {now["key"]: now for now in new["contenders"]}  # with those that came later
        for was in old["contenders"]:
            now = found[was["key"]]
            assert now["label"] == was["label"]
            # 32 images: one more or less elsewhere
            assert now["top1"] == pytest.approx(was["top1"], abs=4)
    assert main(["report", "out"]) == 0
    assert "Traceback" not in "".join(capsys.readouterr())


def test_its_components_are_assembled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("finished")
    row = "out/resnet_fusions/concatenation"
    Path("mix.yaml").write_text(f"experts: {row}\nfusion: {row}-frozen\nevaluate: out\n")
    assert main(["assemble", "mix.yaml", "mixed"]) == 0
    evaluated = json.loads(Path("mixed/manifest.json").read_text())["assembled"]["evaluated_on"]
    assert evaluated["cautions"] == []  # it's known that they saw these data and splits


def test_a_half_done_row_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("half")
    Path("out").rename("moved")  # nor does the folder's name matter
    assert main(["train", "tiny.yaml", "output_dir=moved"]) == 0
    log = Path("moved/logs/task-0-resnet-multiplicativeAddition.log").read_text()
    assert "continues after epoch 3, step 1" in log
    assert "epoch 4/6" in log and log.count("epoch 3/6") == 1
    manifest = read_manifest(Path("moved/resnet_fusions/multiplicativeAddition/manifest.json"))
    assert manifest.epoch in range(1, 7)


@pytest.mark.parametrize(
    "change", ["fusion.epochs=9", "experts.epochs=3", "data.seed=1", "fusion.alpha=0.5"]
)
def test_what_it_was_made_with_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    monkeypatch.chdir("finished")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert main(["train", "tiny.yaml", change]) == 2
    said = capsys.readouterr().err
    assert f"{change.split('=')[0]}: " in said and "there, " in said
    assert "Traceback" not in said and "elete" not in said
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "knob", ["fusion.micro_batch=auto", "fusion.micro_batch=4", "runtime.threads=2", "data.root=x"]
)
def test_paths_and_hardware_knobs_are_not(monkeypatch: pytest.MonkeyPatch, knob: str) -> None:
    for folder in ("finished", "half"):
        monkeypatch.chdir(folder)
        assert main(["train", "tiny.yaml", knob]) == 0
        monkeypatch.chdir("..")
