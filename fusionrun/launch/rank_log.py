"""What a rank without a terminal says, its native code too: a file below the output directory."""

import faulthandler
import os
import sys
import time
from pathlib import Path

LARGEST, KEPT = 1 << 20, 1 << 18  # bytes; of a larger file the end is kept
LONGEST_LINE = 200  # characters that are quoted
RESTARTED = "--- "
NOT_WORDS = (RESTARTED, " ", "frame #")  # stack frames come after what says why


def redirect_output(path: Path) -> None:
    """Send all that this process prints, and why it crashes, to the end of the file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bound_size(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    if os.fstat(descriptor).st_size:
        line = f"{RESTARTED}{time.strftime('%Y-%m-%d %H:%M:%S')} started again, pid {os.getpid()}\n"
        os.write(descriptor, line.encode())
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    faulthandler.enable()  # to the file that is stderr now


def bound_size(path: Path) -> None:
    """Shorten a file that has grown too large to its end; whoever writes to it writes on."""
    if path.exists() and path.stat().st_size > LARGEST:
        with path.open("rb+") as file:
            file.seek(-KEPT, os.SEEK_END)
            end = file.read().partition(b"\n")[2]
            file.seek(0)
            file.truncate()
            file.write(end)


def remove_if_empty(path: Path) -> None:
    """A rank that had nothing to say leaves no file."""
    if path.exists() and path.stat().st_size == 0:
        path.unlink()


def last_words(path: Path, start: int) -> str:
    """The last line that a process wrote to `path` beyond byte `start`; "" if it wrote none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(start if start <= path.stat().st_size else 0)
        text = file.read().decode(errors="replace")
    before, crash, after = text.partition("Fatal Python error")
    lines = (x for x in before.splitlines() if x.strip() and not x.startswith(NOT_WORDS))
    *_, last = "", *lines
    return (last or (crash + after).partition("\n")[0])[:LONGEST_LINE]
