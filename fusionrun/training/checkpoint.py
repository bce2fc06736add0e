"""Files of tensors: written whole, proven whole when read, and never run as code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from fusionrun.files import write_atomically


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or doesn't fit; the message names the file and says how."""


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` (tensors and plain values) to `path`, atomically. Raises OSError."""
    write_atomically(path, lambda file: torch.save(payload, file))


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU.

    Raises CheckpointError when the file is missing, not a checkpoint, damaged (every record's
    checksum is verified) or holds anything but tensors and plain values: a pickle that would run
    code runs nothing.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: is damaged (checksum of {damaged} is wrong)")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values; loading it could run code, so it "
            f"was refused. Save it as a state dict of tensors"
        ) from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: is damaged or not a PyTorch checkpoint ({reason})"
        ) from None
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path}: found {type(payload).__name__}, expected a state dict")
    return payload


class ResumeFile:
    """A task's resume state and the one before it, which steps in if the newer is ever damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(f"{path.stem}_previous{path.suffix}")

    def save(self, payload: dict[str, Any]) -> None:
        """Write the state; at every moment at least one whole state stands on disk."""
        if self.path.exists():
            self.path.replace(self.previous)
        save(self.path, payload)

    def load(self) -> tuple[dict[str, Any] | None, str]:
        """(newest readable state or None, "" or what was wrong with a newer one)."""
        problem = ""
        for path in (self.path, self.previous):
            if path.exists():
                try:
                    return load(path), problem
                except CheckpointError as error:
                    problem = problem or str(error)
        return None, problem
