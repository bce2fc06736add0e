"""A process that an error of its device broke: it leaves, for torchrun to start a new one."""

import contextlib
import sys
import traceback

import torch

from fusionrun.common.device_errors import broken_by
from fusionrun.common.distributed import RankInfo
from fusionrun.launch.crashes import note_error
from fusionrun.launch.shutdown import exit_for_restart
from fusionrun.launch.sick_devices import count_error
from fusionrun.logs.text import TaskLog
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task


def leave_if_broken(
    error: Exception, study: Study, task: Task, rank_info: RankInfo, device: torch.device
) -> str:
    """End this process if `error`, which ended `task`, broke it and torchrun starts it again.

    Whatever it would begin now would fail with the same error. Returns what broke it where nobody
    starts it again, "" where the error is the task's own.
    """
    broken = broken_by(error, device)
    if broken and rank_info.restarts_left:
        text = f"{broken}: the process ends, to resume from the last checkpoint in a new one"
        print(f"fusionrun: [{task.name}] {text}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # a full disk
            count_error(study.layout.rank_device(rank_info.rank), broken)
            with TaskLog(study.layout.task_log(task.name), task.name) as log:
                log.details("".join(traceback.format_exception(error)))
                log.line(text)
            note_error(study, task, broken)
        exit_for_restart()
    return broken
