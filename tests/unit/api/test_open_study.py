"""What `open_study` gives back is what the commands left, wherever the folder is now."""

import json
from pathlib import Path

import pytest
import torch

import fusionrun
from tests.tiny import copy_study


def test_it_knows_what_the_study_has(trained_study: Path) -> None:
    study = fusionrun.open_study(trained_study)
    assert study.paths.output_dir == trained_study
    assert [f"{row.model}/{row.variant}" for row in study.rows] == [
        "resnet/TransformerBase",
        "resnet/simpleAddition",
        "resnet/single",
        "densenet/multiplicative",
    ]
    assert (study.recipe.experts.count, study.recipe.data.num_classes) == (2, 6)
    manifests = {
        row.name: json.loads(study.paths.row(row.model, row.variant).manifest.read_text())
        for row in study.rows
    }
    for result in study.results:
        assert result.fused == manifests[result.task]["test"]["fused"]
    assert "4 rows" in repr(study) and str(trained_study) in repr(study)


def test_its_models_answer_as_its_results_say(trained_study: Path) -> None:
    study = fusionrun.open_study(trained_study)
    data = study.load_data()
    for row, result in zip(study.rows, study.results, strict=True):
        for name in (row, row.name, f"{row.model}/{row.variant}"):
            model = study.load_model(name)
        assert isinstance(model, fusionrun.Expert if row.is_single else fusionrun.FusionModel)
        right = model.predict(data.test_images).argmax(dim=1) == data.test_labels
        assert 100 * float(right.double().mean()) == pytest.approx(result.fused)
        assert model.classes == data.classes


def test_a_row_that_is_not_there(trained_study: Path, tmp_path: Path) -> None:
    study = fusionrun.open_study(trained_study)
    with pytest.raises(ValueError, match="did you mean 'resnet/simpleAddition'"):
        study.load_model("resnet/simpleAdition")
    out = copy_study(trained_study, tmp_path / "out", rows=["resnet/simpleAddition"])
    half = fusionrun.open_study(str(out))
    half.paths.row("resnet", "simpleAddition").manifest.unlink()
    with pytest.raises(fusionrun.CheckpointError, match="has this row finished"):
        half.load_model(half.rows[0])
    assert half.results[0].fused is None


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(fusionrun.RecipeError, match=r"recipe.yaml: no such recipe"):
        fusionrun.open_study(tmp_path)


def test_where_things_lie_can_be_said_anew(trained_study: Path, tmp_path: Path) -> None:
    study = fusionrun.open_study(trained_study, f"data.root={tmp_path}")
    assert study.recipe.data.root == str(tmp_path)
    with pytest.raises(fusionrun.RecipeError, match=r"data\.rot"):
        fusionrun.open_study(trained_study, f"data.rot={tmp_path}")


def test_evaluate_gives_what_it_writes(
    trained_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["resnet/TransformerBase", "resnet/simpleAddition"]
    out = copy_study(trained_study, tmp_path / "out", rows=rows)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    found = fusionrun.evaluate(out)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert capsys.readouterr().out == ""
    tree = json.loads((out / "evaluation.json").read_text())
    assert [row.task for row in found.rows] == [row["task"] for row in tree["rows"]]
    fused = {result.task: result.fused for result in fusionrun.open_study(out).results}
    assert all(row.methods[0].top1 == pytest.approx(fused[row.task]) for row in found.rows)


def test_a_study_whose_images_are_gone(trained_study: Path, tmp_path: Path) -> None:
    out = copy_study(trained_study, tmp_path / "out", rows=["resnet/simpleAddition"])
    recipe = out / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: synthetic", "name: image_folder"))
    study = fusionrun.open_study(out, f"data.root={tmp_path / 'no'}")
    with pytest.raises(fusionrun.DataError, match=str(tmp_path / "no")):
        study.load_data()
    with pytest.raises(fusionrun.LaunchError, match=str(tmp_path / "no")):
        study.evaluate()
