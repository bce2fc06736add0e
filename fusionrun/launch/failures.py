"""What goes wrong in a launch and a person can fix, and how it's said."""

from fusionrun.common.distributed import LaunchError
from fusionrun.data.errors import DataError
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.errors import TaskError

# anything else deserves its traceback in the task's log
USER_ERRORS = (TaskError, CheckpointError, DataError, LaunchError, OSError)


def in_words(error: Exception) -> str:
    """What a person needs to know of an error; the system's own come with the file's name.

    One that isn't the user's comes with its type: it's looked up.
    """
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}. Nothing that was saved before is lost"
    return str(error) if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {error}"
