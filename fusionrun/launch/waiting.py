"""A task that found no memory is begun again once others on its device have given some back."""

import time
from collections.abc import Iterator

from fusionrun.common.device_errors import is_out_of_memory
from fusionrun.common.memory import give_back, held_by_others, total_memory
from fusionrun.common.text import size
from fusionrun.launch.company import Company
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.study.context import RunContext
from fusionrun.training.errors import ShortOfMemoryError, StopRequested

ATTEMPTS = 3
PATIENCE = 600.0  # seconds that others are waited for
NOTICEABLE = 0.1  # of a GPU's memory


class Attempt:
    """Around the work; a lack of memory in it is kept as `problem`, "" while there's none."""

    problem = ""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        if isinstance(error, ShortOfMemoryError) or is_out_of_memory(error):
            self.problem = str(error).partition("\n")[0]
        return bool(self.problem)


def attempts(context: RunContext, reporter: TaskReporter, company: Company) -> Iterator[Attempt]:
    """What to do work in that resumes where it was: once, or where it finds no memory again.

    That is when others on the device have given some back: first this process's own tasks, of which
    there's room for fewer from now on. Raises ShortOfMemoryError where others hold none or give
    none back, StopRequested.
    """
    left = ATTEMPTS
    while left:
        yield (attempt := Attempt())
        if not attempt.problem:
            return
        give_back(context.device)  # now that the traceback is gone, which held the task's tensors
        if company.at_work:
            company.most = company.at_work
            reporter.warn(
                f"{attempt.problem}: this rank trains {company.most} at a time from now on, and "
                f"this one resumes when there's room"
            )
            continue
        left -= 1
        if not left or not _await_memory(context, reporter, attempt.problem):
            raise ShortOfMemoryError(attempt.problem)


def _await_memory(context: RunContext, reporter: TaskReporter, problem: str) -> bool:
    """Whether others gave some back."""
    device = context.device
    held, total = held_by_others(device), total_memory(device) or 0.0
    if held <= NOTICEABLE * total:
        return False
    reporter.message(
        f"{problem}. Other processes hold {size(held)} of {size(total)}: waits up to "
        f"{PATIENCE / 60:.0f} minutes for them to give some back, then resumes"
    )
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if context.stop_requested():
            raise StopRequested
        if held_by_others(device) < held - NOTICEABLE * total:
            return True
        reporter.waits()
        time.sleep(1)
    return False
