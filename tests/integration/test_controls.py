"""Control rows: the same row with one thing changed, so that what fusion does can be told."""

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from fusionrun.components.manifest import read_manifest
from fusionrun.components.store import (
    CheckpointError,
    load_expert,
    load_model,
    load_single,
    state_hash,
)
from fusionrun.evaluation.results import Result
from fusionrun.evaluation.results_controls import controls_table, costs_table
from fusionrun.evaluation.schema import Cost
from fusionrun.experts import build_expert
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.study.context import load_data
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import Recipe, RecipeError, RowConfig
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.study import Study
from fusionrun.study.tasks import RowTask
from tests.tiny import alone, write_recipe

ROWS = "rows=[{model: resnet, fusion: concatenation}, {model: resnet, fusion: simpleAddition}]"
ALL = "controls=[frozen, detached, single]"


def recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(write_recipe(folder), [ROWS, *overrides])


def names(rows: tuple[RowConfig, ...]) -> list[tuple[str, str | None, int | None]]:
    return [(row.fusion, row.control, row.seed) for row in rows]


# ------------------------------------------------------------------ which rows there are


def test_every_row_gets_its_controls_and_a_model_its_single_network_once(tmp_path: Path) -> None:
    rows = recipe(tmp_path, ALL).all_rows()
    assert names(rows) == [
        ("concatenation", None, None),
        ("simpleAddition", None, None),
        ("concatenation", "frozen", None),
        ("concatenation", "detached", None),
        ("single", None, None),
        ("simpleAddition", "frozen", None),
        ("simpleAddition", "detached", None),
    ]


def test_controls_follow_seeds_and_the_single_network_ignores_alphas(tmp_path: Path) -> None:
    grid = "grid={models: [resnet], fusions: [concatenation], seeds: [1, 2], alphas: [0.5, 2]}"
    rows = load_recipe(write_recipe(tmp_path), ["rows=[]", grid, ALL]).all_rows()
    assert len(rows) == 4 * 3 + 2
    assert [row.seed for row in rows if row.fusion == "single"] == [1, 2]
    assert {(r.seed, r.alpha) for r in rows if r.control == "frozen"} == {
        (1, 0.5), (1, 2.0), (2, 0.5), (2, 2.0)
    }  # fmt: skip


def test_a_control_can_be_listed_by_itself(tmp_path: Path) -> None:
    listed = "rows=[{model: resnet, fusion: concatenation, control: frozen, seed: 7}, "
    listed += "{model: resnet, fusion: single}]"
    study = plan_study(load_recipe(write_recipe(tmp_path), [listed, "controls=[frozen]"]), "r")
    assert [row.name for row in study.rows] == [
        "task-0-resnet-concatenation-frozen-seed7",
        "task-1-resnet-single",
    ]


@pytest.mark.parametrize(
    ("override", "field", "words"),
    [
        ("rows=[{model: resnet, fusion: single, alpha: 1}]", "rows.0.alpha", "has no experts"),
        ("rows=[{model: resnet, fusion: single, control: frozen}]", "rows.0.control", "no experts"),
        ("rows=[{model: resnet, fusion: concatenation, control: ice}]", "rows.0.control", "frozen"),
        ("controls=[frosen]", "controls.0", "frozen"),
        ("controls=[detached]", "controls", "nothing else would train its experts"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, override: str, field: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, override, "fusion.alpha=0" if "detached" in override else "seed=1")
    assert field in str(caught.value) and words in str(caught.value)


def test_a_single_network_waits_for_nobody_and_needs_no_experts(tmp_path: Path) -> None:
    lone = recipe(tmp_path, "rows=[{model: resnet, fusion: single}]")
    (task,) = plan_study(lone, "r").tasks
    assert (task.needs, task.epochs, task.kind) == ((), lone.experts.epochs, "row")


def test_only_finds_controls(tmp_path: Path) -> None:
    study = plan_study(recipe(tmp_path, ALL), "r").matching(["resnet/*-frozen"])
    rows = [task.name for task in study.tasks if isinstance(task, RowTask)]
    assert rows == ["task-2-resnet-concatenation-frozen", "task-5-resnet-simpleAddition-frozen"]


# ------------------------------------------------------------------ what detached means


def gradients(*, detached: bool) -> dict[str, torch.Tensor]:
    """Of the fused loss alone."""
    torch.manual_seed(0)
    experts = [build_expert("resnet", 4, width=8, blocks=[1]) for _ in range(2)]
    fusion = build_fusion("concatenation", 2, experts[0].feature_dim)
    model = FusionModel(experts, fusion, 4, detached=detached)
    functional.cross_entropy(model(torch.randn(4, 3, 16, 16)).logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_fused_loss_of_a_detached_model_reaches_no_expert() -> None:
    free, detached = gradients(detached=False), gradients(detached=True)
    assert any(name.startswith("experts.") for name in free)
    assert not any(name.startswith("experts.") for name in detached)
    for name, gradient in detached.items():  # fusion and head learn as ever
        assert torch.equal(gradient, free[name])


# ------------------------------------------------------------------ a study with all of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    done = alone("train", write_recipe(folder), *WORDS, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


WORDS = (ROWS, ALL, "logs.tensorboard=false", "fusion.augmentation=none", "fusion.experts_lr=0.001")


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    study = plan_study(load_recipe(write_recipe(folder), WORDS), "tiny.yaml")
    out = dataclasses.replace(study.layout, output_dir=folder / "out")
    places = {"checkpoint_dir": out.expert_checkpoints, "splits_dir": out.splits}
    return dataclasses.replace(study, layout=out, **places)


def row_dir(folder: Path, variant: str) -> Path:
    return folder / "out/resnet_fusions" / variant


def test_frozen_experts_leave_as_they_came(folder: Path) -> None:
    for k in range(2):
        name = f"expert_{k}_best.pth"
        before, frozen, tuned = (
            state_hash(load_expert(place / name).state_dict())
            for place in (
                folder / "out/expert_checkpoints/resnet",
                row_dir(folder, "concatenation-frozen") / "experts",
                row_dir(folder, "concatenation") / "experts",
            )
        )
        assert frozen == before != tuned


def test_the_single_network_saw_what_experts_and_fusion_saw(study: Study, folder: Path) -> None:
    _, splits = load_data(study, lambda text: None)
    everything = set(splits.fusion_train.tolist())
    for part in splits.expert_train:
        everything |= set(part.tolist())
    assert splits.everything.tolist() == sorted(everything)
    assert not everything & set(splits.fusion_val.tolist())
    log = (folder / "out/csv_logs/resnet_fusions/resnet_single_training_log.csv").read_text()
    assert len(log.splitlines()) == 1 + study.recipe.experts.epochs


def test_the_single_network_answers_as_its_manifest_says(study: Study, folder: Path) -> None:
    data, _ = load_data(study, lambda text: None)
    network = load_single(row_dir(folder, "single"))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (data.mean, data.std))
    with torch.no_grad():
        _, logits = network((data.test_images.float() / 255 - mean) / std)
    accuracy = 100 * float((logits.argmax(1) == data.test_labels).double().mean())
    manifest = read_manifest(row_dir(folder, "single") / "manifest.json")
    assert manifest.test.pop("fused") == pytest.approx(accuracy)
    assert manifest.test == {"images": len(data.test_labels), "differences": {}}
    assert manifest.components.keys() == {"network"}


def test_a_single_network_is_no_fusion_model(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a single network; load_expert\(.*network_best"):
        load_model(row_dir(folder, "single"))


def test_a_damaged_single_network_is_noticed(folder: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "network_best.pth"):
        (tmp_path / name).write_bytes((row_dir(folder, "single") / name).read_bytes())
    load_single(tmp_path)
    other = row_dir(folder, "concatenation") / "experts/expert_0_best.pth"
    (tmp_path / "network_best.pth").write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load_single(tmp_path)


def test_a_row_and_its_controls_begin_alike(folder: Path) -> None:
    """They share seed, batches and initial weights: the first epoch of all sees the same images."""

    def first_line(variant: str) -> dict[str, str]:
        path = folder / f"out/csv_logs/resnet_fusions/resnet_{variant}_training_log.csv"
        header, line, *_ = path.read_text().splitlines()
        return dict(zip(header.split(","), line.split(","), strict=True))

    row, detached = first_line("concatenation"), first_line("concatenation-detached")
    assert row["train_loss"] != detached["train_loss"]
    assert float(row["train_loss"]) == pytest.approx(float(detached["train_loss"]), rel=0.01)
    assert detached["fusion_type"] == "concatenation-detached"


def test_a_detached_row_is_of_the_epoch_that_averaging_selects(folder: Path) -> None:
    """It reports the mean of its experts' probabilities; other rows report their fused head."""
    for variant in ("concatenation", "concatenation-detached", "concatenation-frozen"):
        manifest = read_manifest(row_dir(folder, variant) / "manifest.json")
        path = folder / f"out/csv_logs/resnet_fusions/resnet_{variant}_training_log.csv"
        lines = list(csv.DictReader(path.open()))
        selected = lines[manifest.epoch - 1 if manifest.epoch else 0]
        assert manifest.val_accuracy == pytest.approx(float(selected["val_accuracy"]))
        known = manifest.validation.get("selected_by")
        assert known == ("mean_probabilities" if "detached" in variant else None)


def test_the_results_set_each_row_beside_its_controls(folder: Path) -> None:
    text = (folder / "out/results.md").read_text()
    assert "Does fusion itself help?" in text
    accuracies = {
        variant: read_manifest(row_dir(folder, variant) / "manifest.json").test
        for variant in ("concatenation", "concatenation-frozen", "concatenation-detached", "single")
    }
    cells = [
        accuracies["concatenation"]["fused"],
        accuracies["concatenation-frozen"]["fused"],
        accuracies["concatenation-detached"]["mean_probabilities"],
        accuracies["single"]["fused"],
    ]
    line = "| resnet | concatenation | 42 | 1 | " + " | ".join(f"{c:.0f}" for c in cells) + " |"
    assert line in text.splitlines()


def test_a_finished_study_is_left_alone(folder: Path) -> None:
    paths = sorted(row_dir(folder, "").rglob("*.pth"))
    before = [path.stat().st_mtime_ns for path in paths]
    done = alone("train", folder / "tiny.yaml", *WORDS, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in paths] == before


# ------------------------------------------------------------------ the table


def result(method: str, *, seed: int = 1, control: str | None = None, **numbers: float) -> Result:
    names = {"task": f"task-{method}", "model": "resnet", "fusion": method, "variant": method}
    return Result(**names, control=control, seed=seed, alpha=1.0, top1=numbers)


def test_controls_of_another_seed_do_not_count() -> None:
    rows = [
        result("concatenation", fused=80.0),
        result("concatenation-frozen", control="frozen", seed=2, fused=70.0),
        result("single", seed=1, fused=60.0),
    ]
    (line,) = controls_table(rows).lines()
    assert [cell.text for cell in line[-4:]] == ["80.00", "n/a", "n/a", "60.00"]


def test_without_controls_there_is_no_table() -> None:
    assert not controls_table([result("concatenation", fused=80.0)]).items


def test_what_rows_and_controls_cost_stands_once_for_all_seeds() -> None:
    cost = Cost(parameters=3_720, macs=594_280, images_seen=113, steps=16, image_passes=236)
    frozen = dataclasses.replace(cost, image_passes=140)
    rows = [
        dataclasses.replace(each, cost=of)
        for seed in (1, 2)
        for each, of in (
            (result("concatenation", seed=seed, fused=80.0), cost),
            (result("concatenation-frozen", control="frozen", seed=seed, fused=70.0), frozen),
            (result("single", seed=seed, fused=60.0), None),  # an older version trained it
        )
    ]
    found = [[cell.text for cell in line] for line in costs_table(rows).lines()]
    assert found == [
        ["resnet", "concatenation", "fused", "113", "16", "236", "594,280", "3,720"],
        ["resnet", "concatenation-frozen", "experts frozen", *found[0][3:5], "140", *found[0][6:]],
        ["resnet", "-", "one network", *["n/a"] * 5],
    ]
    assert not costs_table(rows[:1]).items  # nothing beside it
    assert not costs_table([dataclasses.replace(each, cost=None) for each in rows]).items
