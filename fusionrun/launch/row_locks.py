"""Who works in an output directory: a lock for each row, and for the experts of a model."""

import os
import time
from collections.abc import Collection
from dataclasses import replace
from typing import TextIO

from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.locks import try_lock
from fusionrun.study.paths import Layout
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask


def lock_rows(
    study: Study, done: Collection[str], rank_info: RankInfo
) -> tuple[list[TextIO], Layout]:
    """Lock every row of the launch and the experts it may train: (locks, layout of the launch).

    Launches of other rows may work in the same folder at the same time. Raises LaunchError, naming
    who works on one of these.
    """
    layout = study.layout
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = f"host {rank_info.host}, pid {os.getpid()}, since {since}"
    first = try_lock(layout.lock())
    if isinstance(first, str):  # beside another launch
        layout = replace(layout, launch=study.tasks[0].name)
    locks = [] if isinstance(first, str) else [first]
    experts = [task for task in study.tasks if isinstance(task, ExpertTask)]
    models = dict.fromkeys(task.model for task in experts if task.name not in done)
    names = [task.name for task in study.row_tasks] + [f"experts-{model}" for model in models]
    for name in names:
        lock = try_lock(layout.lock(name))
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


def is_alone(layout: Layout, own: Collection[str] = ()) -> bool:
    """Whether no launch works in the output directory, but for the one with the locks `own`.

    To be asked while the recipe is locked: it takes each lock for a moment.
    """
    for path in layout.lock("x").parent.glob("*.lock"):
        if path.stem not in own:
            lock = try_lock(path)
            if isinstance(lock, str):
                return False
            lock.close()
    return True
