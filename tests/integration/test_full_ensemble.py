"""The control that costs as many trainings as a row has experts, each on all the images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionrun.common.typed_fields import read_json
from fusionrun.components.manifest import read_manifest
from fusionrun.components.store import load_expert, load_model, load_single, state_hash
from fusionrun.evaluation.schema import Evaluation
from fusionrun.experts.ensemble import Ensemble
from fusionrun.study.context import load_data
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.rows import networks_of
from fusionrun.study.stored import stored_study
from fusionrun.study.study import Study
from fusionrun.study.tasks import RowTask
from tests.tiny import alone, torchrun, write_recipe

ROW = "rows=[{model: resnet, fusion: concatenation}]"
CONTROL = "controls=[full_ensemble]"


def planned(folder: Path, *words: str) -> Study:
    return plan_study(load_recipe(write_recipe(folder), [ROW, *words]), "r")


# ------------------------------------------------------------------ which tasks there are


def test_its_networks_are_tasks_that_it_waits_for(tmp_path: Path) -> None:
    study = planned(tmp_path, CONTROL, "experts.count=3")
    assert [row.variant for row in study.rows] == ["concatenation", "full_ensemble"]
    needs = {task.name: task.needs for task in study.tasks}
    networks = ("network-resnet-0", "network-resnet-1", "network-resnet-2")
    assert needs["task-1-resnet-full_ensemble"] == networks
    assert [needs[name] for name in networks] == [(), (), ()]
    assert [task.name for task in study.row_tasks] == [
        "task-0-resnet-concatenation",
        "task-1-resnet-full_ensemble",
    ]
    assert [task.index for task in study.tasks] == list(range(2 + 3 + 3))


def test_a_single_row_of_its_seed_is_its_first_network(tmp_path: Path) -> None:
    seeds = "grid={models: [resnet], fusions: [simpleAddition], seeds: [42, 7]}"
    rows = "rows=[{model: resnet, fusion: single}]"
    study = planned(tmp_path, rows, seeds, CONTROL)
    needs = {row.row.variant: row.needs for row in study.row_tasks if row.row.is_full_ensemble}
    assert needs == {
        "full_ensemble": ("task-0-resnet-single", "network-resnet-1"),
        "full_ensemble-seed7": ("network-resnet-0-seed7", "network-resnet-1-seed7"),
    }


def test_each_network_has_a_seed_of_its_own_the_first_that_of_single(tmp_path: Path) -> None:
    lone = planned(tmp_path, "rows=[{model: resnet, fusion: single}]")
    (single,) = lone.rows
    for seed in (42, 7):
        study = planned(tmp_path, CONTROL, f"seed={seed}")
        networks = networks_of(replace(study.rows[1], networks=4))
        seeds = [study.row_seed(network) for network in networks]
        assert len({*seeds}) == 4
        assert (seeds[0] == lone.row_seed(single)) == (seed == single.seed)
        identities = [study.identity(RowTask(0, network, 1.0, 2)) for network in networks]
        assert identities[1].differences(identities[2].fields)
        assert "network" not in identities[0].fields


def test_only_takes_its_networks_along(tmp_path: Path) -> None:
    study = planned(tmp_path, CONTROL).matching(["*/full_ensemble"])
    names = [task.name for task in study.tasks]
    assert names == ["task-1-resnet-full_ensemble", "network-resnet-0", "network-resnet-1"]


@pytest.mark.parametrize("control", ["single", "full_ensemble"])
def test_a_row_may_name_it_as_its_control(tmp_path: Path, control: str) -> None:
    """In whatever place it stands, it's the same row."""
    spelled = f"rows=[{{model: resnet, fusion: concatenation, control: {control}, seed: 3}}]"
    plain = f"rows=[{{model: resnet, fusion: {control}, seed: 3}}]"
    assert planned(tmp_path, spelled).rows == planned(tmp_path, plain).rows


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ("{model: [resnet, resnext], fusion: full_ensemble}", "rows.0.model", "one architecture"),
        ("{model: resnet, fusion: full_ensemble, alpha: 1}", "rows.0.alpha", "has no experts"),
        ("{model: resnet, fusion: full_ensemble, control: frozen}", "rows.0.control", "no experts"),
        ("{model: resnet, fusion: single, control: full_ensemble}", "rows.0.control", "no experts"),
        ("{model: resnet, fusion: full_ensembel}", "rows.0.fusion", "full_ensemble"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, row: str, field: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, f"rows=[{row}]")
    assert field in str(caught.value) and words in str(caught.value)


def test_mixed_rows_have_none(tmp_path: Path) -> None:
    study = planned(tmp_path, "rows=[{model: [resnet, resnext], fusion: concatenation}]", CONTROL)
    assert [row.fusion for row in study.rows] == ["concatenation"]


# ------------------------------------------------------------------ a study with one

WORDS = (ROW, "logs.tensorboard=false", "fusion.epochs=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full_ensemble")
    done = torchrun("train", write_recipe(folder), *WORDS, CONTROL, ranks=2, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def row_dir(folder: Path, variant: str) -> Path:
    return folder / "out/resnet_fusions" / variant


def test_it_answers_by_the_mean_of_its_networks_probabilities(folder: Path) -> None:
    networks = [load_single(row_dir(folder, name)) for name in ("single", "single-network1")]
    ensemble = load_model(row_dir(folder, "full_ensemble"))
    assert isinstance(ensemble, Ensemble)
    copies = [
        load_expert(row_dir(folder, f"full_ensemble/experts/expert_{k}_best.pth")) for k in (0, 1)
    ]
    weights = [state_hash(network.state_dict()) for network in networks]
    assert [state_hash(each.state_dict()) for each in copies] == weights
    assert len({*weights}) == 2
    data, _ = load_data(stored_study(folder / "out"), lambda text: None)
    mean = torch.stack([each.predict(data.test_images) for each in networks]).mean(dim=0)
    assert torch.allclose(ensemble.predict(data.test_images), mean, atol=1e-6)
    right = 100 * float((mean.argmax(dim=1) == data.test_labels).double().mean())
    manifest = read_manifest(row_dir(folder, "full_ensemble") / "manifest.json")
    assert manifest.test == {"fused": right, "images": len(mean), "differences": {}}
    assert len(manifest.validation["networks"]) == 2


def test_its_networks_train_as_long_as_experts_on_everything(folder: Path) -> None:
    for variant in ("single", "single-network1"):
        manifest = read_manifest(row_dir(folder, variant) / "manifest.json")
        assert manifest.settings["experts.epochs"] == 2
        log = folder / f"out/csv_logs/resnet_fusions/resnet_{variant}_training_log.csv"
        assert len(log.read_text().splitlines()) == 1 + 2
    assert not (
        folder / "out/csv_logs/resnet_fusions/resnet_full_ensemble_training_log.csv"
    ).exists()


def test_what_measures_a_study_sets_it_beside_the_rows(folder: Path) -> None:
    assert "| full ensemble |" in (folder / "out/results.md").read_text()
    done = alone("evaluate", "out", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_json(folder / "out/evaluation.json", Evaluation)
    (row,) = found.rows
    method = row.method("full_ensemble")
    manifest = read_manifest(row_dir(folder, "full_ensemble") / "manifest.json")
    assert method is not None and method.top1 == manifest.test["fused"]
    done = alone("export", row_dir(folder, "full_ensemble"), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_single_row_that_comes_later_finds_itself_done(folder: Path) -> None:
    path = row_dir(folder, "single") / "network_best.pth"
    before = path.stat().st_mtime_ns
    done = alone("train", "tiny.yaml", *WORDS, "controls=[full_ensemble, single]", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.stat().st_mtime_ns == before
    assert "| one network | full ensemble |" in (folder / "out/results.md").read_text()


def test_its_first_network_is_what_a_study_of_single_trains(folder: Path, tmp_path: Path) -> None:
    words = (*WORDS, "rows=[{model: resnet, fusion: single}]")
    done = alone("train", write_recipe(tmp_path), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    alike = [
        read_manifest(row_dir(each, "single") / "manifest.json") for each in (folder, tmp_path)
    ]
    assert alike[0].weights == alike[1].weights


def test_a_network_that_fails_fails_the_ensemble_alone(tmp_path: Path) -> None:
    broken = row_dir(tmp_path, "single-network1")
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{}")
    done = alone("train", write_recipe(tmp_path), *WORDS, CONTROL, cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert read_manifest(row_dir(tmp_path, "concatenation") / "manifest.json").test["fused"] >= 0
    log = (tmp_path / "out/logs/task-1-resnet-full_ensemble.log").read_text()
    assert "can't start: network-resnet-1 failed" in log
    (broken / "manifest.json").unlink()
    done = alone("train", "tiny.yaml", *WORDS, CONTROL, "--rerun", "failed", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
