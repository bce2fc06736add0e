"""Standard output and error that nobody need read: what can't be written is lost, no more."""

import io
import os
import select
import sys
from typing import Any


class _Lossy(io.FileIO):
    """A file descriptor whose reader may be gone, whose disk may be full, which may be closed."""

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest):
                written: int | None = super().write(rest)
                if written is None:  # somebody made it non-blocking
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError:
            pass
        return size


def forgive() -> None:
    """Let neither a broken pipe, a full disk, a closed descriptor nor an ASCII locale be an error.

    Of sys.stdout and sys.stderr, for the rest of the process: what a command does and its exit
    status don't depend on who reads what it says.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed; no file that is opened later may get its number
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        raw = _Lossy(number, "w", closefd=False)
        unbuffered = stream is not None and stream.write_through  # python -u
        lossy = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),
            encoding=stream.encoding if stream else "utf-8",
            errors="replace" if number == 1 else "backslashreplace",
            line_buffering=stream is None or stream.line_buffering,
            write_through=unbuffered,
        )
        setattr(sys, name, lossy)
