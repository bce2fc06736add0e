"""What goes wrong while a study is measured: one row's, or the end of it; said in a line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fusionrun.common.device_errors import broken_by, is_out_of_memory
from fusionrun.common.distributed import LaunchError
from fusionrun.common.text import one_line, problem_of
from fusionrun.data.errors import DataError
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.errors import ShortOfMemoryError, TaskError

# what stops one row and says nothing of the others; ValueError: answers that aren't finite
ROW_PROBLEMS = (CheckpointError, TaskError, ValueError, OSError)


@contextmanager
def in_a_line() -> Iterator[None]:
    """What ends a measurement, and a person can do something about, is a LaunchError."""
    try:
        yield
    except (DataError, OSError) as error:
        raise LaunchError(problem_of(error)) from None
    except Exception as error:
        if broken := broken_by(error):
            raise LaunchError(
                f"{broken}: this process can't use its device any more. Run the same command "
                f"again; if that ends so, too, look at nvidia-smi and dmesg (Xid), or measure with "
                f"runtime.device=cpu"
            ) from error
        if is_out_of_memory(error) or isinstance(error, ShortOfMemoryError):
            raise LaunchError(
                f"{one_line(problem_of(error))}. Free the device of what else uses it, or measure "
                f"with runtime.device=cpu"
            ) from error
        raise


def problem_said(name: str, error: Exception) -> str:
    """What stops one row, or one part of it, in words; raises `error` where it stops the others."""
    broken, short = broken_by(error), is_out_of_memory(error)
    if not broken and not short and not isinstance(error, ROW_PROBLEMS):
        raise error
    problem = broken or (one_line(problem_of(error)) if short else problem_of(error))
    say(f"fusionrun: {name}: {problem}")
    if broken:
        raise error
    return problem


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
