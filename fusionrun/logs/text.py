"""A task's own text log, every line with the task's prefix."""

import contextlib
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TextIO


class TaskLog:
    """Appends lines like `[task-0-densenet-multiplicative] 17:03:11 epoch 3/100 ...` to a file.

    Where it can't be written (a full disk, a folder that has gone) lines are lost, which is said
    once on stderr: the task goes on.
    """

    def __init__(self, path: Path, task: str) -> None:
        self._path = path
        self._prefix = f"[{task}] "
        self._file: TextIO | None = None
        self._has_failed = False
        self._write("")

    def line(self, text: str) -> None:
        """One line: it appears here and, off a terminal, in the launch's output."""
        time = datetime.now().astimezone().strftime("%H:%M:%S")
        self._write(f"{self._prefix}{time} {' '.join(text.split())}\n")

    def details(self, text: str) -> None:
        """Lines that only the file keeps, such as a traceback; marked with a bar."""
        for line in text.rstrip().splitlines():
            self._write(f"{self._prefix}| {line}\n")

    def _write(self, text: str) -> None:
        try:
            if self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0:
                self._file.close()  # somebody removed it: what is written there, nobody reads
                self._file = None
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8", buffering=1)
            self._file.write(text)
        except OSError as error:
            self._close()
            self._file = None
            if not self._has_failed:
                self._has_failed = True
                reason = f"{self._path}: {error.strerror or error}"
                said = f"fusionrun: {self._prefix}{reason}: lines are lost, the training goes on"
                print(said, file=sys.stderr, flush=True)

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # what it still held doesn't fit either
            if self._file is not None:
                self._file.close()

    def __enter__(self) -> "TaskLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()
