"""Whole files or none: a reader never sees half of what was written."""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Collection
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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # created as any new file is, so others may read results where the umask lets them
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # a full disk doesn't say whose file, a failed rename names the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """`text` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """`value` as JSON, atomically. Not-a-number has no place in it: ValueError.

    Indented where people may read it; what the next second replaces is written in a tenth of the
    time.
    """
    indent = 1 if durable else None
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n", durable=durable)


def sweep_temporaries(directory: Path, *, but_not_in: Collection[Path] = ()) -> None:
    """Remove what killed writers left below `directory`, but in folders where others write."""
    for path in directory.rglob(".*.tmp"):
        if path.parent not in but_not_in:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
