"""How a task's training ends early."""


class TaskError(Exception):
    """A task can't go on; the message is for a person, no traceback is needed."""


class StopRequested(Exception):  # noqa: N818 - not an error: the checkpoint is written, go
    """A stop signal came; the resume state is on disk."""
