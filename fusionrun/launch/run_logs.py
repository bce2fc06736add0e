"""Where a task's charts go: TensorBoard and Weights & Biases, as the recipe wants them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from fusionrun.logs.background import BackgroundLog, RunLog
from fusionrun.logs.tensorboard import TensorBoardLog
from fusionrun.logs.wandb import WandbLog, run_id
from fusionrun.logs.wandb_access import effective_mode
from fusionrun.study.paths import label_of
from fusionrun.study.study import Study
from fusionrun.study.tasks import RowTask, Task


def open_run_logs(
    study: Study, task: Task, first_epoch: int, warn: Callable[[str], None]
) -> list[BackgroundLog]:
    """Those of `task` from `first_epoch` on: 1 where it begins, more where it resumes."""
    fields: Mapping[str, Any] = study.identity(task).fields

    def tensorboard() -> RunLog:
        lines = "\n".join(f"    {key}: {value}" for key, value in fields.items())
        directory = study.layout.tensorboard(task.name)
        return TensorBoardLog(directory, first_epoch, {"recipe": lines})

    def wandb(mode: Literal["offline", "online"]) -> RunLog:
        about = task.row.variant if isinstance(task, RowTask) else task.name
        record = study.layout.wandb_run(task.model, about)
        return WandbLog(
            study.layout.output_dir,
            task=task.name,
            model=label_of(task.model),  # a project's name holds no colon
            mode=mode,
            settings=fields,
            run_id=run_id(record, resumed=first_epoch > 1),
        )

    logs = []
    mode = effective_mode(study.recipe.logs.wandb)
    if study.recipe.logs.tensorboard:
        logs.append(BackgroundLog("TensorBoard", tensorboard, warn))
    if mode != "off":
        logs.append(BackgroundLog("Weights & Biases", partial(wandb, mode), warn))
    return logs
