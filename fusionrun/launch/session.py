"""How a launch begins: it belongs to its output directory, nobody else works on its rows."""

import fcntl
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist

from fusionrun.common.atomic_files import sweep_temporaries, write_json, write_text
from fusionrun.common.distributed import LaunchError, RankInfo, choose_device
from fusionrun.common.locks import locked
from fusionrun.common.typed_fields import build, plain
from fusionrun.launch.preflight import require_startable
from fusionrun.launch.resume import is_reusable, require_own
from fusionrun.monitor.record import Outcome, read_outcome, write_outcome
from fusionrun.study.paths import Layout
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import Recipe, RecipeError
from fusionrun.study.recipe_yaml import dump_recipe
from fusionrun.study.rows import Row
from fusionrun.study.stored import join_stored
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask
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


def open_session(study: Study, rank_info: RankInfo, *, only_failed: bool) -> Session:
    """Begin the launch of `study`'s tasks, or of those of its rows that failed in the last one.

    Nothing is written before it's sure that the launch can start and belongs to the output
    directory. Raises RecipeError when it doesn't, LaunchError when something else is in the way;
    on every rank when any rank can't start: all leave together.
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
    told = [own]
    if rank_info.is_distributed:
        told = told * rank_info.world_size
        dist.all_gather_object(told, own)
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
    with locked(recipe_lock, waiting=lambda: None) if can_lock else nullcontext():
        asked = _with_stored_rows(study, in_use=can_lock and not _is_alone(study.layout))
    require_own(asked)  # before anything is locked: a refused launch leaves no trace
    if is_first_attempt:  # what has run once needs no second look
        require_startable(asked, rank_info, lambda text: print(f"fusionrun: {text}", flush=True))
    study.layout.state.mkdir(parents=True, exist_ok=True)
    with locked(recipe_lock, waiting=lambda: None):
        # another launch may just have added some
        asked = _with_stored_rows(study, in_use=not _is_alone(study.layout))
        if only_failed:
            asked = asked.only(_failed_rows(asked, is_first_attempt=is_first_attempt))
        asked = _without_needless_experts(asked)
        locks, layout = _lock(asked, rank_info)
        asked = replace(asked, layout=layout)
        _clean_up(asked, is_first_attempt=is_first_attempt)
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


def _without_needless_experts(study: Study) -> Study:
    """Without the experts that were removed and that only finished rows started from."""
    open_rows = [task for task in study.row_tasks if not is_reusable(study, task)]
    needed = {need for task in open_rows for need in task.needs}
    return study.with_tasks(
        {
            task.name
            for task in study.tasks
            if not isinstance(task, ExpertTask) or task.name in needed or is_reusable(study, task)
        }
    )


def _as_told(study: Study, told: Opened) -> Study:
    """The study as rank 0 has it."""
    if told.recipe:
        study = plan_study(build(Recipe, json.loads(told.recipe)), study.name)
    layout = replace(study.layout, launch=told.launch)
    return replace(study.with_tasks(told.tasks), layout=layout)


def _failed_rows(study: Study, *, is_first_attempt: bool) -> list[Row]:
    """The rows that failed in the last launch; its restarts go on with those it began with."""
    path = study.layout.selection
    if is_first_attempt or not path.exists():
        outcomes = {row.index: read_outcome(study.layout.outcome(row.name)) for row in study.rows}
        failed = [index for index, found in outcomes.items() if found and found.state == "failed"]
        if not failed:
            raise LaunchError(
                f"{study.layout.output_dir}: no row failed in the last launch, so --rerun failed "
                f"has nothing to do; without it, everything that isn't done is run"
            )
        write_json(path, failed)
    return [study.rows[index] for index in json.loads(path.read_text())]


def _check_packages(study: Study) -> None:
    """Weights & Biases isn't among the requirements: whoever asks for it brings it."""
    mode = study.recipe.logs.wandb
    if mode != "off" and importlib.util.find_spec("wandb") is None:
        raise LaunchError(
            f"{study.name}: logs.wandb is {mode}, but the package isn't installed; "
            f"run `pip install wandb`, or set logs.wandb=off"
        )


# ---------------------------------------------------------------- who works here


def _lock(study: Study, rank_info: RankInfo) -> tuple[list[TextIO], Layout]:
    """Lock every row of the launch and the experts it may train: (locks, layout of the launch).

    Launches of other rows may work in the same folder at the same time. Raises LaunchError, naming
    who works on one of these.
    """
    layout = study.layout
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = f"host {rank_info.host}, pid {os.getpid()}, since {since}"
    first = _try_lock(layout.lock())
    if isinstance(first, str):  # beside another launch
        layout = replace(layout, launch=study.tasks[0].name)
    locks = [] if isinstance(first, str) else [first]
    experts = [task for task in study.tasks if isinstance(task, ExpertTask)]
    models = dict.fromkeys(task.model for task in experts if not is_reusable(study, task))
    names = [task.name for task in study.row_tasks] + [f"experts-{model}" for model in models]
    for name in names:
        lock = _try_lock(layout.lock(name))
        if isinstance(lock, str):
            for held in locks:
                held.close()
            raise LaunchError(
                f"{layout.output_dir}: another launch works here on {name} ({lock}); wait for it, "
                f"stop it, or choose another output_dir"
            )
        locks.append(lock)
    for lock in locks:
        lock.truncate(0)
        lock.write(f"{owner}\n")
        lock.flush()
    return locks, layout


def _try_lock(path: Path) -> TextIO | str:
    """The lock, or who holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        return holder
    return lock


def _is_alone(layout: Layout, own: Collection[str] = ()) -> bool:
    """Whether no launch works in the output directory, but for the one with the locks `own`.

    To be asked while the recipe is locked: it takes each lock for a moment.
    """
    for path in layout.lock("x").parent.glob("*.lock"):
        if path.stem in own:
            continue
        with path.open("a+") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            continue
        return False
    return True


def _clean_up(study: Study, *, is_first_attempt: bool) -> None:
    """Clear what an earlier launch of these tasks left unfinished."""
    layout = study.layout
    own = {name for task in study.tasks for name in (task.name, f"experts-{task.model}")}
    if not layout.launch and _is_alone(layout, own):
        sweep_temporaries(layout.output_dir)
        shutil.rmtree(layout.launches, ignore_errors=True)
    for path in layout.heartbeat(0).parent.glob("*.json"):
        path.unlink()
    for task in study.tasks:
        if is_first_attempt:  # torchrun's restarts count crashes, a person's new start doesn't
            layout.crashes(task.name).unlink(missing_ok=True)
        outcome = layout.outcome(task.name)
        found = read_outcome(outcome)
        if found is not None and not (found.state == "done" and is_reusable(study, task)):
            outcome.unlink()
        if found is None and is_reusable(study, task):
            write_outcome(outcome, Outcome("done", note="found"))
