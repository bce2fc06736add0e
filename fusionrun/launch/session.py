"""How a launch begins: it belongs to its output directory, nobody else works on its rows."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
from torch.distributed import Store

from fusionrun.common.atomic_files import sweep_temporaries, write_json, write_text
from fusionrun.common.distributed import LaunchError, RankInfo, choose_device, exchange
from fusionrun.common.locks import locked
from fusionrun.common.typed_fields import build, plain
from fusionrun.launch.preflight import require_startable
from fusionrun.launch.resume import as_found, is_reusable, require_own
from fusionrun.launch.row_locks import is_alone, lock_rows
from fusionrun.monitor.record import read_outcome, write_outcome
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import Recipe, RecipeError
from fusionrun.study.recipe_yaml import dump_recipe
from fusionrun.study.rows import Row
from fusionrun.study.stored import join_stored
from fusionrun.study.study import Study
from fusionrun.training.identity import IdentityError


@dataclass
class Session:
    """A launch that may begin, as one rank sees it."""

    study: Study  # with all rows of the output directory; its tasks are this launch's
    device: torch.device
    locks: list[TextIO]  # rank 0's; the kernel frees them when its process ends, however it ends

    def close(self) -> None:
        """Let others work on these rows."""
        for lock in self.locks:
            lock.close()


@dataclass(frozen=True)
class Opened:
    """What rank 0 tells the others, and each tells rank 0: why it can't start."""

    problem: str = ""
    is_recipe: bool = False  # the problem is one of the recipe, not of the machine
    recipe: str = ""  # the study's with the folder's other rows, as JSON; "": as each has it
    tasks: tuple[str, ...] = ()  # names of those to work on
    launch: str = ""  # Layout.launch


def open_session(
    study: Study,
    rank_info: RankInfo,
    store: Store,
    check_stop: Callable[[], None],
    *,
    only_failed: bool,
) -> Session:
    """Begin the launch of `study`'s tasks, or of those of its rows that failed in the last one.

    Nothing is written before it's sure that the launch can start and belongs to the output
    directory. Raises RecipeError when it doesn't, LaunchError when something else is in the way;
    on every rank when any rank can't start: all leave together. `check_stop` may raise while the
    ranks, which meet through `store`, wait for each other.
    """
    device, own = torch.device("cpu"), Opened()
    locks: list[TextIO] = []
    try:
        device = choose_device(rank_info, study.recipe.runtime.device)
        _check_packages(study)
        if rank_info.rank == 0:
            own, study, locks = _open(study, rank_info, only_failed)
    except (RecipeError, IdentityError) as error:
        own = Opened(str(error), is_recipe=True)
    except LaunchError as error:
        own = Opened(str(error))
    except OSError as error:
        own = Opened(f"{error.filename or study.layout.output_dir}: {error.strerror or error}")
    words = exchange(store, rank_info, "session", json.dumps(plain(own)), check_stop)
    told = [build(Opened, json.loads(text)) for text in words]
    for rank, each in enumerate(told):
        if each.problem:
            text = each.problem if rank == 0 else f"rank {rank}: {each.problem}"
            raise RecipeError(text) if each.is_recipe else LaunchError(text)
    if rank_info.rank > 0:
        study = _as_told(study, told[0])
    return Session(study, device, locks)


def _open(
    study: Study, rank_info: RankInfo, only_failed: bool
) -> tuple[Opened, Study, list[TextIO]]:
    """Rank 0's part: (what the others need to know, the study to work on, locks)."""
    is_first_attempt, recipe_lock = rank_info.restarts == 0, study.layout.recipe_lock
    can_lock = os.access(recipe_lock, os.W_OK)  # else nobody has begun here, or nobody can
    with locked(recipe_lock) if can_lock else nullcontext():
        asked = _with_stored_rows(study, in_use=can_lock and not is_alone(study.layout))
    if is_first_attempt:  # what has run once needs no second look
        require_own(asked)  # before anything is locked: a refused launch leaves no trace
        require_startable(asked, rank_info, lambda text: print(f"fusionrun: {text}", flush=True))
    study.layout.state.mkdir(parents=True, exist_ok=True)
    with locked(recipe_lock):
        # another launch may just have added some
        asked = _with_stored_rows(study, in_use=not is_alone(study.layout))
        selection = asked.layout.selection(asked.tasks[0].name)
        if only_failed:
            failed = _failed_rows(asked, selection, is_first_attempt=is_first_attempt)
            asked = asked.only(failed)
        done = {task.name for task in asked.tasks if is_reusable(asked, task)}
        asked = _without_needless_experts(asked, done)
        locks, layout = lock_rows(asked, done, rank_info)
        asked = replace(asked, layout=layout)
        own_locks = {Path(lock.name).stem for lock in locks}
        _clean_up(asked, done, own_locks, is_first_attempt=is_first_attempt)
        if only_failed:
            write_json(selection, [row.index for row in failed])
        write_text(layout.recipe, dump_recipe(asked.recipe))
    recipe = json.dumps(plain(asked.recipe)) if asked.recipe != study.recipe else ""
    tasks = tuple(task.name for task in asked.tasks)
    return Opened(recipe=recipe, tasks=tasks, launch=layout.launch), asked, locks


def _with_stored_rows(study: Study, *, in_use: bool) -> Study:
    """The study with all rows of its output directory, for a launch of the same tasks."""
    joined = join_stored(study.recipe, study.layout, in_use=in_use)
    if joined == study.recipe:
        return study
    asked = {(task.model, task.row.variant) for task in study.row_tasks}
    whole = plan_study(joined, study.name)
    return whole.only([row for row in whole.rows if (row.model, row.variant) in asked])


def _without_needless_experts(study: Study, done: Collection[str]) -> Study:
    """Without the experts that were removed and that only finished rows started from."""
    needed = {need for task in study.row_tasks if task.name not in done for need in task.needs}
    return study.with_tasks({*done, *needed, *(task.name for task in study.row_tasks)})


def _as_told(study: Study, told: Opened) -> Study:
    """The study as rank 0 has it."""
    if told.recipe:
        study = plan_study(build(Recipe, json.loads(told.recipe)), study.name)
    layout = replace(study.layout, launch=told.launch)
    return replace(study.with_tasks(told.tasks), layout=layout)


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


def _check_packages(study: Study) -> None:
    """Weights & Biases isn't among the requirements: whoever asks for it brings it."""
    mode = study.recipe.logs.wandb
    if mode != "off" and importlib.util.find_spec("wandb") is None:
        raise LaunchError(
            f"{study.name}: logs.wandb is {mode}, but the package isn't installed; "
            f"run `pip install wandb`, or set logs.wandb=off"
        )


def _clean_up(
    study: Study, done: Collection[str], own_locks: Collection[str], *, is_first_attempt: bool
) -> None:
    """Clear what an earlier launch of these tasks left unfinished."""
    layout = study.layout
    if not layout.launch and is_alone(layout, own_locks):
        sweep_temporaries(layout.output_dir)
        shutil.rmtree(layout.launches, ignore_errors=True)
    for path in layout.heartbeat(0).parent.glob("*.json"):
        path.unlink()
    for task in study.tasks:
        if is_first_attempt:  # torchrun's restarts count crashes, a person's new start doesn't
            layout.crashes(task.name).unlink(missing_ok=True)
        outcome = layout.outcome(task.name)
        found = read_outcome(outcome)
        if found is not None and not (found.state == "done" and task.name in done):
            outcome.unlink()
        if task.name in done:
            standing = as_found(study, task, found)
            if standing != found:
                write_outcome(outcome, standing)
