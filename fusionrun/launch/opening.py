"""What rank 0 does for all when a launch begins: look, claim, clear away, write down."""

import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.locks import locked
from fusionrun.common.typed_fields import plain
from fusionrun.launch.checks.controls import check_controls
from fusionrun.launch.preflight import require_startable
from fusionrun.launch.resume import as_found, is_reusable, require_own, require_own_experts
from fusionrun.launch.row_locks import BusyError, Claim, claim_rows, is_alone, release, sweep
from fusionrun.monitor.record import read_outcome, write_outcome
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import dump_for_study
from fusionrun.study.rows import Row
from fusionrun.study.stored import join_stored
from fusionrun.study.study import Study

# seconds that a launch waits for one that may be just ending
PATIENCE, RESTART_PATIENCE = 6.0, 60.0


@dataclass(frozen=True)
class Opened:
    """What rank 0 tells the others, and each tells rank 0: why it can't start."""

    problem: str = ""
    is_recipe: bool = False  # the problem is one of the recipe, not of the machine
    recipe: str = ""  # the study's with the folder's other rows, as JSON; "": as each has it
    tasks: tuple[str, ...] = ()  # names of those to work on
    launch: str = ""  # Layout.launch
    locks: tuple[str, ...] = ()  # files that rank 0 has locked
    process: str = ""


def open_launch(
    study: Study, rank_info: RankInfo, only_failed: bool, check_stop: Callable[[], None]
) -> tuple[Opened, Study, Claim]:
    """Rank 0's part: (what the others need to know, the study to work on, what is locked).

    `check_stop` may raise while another launch is waited for.
    """
    is_first_attempt, recipe_lock = rank_info.restarts == 0, study.layout.recipe_lock
    can_lock = os.access(recipe_lock, os.W_OK)  # else nobody has begun here, or nobody can
    with locked(recipe_lock) if can_lock else nullcontext():
        asked = _with_stored_rows(study, in_use=can_lock and not is_alone(study.layout))
    if is_first_attempt:  # what has run once needs no second look
        # joined with others, the rows are listed one by one, and no controls are left to look at
        for finding in check_controls(study) if not asked.recipe.controls else ():
            _say(finding.line)
        require_own(asked)  # before anything is locked: a refused launch leaves no trace
        require_startable(asked, rank_info)
    study.layout.state.mkdir(parents=True, exist_ok=True)
    patience = PATIENCE if is_first_attempt else RESTART_PATIENCE
    started = None
    while True:
        try:
            with locked(recipe_lock):  # not while waiting: who ends writes results under it
                return _claim(study, rank_info, only_failed)
        except BusyError as busy:
            if started is None:
                started = time.monotonic()
                _say(f"{busy}. Waiting {patience:.0f} s, in case it is just ending")
            if time.monotonic() - started > patience:
                raise
        check_stop()
        time.sleep(0.25)


def _say(text: str) -> None:
    print(f"fusionrun: {text}", flush=True)


def _claim(study: Study, rank_info: RankInfo, only_failed: bool) -> tuple[Opened, Study, Claim]:
    """As `open_launch`, while the recipe is locked. Raises BusyError."""
    is_first_attempt = rank_info.restarts == 0
    # another launch may just have added some
    asked = _with_stored_rows(study, in_use=not is_alone(study.layout))
    selection = asked.layout.selection(asked.tasks[0].name)
    if only_failed:
        failed = _failed_rows(asked, selection, is_first_attempt=is_first_attempt)
        asked = asked.only(failed)
    done = {task.name for task in asked.tasks if is_reusable(asked, task)}
    asked = _without_needless_experts(asked, done)
    claim = claim_rows(asked, done, rank_info)
    asked = replace(asked, layout=claim.layout)
    with ExitStack() as undo:
        undo.callback(release, claim.locks, forget=True)
        if is_first_attempt:
            require_own_experts(asked)  # another study may just have trained some there
        _clean_up(asked, done, claim, is_first_attempt=is_first_attempt)
        if only_failed:
            write_json(selection, [row.index for row in failed])
        write_text(claim.layout.recipe, dump_for_study(asked.recipe))
        undo.pop_all()
    own = Opened(
        recipe=json.dumps(plain(asked.recipe)) if asked.recipe != study.recipe else "",
        tasks=tuple(task.name for task in asked.tasks),
        launch=claim.layout.launch,
        locks=tuple(str(lock.path) for lock in claim.locks),
    )
    return own, asked, claim


def _with_stored_rows(study: Study, *, in_use: bool) -> Study:
    """The study with all rows of its output directory, for a launch of the same tasks."""
    joined = join_stored(study.recipe, study.layout, in_use=in_use)
    if joined == study.recipe:
        return study
    asked = {task.row.experiment for task in study.row_tasks}
    whole = plan_study(joined, study.name)
    return whole.only([row for row in whole.rows if row.experiment in asked])


def _without_needless_experts(study: Study, done: Collection[str]) -> Study:
    """Without the experts that were removed and that only finished rows started from."""
    needed = {need for task in study.row_tasks if task.name not in done for need in task.needs}
    return study.with_tasks({*done, *needed, *(task.name for task in study.row_tasks)})


def _failed_rows(study: Study, selection: Path, *, is_first_attempt: bool) -> list[Row]:
    """The launch's rows that failed in the last one; restarts keep to those it began with."""
    if not is_first_attempt and selection.exists():
        return [study.rows[index] for index in json.loads(selection.read_text())]
    outcomes = {t.row: read_outcome(study.layout.outcome(t.name)) for t in study.row_tasks}
    failed = [row for row, found in outcomes.items() if found and found.state == "failed"]
    if not failed:
        raise LaunchError(
            f"{study.layout.output_dir}: no row failed in the last launch, so --rerun failed has "
            f"nothing to do; without it, everything that isn't done is run"
        )
    return failed


def _clean_up(study: Study, done: Collection[str], claim: Claim, *, is_first_attempt: bool) -> None:
    """Clear what an earlier launch of these tasks left unfinished."""
    layout = study.layout
    if claim.is_alone:
        sweep(claim)
        shutil.rmtree(layout.launches, ignore_errors=True)
    if is_first_attempt:
        shutil.rmtree(layout.rank_device(0).parent, ignore_errors=True)
    for path in layout.heartbeat(0).parent.glob("*.json"):
        path.unlink()
    for task in study.tasks:
        if is_first_attempt:  # torchrun's restarts count crashes, a person's new start doesn't
            layout.crashes(task.name).unlink(missing_ok=True)
        outcome = layout.outcome(task.name)
        found = read_outcome(outcome)
        stands = "done" if task.name in done else "" if is_first_attempt else "failed"
        if found is not None and found.state != stands:
            outcome.unlink()
        if task.name in done:
            standing = as_found(study, task, found)
            if standing != found:
                write_outcome(outcome, standing)
