"""Tasks that take their process with them: counted, and given up before they stop the others."""

from dataclasses import dataclass

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.launch.resume import resume_path
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task
from fusionrun.training.errors import TaskError

CRASHES = 3  # a task that kills its process so often at one point isn't started again


@dataclass(frozen=True)
class CrashCount:
    """What stands on disk while a task runs; a clean end removes it."""

    crashes: int  # of the process, at this point of the training
    reached: int  # when the resume state was last written, in ns since 1970; 0: never


def count_start(study: Study, task: Task) -> None:
    """Note that the task starts. Raises TaskError after CRASHES ends without getting further.

    torchrun's restarts are there for the other rows too.
    """
    note, checkpoint = study.layout.crashes(task.name), resume_path(study, task)
    reached = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    crashes = 0
    if note.exists():
        before = read_json(note, CrashCount)
        crashes = before.crashes + 1 if before.reached == reached else 0
    if crashes >= CRASHES:
        raise TaskError(
            f"its process died {crashes} times without getting further; the log of the rank and "
            f"the system's (dmesg: out of memory?) may say why. A new launch tries it again"
        )
    write_json(note, plain(CrashCount(crashes, reached)))
