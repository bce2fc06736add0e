"""Data, splits, experts and earlier results: what passes, and what doesn't."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusionrun.components.store import load_component
from fusionrun.doctor import checks, experts
from fusionrun.study.context import open_context
from fusionrun.study.paths import expert_file
from fusionrun.study.rows import Member
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task
from fusionrun.training import checkpoint
from fusionrun.training.errors import StopRequested
from tests.unit.doctor.one_row import (
    CPU,
    change,
    copy_of,
    examine,
    execute,
    files_below,
    only,
    plan,
    states,
)


def test_data_and_splits_that_are_fine() -> None:
    findings = examine(plan())
    assert only(findings, "data").found.startswith("synthetic: 160 training and 32 test images")
    splits = only(findings, "splits")
    assert splits.state == "pass" and "`train` writes them" in splits.found
    assert not Path("out").exists()


def test_missing_data_fails_and_the_rest_is_still_checked() -> None:
    findings = examine(plan("data.name=image_folder", "data.root=nowhere"))
    data = only(findings, "data")
    assert data.state == "fail" and "nowhere" in data.found and "data.root" in data.advice
    assert only(findings, "experts").state == "pass"
    assert only(findings, "time").state == "warn"


def test_what_loading_left_out_is_a_warning(trained: Path) -> None:
    context = open_context(copy_of(trained), CPU, 1, progress=lambda text: None)
    data = replace(context.data, notes=("2 files skipped",))
    assert states(checks.check_data(data)) == ["pass", "warn"]


def test_stored_splits_pass_and_stay_as_they_are(trained: Path) -> None:
    study = copy_of(trained)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    splits = only(examine(study), "splits")
    assert splits.state == "pass" and "as stored" in splits.found
    assert before == {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


def test_a_lone_holdout_is_only_read() -> None:
    Path("given").mkdir()
    np.save("given/fusion_holdout_indices.npy", np.arange(40))
    Path("given/split_meta.json").write_text('{"total_len": 160}')  # an earlier system's record
    splits = only(examine(plan("data.splits_dir=given")), "splits")
    assert splits.state == "pass" and "from the holdout in given" in splits.found
    assert files_below(Path("given")) == {"fusion_holdout_indices.npy", "split_meta.json"}


def test_overlapping_split_files_fail(trained: Path) -> None:
    study = copy_of(trained)
    pool, holdout = (
        study.splits_dir / f"{name}_indices.npy" for name in ("expert_train", "fusion_holdout")
    )
    indices = np.load(pool)
    indices[0] = np.load(holdout)[0]
    np.save(pool, indices)
    splits = only(examine(study), "splits")
    assert splits.state == "fail" and "shared with the holdout is 1" in splits.found
    assert str(pool) in splits.found and "set data.splits_dir to another folder" in splits.advice


def test_overlaps_are_proven_not_assumed(trained: Path) -> None:
    study = copy_of(trained)
    splits = open_context(study, CPU, 1, progress=lambda text: None).splits
    leaking = replace(splits, fusion_val=np.append(splits.fusion_val, splits.expert_train[0][:3]))
    (finding,) = checks.check_splits(study, leaking)
    assert finding.state == "fail" and finding.found.startswith("3 images shared by an expert's")
    trained_on = replace(splits, fusion_val=splits.fusion_train[:1])
    (finding,) = checks.check_splits(study, trained_on)
    assert finding.found == "1 image shared by fusion training and validation"


def test_experts_that_fit(trained: Path) -> None:
    study = copy_of(trained)
    findings = [finding for finding in examine(study) if finding.name == "experts"]
    assert states(findings) == ["pass"] and findings[0].found.startswith("resnet: 2 fit, right")


def test_two_experts_of_the_same_weights_are_a_warning(trained: Path) -> None:
    study = copy_of(trained)
    first, second = (expert_file(study.checkpoint_dir, "resnet", k) for k in range(2))
    shutil.copy(first, second)
    shutil.rmtree("out/resnet_fusions")
    warned, fit = (finding for finding in examine(study) if finding.name == "experts")
    assert warned.state == "warn" and f"{first} and {second.name} have the same" in warned.found
    assert fit.state == "pass" and fit.found.startswith("resnet: 2 fit")


def test_a_truncated_expert(trained: Path) -> None:
    study = copy_of(trained)
    path = expert_file(study.checkpoint_dir, "resnet", 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    failed, fine = (finding for finding in examine(study) if finding.name == "experts")
    assert failed.state == "fail" and str(path) in failed.found and "move it away" in failed.advice
    assert fine.found.startswith("resnet: 1 fit")


@pytest.mark.parametrize(
    ("values", "state", "found"),
    [
        ({"num_classes": 7}, "fail", "is for 7 classes"),
        ({"classes": ["a", "b", "c", "d"]}, "fail", "other classes: a, b, c, ... (4); here"),
        ({"mean": [0.1, 0.2, 0.3]}, "warn", "normalised with 0.1 0.2 0.3"),
        ({"image_size": 32}, "warn", "was trained on 32x32 images, here 16x16"),
    ],
)
def test_an_expert_of_other_data(
    values: dict[str, Any], state: str, found: str, trained: Path
) -> None:
    study = copy_of(trained)
    context = open_context(study, CPU, 1, progress=lambda text: None)
    change(expert_file(study.checkpoint_dir, "resnet", 0), **values)
    finding = next(iter(experts.examine_experts(context)))
    assert finding.state == state and found in finding.found and finding.advice


def test_a_bare_state_dict_is_fine_where_it_fits(trained: Path) -> None:
    study = copy_of(trained)
    context = open_context(study, CPU, 1, progress=lambda text: None)
    path = expert_file(study.checkpoint_dir, "resnet", 0)
    checkpoint.save(path, load_component(path, "expert")[1])
    (finding,) = experts.examine_experts(context)
    assert finding.state == "pass" and finding.found.endswith("; not saved by fusionrun")
    weights = checkpoint.load(path)
    weights["classifier.weight"] = weights["classifier.weight"][:, :-1]
    checkpoint.save(path, weights)
    assert "found shape" in next(iter(experts.examine_experts(context))).found


def test_a_finished_study_has_nothing_left_to_do(trained: Path) -> None:
    study = copy_of(trained)
    findings = examine(study)
    assert only(findings, "earlier results").found == "3 of 3 tasks done, 0 begun"
    assert only(findings, "time").found == "nothing is left to do"


def test_results_of_other_settings_fail(trained: Path) -> None:
    copy_of(trained)
    (earlier,) = (
        finding for finding in examine(plan("fusion.epochs=7")) if finding.name == "earlier results"
    )
    assert earlier.state == "fail" and "fusion.epochs: 2 there, 7 in this recipe" in earlier.found
    assert "choose another output_dir" in earlier.advice


def begin_expert(study: Study) -> tuple[Task, Path]:
    """An expert's training, stopped in its second epoch."""
    context = open_context(study, CPU, 1, progress=lambda text: None)
    task = study.expert_task(Member("resnet", 0))
    steps = iter(range(100))
    per_epoch = -(-len(context.splits.expert_train[0]) // 16)
    stopping = replace(context, stop_requested=lambda: next(steps) > per_epoch)
    with pytest.raises(StopRequested):
        execute(stopping, task)
    return task, study.layout.expert_resume("resnet", 0)


def test_what_was_begun_resumes() -> None:
    study = plan()
    task, resume = begin_expert(study)
    done, findings = checks.finished_epochs(study)
    assert done[task.name] == 1 and states(findings) == ["pass"]
    assert "0 of 3 tasks done, 1 begun" in findings[0].found
    resume.write_bytes(resume.read_bytes()[:100])
    done, findings = checks.finished_epochs(study)
    assert findings[0].state == "warn" and "resumes after epoch 1" in findings[0].advice
    checkpoint.ResumeFile(resume).previous.unlink()
    done, findings = checks.finished_epochs(study)
    assert findings[0].state == "warn" and "starts over" in findings[0].advice
    assert done[task.name] == 0
