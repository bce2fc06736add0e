"""The last lines of a launch."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fusionrun.common.distributed import read_rank_info
from fusionrun.common.exit_status import ExitStatus
from fusionrun.evaluation.results import collect_results
from fusionrun.launch.last_words import print_last_words
from fusionrun.monitor.record import Outcome, Record, write_outcome
from fusionrun.study.stored import stored_study
from fusionrun.study.study import Study
from tests.tiny import copy_study


@pytest.fixture
def study(trained_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.delenv("FUSIONRUN_CALLED_AS", raising=False)
    monkeypatch.setattr(sys, "argv", ["/bin/fusionrun", "train", "my.yaml"])
    return stored_study(copy_study(trained_study, tmp_path / "my out"))


def said(study: Study, code: ExitStatus, *, lost_peers: bool = False, job: str = "") -> list[str]:
    console = Console(file=(file := io.StringIO()), width=120)
    info = replace(read_rank_info({}), job_id=job or None)
    results = collect_results(study)
    print_last_words(study, results, code, Record(), console, info, lost_peers=lost_peers)
    return file.getvalue().splitlines()


def test_done_names_the_next_commands(study: Study) -> None:
    (study.layout.output_dir / "tensorboard").mkdir()
    lines = said(study, ExitStatus.DONE)
    out = study.layout.output_dir
    start = lines.index(f"all rows done. Results: {out}/results.md")
    assert [line.split("  ")[1] for line in lines[start + 2 :]] == [
        f"fusionrun evaluate '{out}'",
        f"fusionrun report '{out}'",
        f"tensorboard --logdir '{out}/tensorboard'",
    ]


def test_done_with_a_part_says_that_it_is_a_part(study: Study) -> None:
    row = study.row_tasks[0]
    study.layout.row(row.model, row.row.variant).manifest.unlink()
    part = study.only([task.row for task in study.row_tasks[1:3]])
    text = "\n".join(said(part, ExitStatus.DONE))
    assert "2 rows of this launch done, 1 other of the study not yet" in text
    assert "all rows done" not in text


def test_failures_name_a_log_for_each_reason_and_the_command(study: Study) -> None:
    tasks = study.row_tasks
    for task, note in zip(tasks, ["no data", "no data", "out of memory"], strict=False):
        write_outcome(study.layout.outcome(task.name), Outcome("failed", note=note))
    lines = said(study, ExitStatus.ROW_FAILED)
    logs = [study.layout.task_log(tasks[index].name) for index in (0, 2)]
    assert [line for line in lines if line.startswith("failed: ")] == [
        f"failed: {tasks[0].name} and 1 more for the same reason; log: {logs[0]}",
        f"failed: {tasks[2].name}; log: {logs[1]}",
    ]
    assert lines[-2].startswith("some tasks failed; the same command runs them again")
    assert lines[-1] == "  fusionrun train my.yaml"
    assert not any("fusionrun report" in line for line in lines)


def test_a_stop_names_the_command_but_not_a_jobs(study: Study) -> None:
    assert said(study, ExitStatus.STOPPED) == [
        "stopped before the end; the same command resumes from here",
        "  fusionrun train my.yaml",
    ]
    assert len(said(study, ExitStatus.STOPPED, job="4711")) == 1
    (line,) = said(study, ExitStatus.STOPPED, lost_peers=True)
    assert "another rank has died" in line
