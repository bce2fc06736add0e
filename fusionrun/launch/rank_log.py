"""What a rank says, its native code too: a file below the output directory."""

import contextlib
import faulthandler
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST, KEPT = 1 << 20, 1 << 18  # bytes; of a larger file the end is kept
LONGEST_LINE = 200  # characters that are quoted
RESTARTED = "--- "
NOT_WORDS = (RESTARTED, " ", "frame #")  # stack frames come after what says why


def redirect_output(path: Path) -> None:
    """Send all that this process prints, and why it crashes, to the end of the file `path`.

    What it, and those that died before they came here, left in torchrun's files goes there too.
    """
    said = b"".join(_taken_from_torchrun())
    descriptor = _open_log(path)
    os.write(descriptor, said)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    faulthandler.enable()  # to the file that is stderr now


def keep_errors(path: Path) -> None:
    """Send what native code says, and why this process crashes, to the end of the file `path`.

    The terminal is this process's: what Python prints as errors appears there, and in the file.
    """
    descriptor, terminal = _open_log(path), os.dup(2)
    sys.stderr.flush()
    os.dup2(descriptor, 2)
    os.close(descriptor)
    both = io.BufferedWriter(_Both(terminal))
    sys.stderr = io.TextIOWrapper(
        both, sys.stderr.encoding, errors="backslashreplace", line_buffering=True
    )
    faulthandler.enable(2)


class _Both(io.RawIOBase):
    """The terminal, and stderr; what one of them can't take is lost there."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._terminal

    def write(self, data: Any, /) -> int:
        for stream in (self._terminal, 2):
            rest = memoryview(data)
            with contextlib.suppress(OSError):
                while len(rest):
                    rest = rest[os.write(stream, rest) :]
        return len(data)


def _open_log(path: Path) -> int:
    """A descriptor that adds to the log; what it holds is another process's, which is marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bound_size(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    if os.fstat(descriptor).st_size:
        line = f"{RESTARTED}{time.strftime('%Y-%m-%d %H:%M:%S')} started again, pid {os.getpid()}\n"
        os.write(descriptor, line.encode())
    return descriptor


def _taken_from_torchrun() -> Iterator[bytes]:
    """What this rank said in all attempts, where torchrun sent it to <attempt>/<rank>/stderr.log.

    Such files go with the launch.
    """
    with contextlib.suppress(OSError):
        file = Path("/proc/self/fd/2").readlink()
        if file.parts[-3:-2] and file.parts[-3].startswith("attempt_"):
            for path in sorted(file.parents[2].glob(f"attempt_*/{file.parent.name}/std*.log")):
                yield path.read_bytes()
                os.truncate(path, 0)


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
