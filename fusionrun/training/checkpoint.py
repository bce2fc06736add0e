"""Files of tensors: written whole, proven whole when read, and never run as code."""

import argparse
import contextlib
import importlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
import torch

from fusionrun.common.atomic_files import write_atomically
from fusionrun.training.file_kinds import FileKind, file_kind
from fusionrun.training.torchscript import read_torchscript

ZIPPED = ("archive", "torchscript")  # kinds whose every record has a checksum
FOLDER_MARK = 0x10  # in the attributes of a zip archive's record
HEADER = "fusionrun"  # key in a safetensors file's header: a payload of ours but for its tensors


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or doesn't fit; the message names the file and says how."""


def save(
    path: Path,
    payload: dict[str, Any],
    dump: Callable[[dict[str, Any], BinaryIO], None] = torch.save,
) -> None:
    """Write `payload` (tensors and plain values) to `path`, atomically. Raises OSError."""

    def write(file: BinaryIO) -> None:
        try:
            dump(payload, file)
        except RuntimeError as error:
            # when a write fails, torch trips over its own clean-up and hides the disk's error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, write)


def save_safetensors(path: Path, payload: dict[str, Any]) -> None:
    """As `save`, of the tensors {name: tensor} under "state_dict" and values that JSON has.

    The values stand as one text in the header, so that `load` gives the payload back and other
    readers find tensors alone. Raises OSError, and ImportError without the package safetensors.
    """
    save_tensors = importlib.import_module("safetensors.torch").save
    about = {name: value for name, value in payload.items() if name != "state_dict"}
    # copies: two names of one tensor would be refused
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in payload["state_dict"].items()}
    header = {"format": "pt", HEADER: json.dumps(about)}  # readers of others ask for "pt"
    write_atomically(path, lambda file: file.write(save_tensors(tensors, header)))


def load(path: Path) -> dict[str, Any]:
    """What a file of tensors holds, on the CPU: one of `save`, of older PyTorch, of safetensors.

    Raises CheckpointError when the file is missing, something else, damaged (every record's
    checksum is verified where the format has one, see `has_checksums`) or holds anything but
    tensors and plain values: a pickle that would run code runs nothing.
    """
    kind = _kind(path)
    try:
        damaged = _damaged_record(path) if kind in ZIPPED else None
        if damaged is not None:
            raise CheckpointError(f"{path}: is damaged (its record {damaged} has changed)")
        if kind == "torchscript":
            payload: Any = read_torchscript(path)
            if not payload:
                raise CheckpointError(
                    f"{path}: is a frozen TorchScript program, whose weights are constants of its "
                    f"code: save the network's state_dict() before torch.jit.freeze"
                )
        else:
            payload = _read_safetensors(path) if kind == "safetensors" else _read(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_more_than_tensors(path, error)}") from None
    except Exception as error:  # a damaged file makes its readers fail in every way there is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: is damaged, perhaps cut short ({reason})") from None
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path}: found {type(payload).__name__}, expected a state dict")
    return payload


def peek(path: Path) -> dict[str, Any] | None:
    """What the checkpoint at `path` holds, its tensors left on disk; None where that can't be said.

    No checksum is verified: whoever uses the file calls `load`, which says what is wrong with it.
    """
    try:
        payload = _read(path, mmap=True) if _kind(path) == "archive" else load(path)
    except Exception:  # a damaged file makes its readers fail in every way there is
        return None
    return payload if isinstance(payload, dict) else None


def has_checksums(path: Path) -> bool:
    """Whether `load` could have missed no damage in the file."""
    return _kind(path) in ZIPPED


def is_program(path: Path) -> bool:
    """Whether the file holds a program, of which `load` reads the weights alone."""
    return _kind(path) == "torchscript"


def _kind(path: Path) -> FileKind:
    """How the file is stored. Raises CheckpointError when it is none that can be read."""
    if path.is_dir():
        advice = ""
        if (path / ".metadata").is_file():
            advice = (
                ", here torch.distributed.checkpoint has left one in parts: python -m "
                "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
            )
        raise CheckpointError(f"{path}: is a folder, expected a checkpoint{advice}")
    try:
        return file_kind(path)
    except FileNotFoundError:
        if path.is_symlink():
            away = f"is a link to {path.readlink()}, which isn't there: is its disk mounted?"
            raise CheckpointError(f"{path}: {away}") from None
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read(path: Path, mmap: bool = False) -> Any:
    with torch.serialization.safe_globals(plain_classes()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _read_safetensors(path: Path) -> Any:
    try:
        safe_open = importlib.import_module("safetensors").safe_open
    except ImportError:
        raise CheckpointError(
            f"{path}: is a safetensors file, which needs one more package: pip install safetensors"
        ) from None
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = (file.metadata() or {}).get(HEADER)
    return tensors if about is None else {**json.loads(about), "state_dict": tensors}


@cache
def plain_classes() -> list[Any]:
    """(class, its name in files) of values that hold no code and often lie beside weights.

    Arrays and numbers of NumPy, the command line's arguments, paths, dates, torch's version. Both
    names that NumPy 1 and 2 have for the same function, and pathlib's of every Python.
    """
    number, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    found: list[Any] = [
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in np.typecodes["All"]},
    ]
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [(number, f"{home}.scalar"), (array, f"{home}._reconstruct")]
    for home in ("pathlib", "pathlib._local"):
        found += [(PurePosixPath, f"{home}.PosixPath"), (PureWindowsPath, f"{home}.WindowsPath")]
    return [*found, argparse.Namespace, datetime, torch.torch_version.TorchVersion]


def _more_than_tensors(path: Path, error: pickle.UnpicklingError) -> str:
    """What a file holds that isn't read, and how its owner saves the weights alone."""
    refused = re.findall(r"(?:GLOBAL|Global) ([\w.]+)", str(error))
    classes = list(refused)
    with contextlib.suppress(Exception):  # which can be said of today's archives alone
        classes += torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if not zipfile.is_zipfile(path) and b"ctorch.nn.modules." in path.read_bytes():
        classes.append("torch.nn.modules")
    named = f" ({refused[0]})" if refused else ""
    if "Unsupported operand" in str(error) and not refused:
        return (
            "was saved with a pickle_protocol above 3, which isn't read without running it. Where "
            "you trust it, save it again: torch.save(torch.load(FILE, weights_only=False), NEW)"
        )
    if refused and "is blocked" in str(error):
        return f"holds {refused[0]}: loading it could run code, so it was refused"
    if any(name.startswith("torch.nn.") for name in classes):
        return (
            f"holds a whole network{named}; loading it would run the code that made it, so it was "
            f"refused. Save its weights, where that code is: torch.save(model.state_dict(), NEW)"
        )
    return (
        f"holds more than tensors and plain values{named}; loading it could run code, so it was "
        f"refused. Where you trust it, save the weights alone: "
        f"torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
    )


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

    def save(
        self,
        payload: dict[str, Any],
        dump: Callable[[dict[str, Any], BinaryIO], None] = torch.save,
    ) -> None:
        """Write the state; at every moment at least one whole state stands on disk."""
        if self.path.exists() and not self._damaged:
            self.path.replace(self.previous)
        save(self.path, payload, dump)
        self._damaged = False

    @property
    def newest(self) -> Path | None:
        """The state that was written last, perhaps while another one is being written."""
        return next((path for path in (self.path, self.previous) if path.exists()), None)

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
