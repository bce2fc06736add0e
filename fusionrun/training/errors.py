"""How a task's training ends early."""


class TaskError(Exception):
    """A task can't go on; the message is for a person, no traceback is needed."""


class ShortOfMemoryError(TaskError):
    """Memory ran out, and no way was left to do with less."""


class StopRequested(Exception):  # noqa: N818 - not an error: the checkpoint is written, go
    """A stop signal came; the resume state is on disk."""
