"""What a command's exit status says; torchrun's own knows only 0 and 1."""

from enum import IntEnum


class ExitStatus(IntEnum):
    DONE = 0  # all rows
    NOT_STARTED = 1
    WRONG_RECIPE = 2  # or command line
    ROW_FAILED = 3
    STOPPED = 4  # before the end; run it again to resume
