"""A task's own text log, every line with the task's prefix."""

from datetime import datetime
from pathlib import Path


class TaskLog:
    """Appends lines like `[task-0-densenet-multiplicative] 17:03:11 epoch 3/100 ...` to a file."""

    def __init__(self, path: Path, task: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._prefix = f"[{task}] "

    def line(self, text: str) -> None:
        """One line: it appears here and, off a terminal, in the launch's output."""
        time = datetime.now().astimezone().strftime("%H:%M:%S")
        self._file.write(f"{self._prefix}{time} {' '.join(text.split())}\n")

    def details(self, text: str) -> None:
        """Lines that only the file keeps, such as a traceback; marked with a bar."""
        for line in text.rstrip().splitlines():
            self._file.write(f"{self._prefix}| {line}\n")

    def __enter__(self) -> "TaskLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
