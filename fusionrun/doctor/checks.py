"""The study: its data, splits, experts and earlier results are what they should be."""

from collections.abc import Iterator

from fusionrun.common.text import plural
from fusionrun.data.datasets import Dataset
from fusionrun.data.split_files import HOLDOUT_FILE, record_file
from fusionrun.data.splits import Splits
from fusionrun.launch.checks.finding import Finding, split_message
from fusionrun.launch.resume import is_done, require_own, resume_path
from fusionrun.study.recipe import RecipeError
from fusionrun.study.stored import join_stored
from fusionrun.study.study import Study
from fusionrun.training.checkpoint import CheckpointError, ResumeFile
from fusionrun.training.errors import TaskError
from fusionrun.training.identity import IdentityError

# ---------------------------------------------------------------- data and splits


def check_data(data: Dataset) -> Iterator[Finding]:
    """What the loaded data set consists of, and what loading it had to leave out."""
    side = data.train_images.shape[-1]
    found = (
        f"{data.name}: {len(data.train_labels)} training and {len(data.test_labels)} test images "
        f"of {side}x{side}, {len(data.classes)} classes"
    )
    yield Finding("data", "pass", found)
    for note in data.notes:
        yield Finding("data", "warn", note, "fix the data, or know it when you read the results")


def check_splits(study: Study, splits: Splits) -> Iterator[Finding]:
    """No image is on two sides of a line that results depend on."""
    experts = {int(index) for part in splits.expert_train for index in part}
    train, validation = set(splits.fusion_train.tolist()), set(splits.fusion_val.tolist())
    overlaps = {
        "an expert's training and the holdout": experts & (train | validation),
        "fusion training and validation": train & validation,
    }
    for sides, shared in overlaps.items():
        if shared:
            advice = "set data.splits_dir to another folder, where new splits are made"
            found = f"{plural(len(shared), 'image')} shared by {sides}"
            yield Finding("splits", "fail", found, advice)
    if any(overlaps.values()):
        return
    sizes = sorted({len(part) for part in splits.expert_train})
    each = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    if record_file(study.splits_dir).is_file():
        origin = f"as stored in {study.splits_dir}"
    elif (study.splits_dir / HOLDOUT_FILE).is_file():
        origin = f"from the holdout in {study.splits_dir}"
    else:
        origin = f"`train` writes them to {study.splits_dir}"
    found = (
        f"no overlap: each expert {each} images, fusion {len(train)}, validation "
        f"{len(validation)}; {origin}"
    )
    yield Finding("splits", "pass", found)


# ---------------------------------------------------------------- earlier results


def finished_epochs(study: Study) -> tuple[dict[str, int], list[Finding]]:
    """({task: epochs that an earlier launch did}, what is worth saying about that)."""
    done = {task.name: 0 for task in study.tasks}
    try:  # as `train` does before it begins
        join_stored(study.recipe, study.layout)
        require_own(study)
    except (RecipeError, IdentityError) as error:
        return done, [Finding("earlier results", "fail", *split_message(str(error)))]
    findings = []
    for task in study.tasks:
        damage = ""
        try:
            if is_done(study, task):
                done[task.name] = task.epochs
                continue
            path = resume_path(study, task)
            state, damage = ResumeFile(path).load()
            if state is not None:  # what follows raises as the task itself would
                study.identity(task).require_same(path, state.get("settings", {}))
                done[task.name] = min(int(state["epoch"]), task.epochs - 1)
        except (TaskError, CheckpointError) as error:
            found, advice = split_message(str(error))
            advice = advice or f"move it away, and {task.name} starts over"
            findings.append(Finding("earlier results", "fail", found, advice))
            continue
        if damage:
            epochs = done[task.name]
            advice = f"{task.name} resumes after epoch {epochs}" if epochs else "it starts over"
            findings.append(Finding("earlier results", "warn", damage, advice))
    finished = sum(done[task.name] == task.epochs for task in study.tasks)
    begun = sum(0 < done[task.name] < task.epochs for task in study.tasks)
    if finished or begun:
        found = f"{finished} of {plural(len(study.tasks), 'task')} done, {begun} begun"
        findings.append(Finding("earlier results", "pass", found))
    return done, findings
