"""How far a task has come while its newest state is still being written."""

import os
from pathlib import Path

import pytest

from fusionrun.launch.crashes import CRASHES, count_start, crashes_before
from fusionrun.launch.resume import require_own, resume_path
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.study import Study
from fusionrun.training.checkpoint import ResumeFile, save
from fusionrun.training.errors import TaskError
from tests.tiny import write_recipe


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return plan_study(load_recipe(write_recipe(tmp_path), []), "tiny")


@pytest.mark.parametrize("whichever", ["path", "previous"])
def test_a_task_that_gets_further_is_not_given_up(study: Study, whichever: str) -> None:
    """Killed while it writes a state, it leaves only the one before, under the other name."""
    task = study.tasks[0]
    file = ResumeFile(resume_path(study, task))
    for epoch in range(CRASHES + 2):
        where = getattr(file, whichever)
        save(where, {"epoch": epoch})
        os.utime(where, (1000.0 + epoch, 1000.0 + epoch))
        count_start(study, task, 0)
    for _ in range(CRASHES - 1):
        count_start(study, task, 0)
    with pytest.raises(TaskError, match="without getting further"):
        count_start(study, task, 0)


@pytest.mark.parametrize("whichever", ["path", "previous"])
def test_a_state_of_another_experiment_is_found_whichever_stands_there(
    study: Study, whichever: str
) -> None:
    file = ResumeFile(resume_path(study, study.tasks[0]))
    save(getattr(file, whichever), {"settings": {"model": "something else"}})
    with pytest.raises(TaskError, match="something else"):
        require_own(study)


def test_only_the_last_attempts_crashes_are_told(study: Study) -> None:
    """What was beside the task to blame may wait for its turn over several restarts."""
    first, second, *_ = study.tasks
    for task in (first, second):
        count_start(study, task, 1)
    (line,) = crashes_before(study)
    assert f"one of {first.name}, {second.name}" in line and "rank 1" in line
    count_start(study, first, 0)  # alone now, on another rank
    (line,) = crashes_before(study)
    assert line.startswith(f"{first.name} took its process (rank 0)")
    for _ in range(CRASHES - 2):
        count_start(study, first, 0)
    with pytest.raises(TaskError, match="without getting further"):
        count_start(study, first, 0)
    count_start(study, second, 0)
