"""Whole files or none: a reader never sees half of what was written."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True
) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it.

    `durable=False` leaves the flush to the system, for files that the next second replaces.
    Raises OSError (disk full, no permission) with whatever stood at `path` untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes 0600; others may read results
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """`text` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """`value` as indented JSON, atomically. Not-a-number has no place in JSON: ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", durable=durable)


def sweep_temporaries(directory: Path) -> None:
    """Remove what killed writers left below `directory`."""
    for path in directory.rglob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
