"""What an earlier launch left of a task: its result, or a state that training resumes from."""

from pathlib import Path

from fusionrun.components.manifest import read_manifest
from fusionrun.study.paths import expert_file
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, Task
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.errors import TaskError


def is_done(study: Study, task: Task) -> bool:
    """Whether the task's result stands on disk, so that no launch does it again.

    Raises TaskError when a row's result stands there but was made with other settings.
    """
    if isinstance(task, ExpertTask):
        return expert_file(study.checkpoint_dir, task.model, task.expert).exists()
    manifest = study.layout.row(task.model, task.row.variant).manifest
    if not manifest.is_file():
        return False
    found = read_manifest(manifest)
    stored = {**found.settings, "experts": found.experts_from or []}
    study.identity(task).require_same(manifest, stored)
    return True


def is_reusable(study: Study, task: Task) -> bool:
    """As `is_done`, but False where a foreign or damaged result stands: its task will say so."""
    try:
        return is_done(study, task)
    except (TaskError, CheckpointError):
        return False


def resume_path(study: Study, task: Task) -> Path:
    """Where the task's resume state lies."""
    if isinstance(task, ExpertTask):
        return study.layout.expert_resume(task.model, task.expert)
    return study.layout.row(task.model, task.row.variant).checkpoint
