"""What an earlier launch left of a task: its result, or a state that training resumes from."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fusionrun.components.manifest import Manifest, read_manifest
from fusionrun.components.read_checkpoint import peek_expert
from fusionrun.components.starting_experts import departure, require_origin
from fusionrun.components.store import peek_info, state_hash
from fusionrun.data.split_files import stored_split
from fusionrun.monitor.record import Outcome, read_outcome
from fusionrun.study.rows import Member
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.tables.headline import AVERAGING
from fusionrun.training.checkpoint import CheckpointError, ResumeFile, peek
from fusionrun.training.errors import TaskError
from fusionrun.training.identity import FINGERPRINT, HASH_DIGITS, SPLIT, WEIGHTS, upgraded


def is_done(study: Study, task: Task) -> bool:
    """Whether the task's result stands on disk, so that no launch does it again.

    Raises IdentityError when a row's result stands there but was made with other settings, and
    CheckpointError when its manifest can't be read.
    """
    if isinstance(task, ExpertTask):
        return study.expert_file(*task.member).exists()
    manifest = study.layout.row(task.model, task.row.variant).manifest
    if not manifest.is_file():
        return False
    study.identity(task).require_same(manifest, _of_manifest(read_manifest(manifest)))
    return True


def is_reusable(study: Study, task: Task) -> bool:
    """As `is_done`, but False where that is damaged or another experiment's: its task says so."""
    try:
        return is_done(study, task)
    except (TaskError, CheckpointError):
        return False


def ended_before(study: Study, task: Task, restarts: int) -> Outcome | None:
    """How a task ended that this attempt of the launch leaves as it is; None: it's open.

    It's done, or it failed before torchrun started the launch again: a person's next one tries it.
    """
    found = read_outcome(study.layout.outcome(task.name))
    if is_reusable(study, task):
        return found if found and found.state == "done" else Outcome("done")
    return found if restarts and found and found.state == "failed" else None


def resume_path(study: Study, task: Task) -> Path:
    """Where the task's resume state lies."""
    if isinstance(task, ExpertTask):
        return study.layout.expert_resume(*task.member)
    return study.layout.row(task.model, task.row.variant).checkpoint


def require_own(study: Study) -> None:
    """Raise IdentityError for the first result or resume state that another experiment made.

    Of the launch's tasks, by what the files say of themselves: the split on disk and the experts'
    weights are compared too, no data set is read. What can't be read is left to its task.
    """
    require_own_experts(study)
    data = _known_of_data(study)
    weights = cache(lambda member: expert_weights(study, member))
    for task in study.tasks:
        for path, fields in _left_behind(study, task):
            members = task.row.experts if isinstance(task, RowTask) and WEIGHTS in fields else ()
            own = [weights(member) for member in members]
            known = {WEIGHTS: own} if own and None not in own else {}
            study.identity(task, {**data, **known}).require_same(path, fields)


def require_own_task(study: Study, task: Task) -> None:
    """As `require_own`, of what the task would replace or begin with, when its turn has come."""
    is_done(study, task)
    if isinstance(task, RowTask):
        require_own_experts(study, task.row.experts)


def require_own_experts(study: Study, members: Collection[Member] | None = None) -> None:
    """As `require_own`, of the files of the experts that rows begin with, or of `members` alone.

    They are what this recipe would train, but for a set that experts.pattern names and experts
    that rows of this study have begun with. One of which this study trains a part must be its own:
    no row starts from some of its experts and some of another's.
    """
    data = _known_of_data(study)
    open_rows = [task for task in study.row_tasks if not is_reusable(study, task)]
    needed = {member for task in open_rows for member in task.row.experts}
    for task in study.tasks:
        if isinstance(task, ExpertTask) and (members is None or task.member in members):
            path, identity = study.expert_file(*task.member), study.identity(task, data)
            about, is_own_folder = peek_info(path), study.recipe.experts.checkpoint_dir is None
            is_free = task.member not in needed and not is_own_folder
            may_differ = (is_free or study.is_given(task.member)) and not _trains_some(study, task)
            if not may_differ and about and about.settings and departure(identity, about):
                may_differ = _has_rows_of(study, task.member)
            require_origin(identity, path, about, may_differ=may_differ)


def _has_rows_of(study: Study, member: Member) -> bool:
    """Whether rows of the study have begun with this expert as it is."""
    weights = expert_weights(study, member)
    return any(
        weights in fields.get(WEIGHTS, ())
        for task in study.row_tasks
        if member in task.row.experts
        for _, fields in _left_behind(study, task)
    )


def _trains_some(study: Study, expert: ExpertTask) -> bool:
    """Whether this study trains experts such as this one, or has trained some."""
    for task in study.tasks:
        if not isinstance(task, ExpertTask) or task.model != expert.model:
            continue
        if task.seed != expert.seed:
            continue
        outcome = read_outcome(study.layout.outcome(task.name))
        trained = outcome is not None and outcome.seconds is not None  # found ones took none
        if trained or not is_done(study, task) or ResumeFile(resume_path(study, task)).newest:
            return True
    return False


def _known_of_data(study: Study) -> dict[str, Any]:
    """What the split on disk says of the data."""
    split = stored_split(study.splits_dir)
    return {} if split is None else {FINGERPRINT: split.fingerprint, SPLIT: split.hash}


def expert_weights(study: Study, member: Member) -> str | None:
    """The hash of the expert that rows start from; None where it isn't there."""
    with torch.device("meta"):
        expert = study.build_expert(member.model, study.recipe.data.num_classes)
    file = peek_expert(expert, study.expert_file(*member))
    return None if file is None else state_hash(file.weights)[:HASH_DIGITS]


def as_found(study: Study, task: Task, before: Outcome | None) -> Outcome:
    """How a finished task stands by what it saved; `before`, if known, has what files don't tell.

    The numbers are the saved epoch's, which older versions' outcomes don't hold.
    """
    before, note = before or Outcome("done"), ""
    if isinstance(task, ExpertTask):
        saved = peek_info(study.expert_file(*task.member))
        note = departure(study.identity(task, _known_of_data(study)), saved)
        epoch, accuracy = (saved.epoch, saved.val_accuracy) if saved else (None, None)
        experts, averaging, images = None, None, None
    else:
        manifest = read_manifest(study.layout.row(task.model, task.row.variant).manifest)
        epoch, accuracy = manifest.epoch, manifest.val_accuracy
        told = ("experts", AVERAGING, "images")
        experts, averaging, images = (manifest.validation.get(key) for key in told)
    return replace(
        before,
        note=note,
        epoch=task.epochs,
        val_accuracy=accuracy,
        best=accuracy,
        val_images=before.val_images if images is None else images,
        best_epoch=epoch,
        gain=None if accuracy is None or averaging is None else accuracy - averaging,
        experts=tuple(experts or ()),
    )


def _left_behind(study: Study, task: Task) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """(file, stored fields) of a row's result and of the task's resume state, where readable."""
    if not isinstance(task, ExpertTask):
        manifest = study.layout.row(task.model, task.row.variant).manifest
        with suppress(CheckpointError):
            yield manifest, _of_manifest(read_manifest(manifest))
    path = ResumeFile(resume_path(study, task)).newest
    state = peek(path) if path else None
    if path and state is not None and isinstance(state.get("settings"), dict):
        yield path, upgraded(state["settings"])


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    """The stored fields, with what is known of the experts that the row started from."""
    return upgraded({"experts": manifest.experts_from or [], **manifest.settings})
