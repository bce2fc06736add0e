"""What an earlier launch left."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest import approx

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import plain
from fusionrun.components.manifest import read_manifest
from fusionrun.launch.resume import (
    as_found,
    is_done,
    is_reusable,
    require_own,
    require_own_task,
)
from fusionrun.monitor.record import Outcome, read_outcome
from fusionrun.study.paths import expert_file
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.stored import stored_study
from fusionrun.study.study import Study
from fusionrun.tables.headline import AVERAGING
from fusionrun.training.checkpoint import CheckpointError, load, save
from fusionrun.training.identity import IdentityError
from tests.tiny import copy_study


def test_a_finished_tasks_numbers_are_those_of_its_saved_epoch(trained_study: Path) -> None:
    """As the launch wrote them down, and as a later one finds them."""
    study = stored_study(trained_study)
    for task in study.row_tasks:
        row = study.layout.row(task.model, task.row.variant)
        manifest = read_manifest(row.manifest)
        with row.csv.open(newline="") as file:
            saved = list(csv.DictReader(file))[(manifest.epoch or 0) - 1]
        for before in (read_outcome(study.layout.outcome(task.name)), None):
            found = as_found(study, task, before)
            assert found == before or before is None
            assert found.best_epoch == int(saved["epoch"]) and found.epoch == task.epochs
            assert found.val_accuracy == found.best == approx(float(saved["val_accuracy"]))
            if not task.row.is_single:
                each = [float(saved[f"expert_{k}_accuracy"]) for k in range(len(found.experts))]
                assert list(found.experts) == approx(each) and each
                averaged = manifest.validation[AVERAGING]
                assert found.gain == found.val_accuracy - averaged
        assert found.seconds is None and found.rank is None  # only the outcome knew


def test_an_experts_numbers_are_its_files(trained_study: Path) -> None:
    study = stored_study(trained_study)
    expert = next(task for task in study.tasks if task.kind == "expert")
    known = read_outcome(study.layout.outcome(expert.name))
    assert known is not None and known.best_epoch and as_found(study, expert, known) == known
    found = as_found(study, expert, None)
    assert (found.val_accuracy, found.best_epoch) == (known.val_accuracy, known.best_epoch)
    assert found.epoch == expert.epochs


def test_an_older_outcome_is_put_right(trained_study: Path) -> None:
    """It held the last epoch's accuracy beside the saved one's, and no gain over averaging."""
    study = stored_study(trained_study)
    task = study.row_tasks[0]
    known = read_outcome(study.layout.outcome(task.name))
    assert known is not None
    older = replace(known, val_accuracy=1.0, experts=(2.0, 3.0), gain=None)
    assert as_found(study, task, older) == known


@pytest.mark.parametrize("validation", [{"fused": 50.0}, {"fused": 50.0, "experts": [1.0, 2.0]}])
def test_a_manifest_of_an_older_version_has_no_mean_of_probabilities(
    trained_study: Path, tmp_path: Path, validation: dict[str, object]
) -> None:
    study = stored_study(copy_study(trained_study, tmp_path / "out"))
    task = study.row_tasks[0]
    path = study.layout.row(task.model, task.row.variant).manifest
    write_json(path, plain(replace(read_manifest(path), validation=validation)))
    found = as_found(study, task, Outcome("done", seconds=7.0))
    assert (found.gain, found.seconds, len(found.experts)) == (
        *(None, 7.0),
        len(validation) - 1 and 2,
    )


@pytest.mark.parametrize(
    ("field", "other"), [("alpha", 3.0), ("fusion.epochs", 7), ("data.train_images", 99)]
)
def test_a_result_of_other_settings_is_nobodys_here(
    trained_study: Path, tmp_path: Path, field: str, other: object
) -> None:
    study = stored_study(copy_study(trained_study, tmp_path / "out"))
    task = study.row_tasks[0]
    path = study.layout.row(task.model, task.row.variant).manifest
    assert is_done(study, task) and is_reusable(study, task)
    manifest = read_manifest(path)
    write_json(path, plain(replace(manifest, settings={**manifest.settings, field: other})))
    with pytest.raises(IdentityError, match=rf"{path}: .*\({field}: {other} there, .* in this"):
        is_done(study, task)
    assert not is_reusable(study, task)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=str(path)):
        is_done(study, task)
    assert not is_reusable(study, task)
    path.unlink()
    assert not is_done(study, task)


# ------------------------------------------------------------------ experts of another recipe

ROWS = "rows=[{model: resnet, fusion: simpleAddition}, {model: resnet, fusion: TransformerBase}]"


@pytest.fixture
def out(trained_study: Path, tmp_path: Path) -> Path:
    return copy_study(trained_study, tmp_path / "out")


def another(out: Path, *overrides: str, output_dir: str = "another") -> Study:
    """A study that begins with the experts of the one in `out`."""
    places = (
        f"experts.checkpoint_dir={out / 'expert_checkpoints'}",
        f"data.splits_dir={out / 'splits'}",
    )
    where = (ROWS, "controls=[]", f"output_dir={out.parent / output_dir}", *places)
    return plan_study(load_recipe(out / "recipe.yaml", [*where, *overrides]), "another")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("experts.epochs=9", "experts.epochs: 2 there, 9 in this recipe"),
        ("seed=7", "seed: 42 there, 7 in this recipe"),
        ("experts.lr=0.3", "experts.lr: None there, 0.3 in this recipe"),
        ("experts.batch_size=8", "experts.batch_size: 16 there, 8 in this recipe"),
        ("experts.weight_decay=0.1", "experts.weight_decay: None there, 0.1 in this recipe"),
        ("experts.augmentation=none", "experts.augmentation: 'auto' there, 'none' in this recipe"),
        ("experts.mixing=mixup", "experts.mixing: 'cutmix' there, 'mixup' in this recipe"),
        ("experts.label_smoothing=0.2", "experts.label_smoothing: None there, 0.2 in this recipe"),
        ("models.resnet.lr=0.3", "models.resnet.lr: None there, 0.3 in this recipe"),
        ("models.resnet.dropout=0.3", "models.resnet.dropout: "),
    ],
)
def test_experts_of_another_recipe_are_refused_with_every_way_out(
    out: Path, override: str, said: str
) -> None:
    """A quick try must not become what a real launch begins with, wherever its experts lie."""
    study = another(out, override, "fusion.epochs=7")
    with pytest.raises(IdentityError) as refused:
        require_own(study)
    with pytest.raises(IdentityError):  # and once more when the row begins
        require_own_task(study, study.row_tasks[0])
    message = str(refused.value)
    path = out / "expert_checkpoints/resnet/expert_0_best.pth"
    assert message.startswith(f"{path}: was made with other settings ({said}")
    assert "Set them back" in message and "another experts.checkpoint_dir" in message
    assert "delete" not in message and "remove" not in message
    (given,) = [word for word in message.replace("'", " ").split() if "experts.pattern=" in word]
    require_own(another(out, override, "fusion.epochs=7", given))
    # the fields that say nothing of experts' training are free, and so is how it is computed
    require_own(another(out, "fusion.epochs=7", "experts.together=1", "fusion.experts_lr=0.1"))


def test_every_field_that_differs_is_named(out: Path) -> None:
    with pytest.raises(IdentityError) as refused:
        require_own(another(out, "experts.epochs=9", "seed=7", "experts.mixing=none"))
    for field in ("experts.epochs: 2 there", "seed: 42 there", "experts.mixing: 'cutmix' there"):
        assert field in str(refused.value)


def test_a_seed_of_experts_is_looked_for_in_its_own_folder(out: Path) -> None:
    rows = ROWS.replace("Base", "Base, expert_seed: 43")
    study = another(out, rows)
    require_own(study)
    folder = out / "expert_checkpoints/resnet"
    shutil.copytree(folder, folder / "seed-43")  # whoever did that
    with pytest.raises(IdentityError, match="seed: 42 there, 43 in this recipe"):
        require_own(another(out, rows))
    with pytest.raises(IdentityError, match="seed: 42 there, 43 in this recipe"):
        require_own(another(out, rows, "experts.pattern={model}/expert_{k}_best.pth"))


def test_experts_that_are_given_are_of_this_data(out: Path) -> None:
    """And all of them: none is trained by this recipe beside those of another one."""
    given = ("experts.pattern={model}/expert_{k}_best.pth", "experts.epochs=9")
    require_own(another(out, *given))
    with pytest.raises(IdentityError, match=r"data\.unique_fraction: 0\.15 there"):
        require_own(another(out, *given, "data.unique_fraction=0.1"))
    expert_file(out / "expert_checkpoints", "resnet", 1).unlink()
    with pytest.raises(IdentityError, match=r"experts\.epochs: 2 there, 9 in this recipe"):
        require_own(another(out, *given))


@pytest.mark.parametrize("pattern", ["{model}-{k}.pth", "{model}/own_{k}.pth"])
def test_a_pattern_of_other_files_says_nothing_of_ours(out: Path, pattern: str) -> None:
    with pytest.raises(IdentityError, match=r"experts\.epochs: 2 there, 9 in this recipe"):
        require_own(another(out, "experts.epochs=9", f"experts.pattern={pattern}"))


@pytest.mark.parametrize("settings", [None, {}])
def test_experts_that_do_not_say_how_they_were_trained_are_used(
    out: Path, settings: dict[str, Any] | None
) -> None:
    """Those of others, of an older version, or of a row; which is said."""
    for k in range(2):
        path = expert_file(out / "expert_checkpoints", "resnet", k)
        payload = load(path)
        save(path, payload["state_dict"] if settings is None else {**payload, "settings": settings})
    study = another(out, "experts.epochs=9")
    require_own(study)
    task = next(task for task in study.tasks if task.kind == "expert")
    said = "not saved by fusionrun"
    if settings is not None:
        said = "saved without the settings of their training"
    assert as_found(study, task, None).note == said


def test_rows_that_have_begun_with_such_experts_go_on(out: Path) -> None:
    """A study that was made while this wasn't refused, or that named them in an earlier launch."""
    before = another(out, "experts.epochs=9", output_dir="out")
    require_own(before)
    task = next(task for task in before.tasks if task.kind == "expert")
    note = as_found(before, task, None).note
    assert note == "trained with other settings (experts.epochs: 2 there, 9 in this recipe)"
    for k in range(2):  # but not with others than those
        path = expert_file(out / "expert_checkpoints", "resnet", k)
        payload = load(path)
        weights = {name: value + 1 for name, value in payload["state_dict"].items()}
        save(path, {**payload, "state_dict": weights})
    with pytest.raises(IdentityError, match=r"experts\.epochs: 2 there, 9 in this recipe"):
        require_own(before)
