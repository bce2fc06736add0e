"""What an earlier launch left."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from pytest import approx

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import plain
from fusionrun.components.manifest import read_manifest
from fusionrun.launch.resume import as_found
from fusionrun.monitor.record import Outcome, read_outcome
from fusionrun.study.stored import stored_study
from fusionrun.tables.headline import AVERAGING
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
