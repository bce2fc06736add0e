"""`fusionrun train` from Python: a study, in this process."""

import os
from collections.abc import Mapping
from typing import Any

from fusionrun.api.open_study import OpenStudy, open_study, process_as_found
from fusionrun.commands.options import make_console
from fusionrun.common.distributed import LaunchError, read_rank_info
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.typed_fields import plain
from fusionrun.components.starting_experts import plan_from_experts
from fusionrun.launch.rank import run
from fusionrun.monitor.heartbeat import read_heartbeat
from fusionrun.monitor.record import read_outcome
from fusionrun.study.recipe_yaml import load_recipe, make_recipe
from fusionrun.study.shipped_recipes import find_recipe
from fusionrun.training.errors import TaskError


def train(recipe: str | os.PathLike[str] | Mapping[str, Any], *overrides: str) -> OpenStudy:
    """Train what isn't trained yet of a study, in this process, row after row.

        study = fusionrun.train("demo", "output_dir=runs/mine", "fusion.epochs=5")

    `recipe` is a file, the name of a shipped recipe, or a mapping of a recipe's fields;
    `overrides` are key=value by dotted path. Called again, it resumes.

    Raises RecipeError for a wrong recipe or an output directory that holds another study,
    LaunchError when nothing could start, TaskError when a row failed, and KeyboardInterrupt when
    a stop signal came: what was reached is saved.
    """
    if isinstance(recipe, Mapping):
        name = "recipe"
        resolved = make_recipe(plain(recipe), name, overrides)
    else:
        name = os.fspath(recipe)
        resolved = load_recipe(find_recipe(name), overrides)
    study = plan_from_experts(resolved, name)
    with process_as_found():
        status = run(study, read_rank_info(os.environ), make_console())
    layout = study.layout
    if status == ExitStatus.STOPPED:
        raise KeyboardInterrupt(f"{layout.output_dir}: stopped; the same call resumes")
    if status == ExitStatus.NOT_STARTED:
        record = read_heartbeat(layout.heartbeat(0))
        raise LaunchError(record.note if record and record.note else f"{name}: nothing started")
    opened = open_study(layout.output_dir)  # where rows of other calls may stand before these
    if status == ExitStatus.ROW_FAILED:
        asked = {row.experiment for row in study.rows}
        rows = [row for row in opened.rows if row.experiment in asked]
        outcomes = {row.name: read_outcome(layout.outcome(row.name)) for row in rows}
        failed = [f"{k}: {v.note}" for k, v in outcomes.items() if v and v.state == "failed"]
        raise TaskError(f"{layout.output_dir}: {len(failed)} failed. {'; '.join(failed)}")
    return opened
