"""Files of tensors: written whole, proven whole when read, and never run as code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fusionrun.common.atomic_files import write_atomically

FOLDER_MARK = 0x10  # in the attributes of a zip archive's record


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or doesn't fit; the message names the file and says how."""


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` (tensors and plain values) to `path`, atomically. Raises OSError."""

    def write(file: BinaryIO) -> None:
        try:
            torch.save(payload, file)
        except RuntimeError as error:
            # when a write fails, torch trips over its own clean-up and hides the disk's error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, write)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU.

    Raises CheckpointError when the file is missing, not a checkpoint, damaged (every record's
    checksum is verified) or holds anything but tensors and plain values: a pickle that would run
    code runs nothing.
    """
    if not path.is_file():
        found = "is a folder, expected a checkpoint" if path.is_dir() else "no such checkpoint"
        raise CheckpointError(f"{path}: {found}")
    try:
        damaged = _damaged_record(path)
        if damaged is not None:
            raise CheckpointError(f"{path}: is damaged (its record {damaged} has changed)")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values; loading it could run code, so it "
            f"was refused. Save it as a state dict of tensors"
        ) from None
    except Exception as error:  # a damaged file makes its readers fail in every way there is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: is damaged or not a PyTorch checkpoint ({reason})"
        ) from None
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path}: found {type(payload).__name__}, expected a state dict")
    return payload


def peek(path: Path) -> dict[str, Any] | None:
    """What the checkpoint at `path` holds, its tensors left on disk; None where that can't be said.

    No checksum is verified: whoever uses the file calls `load`, which says what is wrong with it.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged file makes its readers fail in every way there is
        return None
    return payload if isinstance(payload, dict) else None


def _damaged_record(path: Path) -> str | None:
    """The first record of the archive that isn't as it was written, or None."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            # torch takes what is marked as a folder for empty: its tensor would be uninitialised
            if record.external_attr & FOLDER_MARK and not record.is_dir():
                return record.filename
        return archive.testzip()


class ResumeFile:
    """A task's resume state and the one before it, which steps in if the newer is ever damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(f"{path.stem}_previous{path.suffix}")
        self._damaged = False  # the newer file; it must not take its predecessor's place

    def save(self, payload: dict[str, Any]) -> None:
        """Write the state; at every moment at least one whole state stands on disk."""
        if self.path.exists() and not self._damaged:
            self.path.replace(self.previous)
        save(self.path, payload)
        self._damaged = False

    def load(self) -> tuple[dict[str, Any] | None, str]:
        """(newest readable state or None, "" or what was wrong with a newer one)."""
        problem = ""
        for path in (self.path, self.previous):
            if path.exists():
                try:
                    return load(path), problem
                except CheckpointError as error:
                    problem = problem or str(error)
                    self._damaged = self._damaged or path == self.path
        return None, problem

    def remove(self) -> None:
        """The task is done and what it made is saved: nothing is left to resume."""
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)
