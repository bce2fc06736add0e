"""Tasks that take their process with them: counted, and given up before they stop the others."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.launch.rank_log import bound_size, last_words
from fusionrun.launch.resume import resume_path
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task
from fusionrun.training.checkpoint import ResumeFile
from fusionrun.training.errors import TaskError

CRASHES = 3  # a task that kills its process so often at one point isn't started again


@dataclass(frozen=True)
class CrashCount:
    """What stands on disk while a task runs; a clean end removes it."""

    crashes: int  # of the process, at this point of the training
    reached: int  # when the resume state was last written, in ns since 1970; 0: never
    rank: int = 0  # that runs it
    log_size: int = 0  # bytes of the rank's log when it began
    error: str = ""  # for which the process left; else it was killed, or crashed in native code
    is_told: bool = False  # by the attempt after it; the task may have to wait for its turn longer


def count_start(study: Study, task: Task, rank: int) -> None:
    """Note that the task starts. Raises TaskError after CRASHES ends without getting further.

    torchrun's restarts are there for the other rows too.
    """
    note, newest = study.layout.crashes(task.name), ResumeFile(resume_path(study, task)).newest
    reached = newest.stat().st_mtime_ns if newest else 0
    crashes = 0
    if note.exists():
        before = read_json(note, CrashCount)
        crashes = before.crashes + 1 if before.reached == reached else 0
        if crashes >= CRASHES:
            raise TaskError(
                f"its process died {crashes} times without getting further; "
                f"{_reason(study, before)}. A new launch tries it again"
            )
    log = study.layout.rank_log(rank)
    bound_size(log)
    size = log.stat().st_size if log.exists() else 0
    write_json(note, plain(CrashCount(crashes, reached, rank, size)))


def note_error(study: Study, task: Task, error: str) -> None:
    """Note for which `error` the process leaves that runs the task."""
    note = study.layout.crashes(task.name)
    write_json(note, plain(replace(read_json(note, CrashCount), error=error)))


def crashes_before(study: Study) -> Iterator[str]:
    """A line for each process that ended in the attempt before this one, and who is to blame."""
    ended: dict[int, dict[str, CrashCount]] = {}  # {rank: {task: its note}}
    for task in study.tasks:
        note = study.layout.crashes(task.name)
        if note.exists():
            crash = read_json(note, CrashCount)
            if not crash.is_told:
                ended.setdefault(crash.rank, {})[task.name] = crash
                with suppress(OSError):  # of a full disk: it's told once more then
                    write_json(note, plain(replace(crash, is_told=True)))
    for rank, crashes in ended.items():
        guilty = {name: crash for name, crash in crashes.items() if crash.error} or crashes
        who = ", ".join(guilty)
        if len(guilty) > 1:  # which of those that were trained side by side, will be seen
            who = f"one of {who} (each is trained alone now)"
        why = _reason(study, next(iter(guilty.values())))
        yield f"{who} took its process (rank {rank}) with it; {why}"


def _reason(study: Study, before: CrashCount) -> str:
    """What the process left that died last."""
    if before.error:
        return f"the last time: {before.error}"
    log = study.layout.rank_log(before.rank)
    if words := last_words(log, before.log_size):
        return f"the last time it said: {words!r} ({log})"
    if before.rank == 0:
        return (
            "what it said stands in the launch's own output; if nothing does, it was killed by "
            "signal 9: out of memory? (dmesg)"
        )
    return "it said nothing, as one does that is killed by signal 9: out of memory? (dmesg)"
