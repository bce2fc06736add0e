"""What measures a study makes no state of it, from wherever and into whatever folder."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from fusionrun.cli import main
from tests.tiny import copy_study

ROW = "resnet_fusions/simpleAddition"
FUSIONS = ("TransformerBase", "simpleAddition")
ROWS = ["resnet/TransformerBase", "resnet/simpleAddition"]


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below, hidden ones too, with the hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def study(trained_study: Path, tmp_path: Path) -> Path:
    out = copy_study(trained_study, tmp_path / "study", rows=ROWS)
    for name in ("predictions.npz", "evaluation.json"):
        for path in out.rglob(name):  # by another test of the session
            path.unlink()
    return out


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which nothing of the study lies."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


@pytest.fixture
def read_only(study: Path) -> Iterator[Path]:
    """The study on a file system that refuses every write, as a colleague's or an archive's."""
    bound = subprocess.run(["mount", "--bind", study, study], capture_output=True, text=True)
    if bound.returncode:
        pytest.skip(f"can't mount: {bound.stderr}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", study], check=True)
        yield study
    finally:
        subprocess.run(["umount", study], check=True)


def rows_of(table: Path) -> list[str]:
    """The lines of the two rows that are left of the trained study."""
    return [line for line in table.read_text().splitlines() if line.split(",")[2] in FUSIONS]


def assemble_words(study: Path, folder: Path) -> list[str]:
    manifest = folder / "assembled.yaml"
    row = str(study / ROW)
    tree = {"experts": row, "fusion": row, "evaluate": str(study)}
    manifest.write_text(yaml.safe_dump(tree))
    return ["assemble", str(manifest)]


def test_every_verb_leaves_the_study_as_it_is(
    study: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_all(study, elsewhere, capsys)


def test_a_study_on_a_read_only_file_system(
    read_only: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["evaluate", str(read_only)],
        ["robustness", str(read_only), "--images=12"],
        ["preview", str(read_only)],
        ["export", str(read_only / ROW)],
    ):
        assert main(words) == 1  # at once, not when all is measured
        said = capsys.readouterr().err
        assert "is read-only); --output DIR names another folder" in said and "[Errno" not in said
    measure_all(read_only, elsewhere, capsys)


def measure_all(study: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(study)
    measured = elsewhere / "measured"
    where = ["--output", str(measured)]
    for words in (
        ["evaluate", str(study)],
        ["robustness", str(study), "--images=12"],
        ["preview", str(study), "--seeds=1", "--epochs=1"],
        ["report", str(study)],
        ["export", str(study / ROW)],
    ):
        assert main([*words, *where, *(["runtime.threads=1"] if words[0] != "export" else [])]) == 0
        assert contents(study) == before, words[0]
    assert main([*assemble_words(study, elsewhere), "--output", str(elsewhere / "model")]) == 0
    assert contents(study) == before
    assert {path.name for path in measured.iterdir()} == {
        *(f"evaluation.{suffix}" for suffix in ("json", "md", "csv")),
        *(f"results.{suffix}" for suffix in ("csv", "md", "svg")),
        *(f"robustness.{suffix}" for suffix in ("json", "md", "csv")),
        *(f"preview.{suffix}" for suffix in ("json", "md")),
        *(f"report.{suffix}" for suffix in ("html", "md", "csv", "tex")),
        "model.pt2",
        "resnet_fusions",
    }
    assert {path.name for path in elsewhere.iterdir()} == {"measured", "model", "assembled.yaml"}
    # what was measured is what training measured, and is used the next time
    assert rows_of(measured / "results.csv") == rows_of(study / "results.csv")
    capsys.readouterr()
    assert main(["evaluate", str(study), *where]) == 0
    assert capsys.readouterr().err.count("is up to date") == len(ROWS)


def test_an_older_manifest_is_brought_up_to_date_in_the_results_alone(
    study: Path, elsewhere: Path
) -> None:
    path = study / ROW / "manifest.json"
    whole = rows_of(study / "results.csv")
    manifest = json.loads(path.read_text())
    manifest["test"]["mean_probabilities"] += 10
    path.write_text(json.dumps(manifest))
    before = contents(study)
    assert main(["evaluate", str(study), "--output=measured"]) == 0
    assert rows_of(Path("measured/results.csv")) == whole
    assert contents(study) == before


@pytest.mark.parametrize("verb", ["evaluate", "robustness", "preview", "assemble"])
def test_no_verb_makes_a_split(
    study: Path, elsewhere: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 19 images of a new holdout, the experts would have been trained on 10."""
    (study / "splits").rename(elsewhere / "moved")
    words = assemble_words(study, elsewhere) if verb == "assemble" else [verb, str(study)]
    before = contents(study)
    assert main([*words, "--output=measured"]) == 1
    said = capsys.readouterr().err
    record = yaml.safe_load((study / ROW / "manifest.json").read_text())
    assert f"{study / 'splits'}: found no split" in said
    assert record["settings"]["data.split_hash"] in said and "data.splits_dir=DIR" in said
    assert contents(study) == before and not Path("measured").exists()
    quick: list[str] = {"robustness": ["--images=12"], "preview": ["--seeds=1", "--epochs=1"]}.get(
        verb, []
    )
    found = ["data.splits_dir=moved", *quick]
    assert main([*words, *found, "--output=measured"]) == 0, capsys.readouterr().err
    # another split is not this study's, wherever it lies
    holdout = Path("moved/fusion_holdout_indices.npy")
    np.save(holdout, (np.load(holdout) + 1) % 240)
    for name in ("expert_train_indices.npy", "split_meta.json"):
        Path("moved", name).unlink()
    assert main(["prepare", str(study / "recipe.yaml"), "data.splits_dir=moved"]) == 0
    assert main([*words, *found, "--output=again"]) == 1
    said = capsys.readouterr().err
    assert "moved: found the split" in said and record["settings"]["data.split_hash"] in said


@pytest.mark.parametrize("verb", ["evaluate", "robustness", "preview", "report"])
@pytest.mark.parametrize("field", ["fusion.epochs=3", "data.train_images=9", "output_dir=x"])
def test_a_study_is_measured_as_it_was_trained(
    trained_study: Path, verb: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(trained_study), field]) == 2
    said = capsys.readouterr().err
    assert f"override {field!r}: " in said and "data.root" in said


@pytest.mark.parametrize("stored", ["whole", "as typed"])
@pytest.mark.parametrize("moved", ["not", "study", "all"])
def test_paths_of_the_recipe_are_found_from_any_folder(
    study: Path, tmp_path: Path, elsewhere: Path, stored: str, moved: str
) -> None:
    """Splits below the study and experts beside it; the recipe of an older version too."""
    (tmp_path / "project").mkdir()
    study = study.rename(tmp_path / "project/study")
    (study / "splits").rename(study / "own_splits")
    (study / "expert_checkpoints").rename(tmp_path / "project/experts")
    path = study / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    base = f"{tmp_path}/project/" if stored == "whole" else ""
    recipe["output_dir"] = f"{base}study"
    recipe["data"]["splits_dir"] = f"{base}study/own_splits"
    recipe["experts"]["checkpoint_dir"] = f"{base}experts"
    path.write_text(yaml.safe_dump(recipe))
    if moved == "study":
        if stored == "as typed":
            pytest.skip("nothing says where the experts lay")
        study = study.rename(tmp_path / "moved")
    elif moved == "all":
        study = (tmp_path / "project").rename(tmp_path / "other") / "study"
    here = os.path.relpath(study)
    assert main(["evaluate", here]) == 0
    assert not list(elsewhere.iterdir())
