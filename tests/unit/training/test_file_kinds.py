"""Files that were handed in as checkpoints: each is named for what it is, with a way out."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fusionrun.training.checkpoint import CheckpointError, load
from fusionrun.training.file_kinds import file_kind

WEIGHTS = {"weight": torch.arange(5000.0)}


def zipped(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("expert_0_best.pth"))
    return buffer.getvalue()


def saved(**how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer, **how)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.zeros(3))
    return buffer.getvalue()


def safe() -> bytes:
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + bytes(4)


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),)), buffer)
    return buffer.getvalue()


KINDS: list[tuple[Callable[[], bytes], str]] = [
    (lambda: b"", "is empty: writing or copying it never finished"),
    (lambda: bytes(5000), "holds nothing but zeros: writing or copying it never finished"),
    (lambda: saved()[:-200], "is damaged: its end is missing, only "),
    (lambda: saved()[:40], "is damaged: its end is missing, only 40 bytes are there"),
    (lambda: saved(_use_new_zipfile_serialization=False)[:-200], "is damaged, perhaps cut short"),
    (lambda: saved(_use_new_zipfile_serialization=False)[:100], "is damaged, perhaps cut short"),
    (lambda: saved(_use_new_zipfile_serialization=False)[:12], "is a pickle that torch.save didn"),
    (lambda: saved(_use_new_zipfile_serialization=False, pickle_protocol=4),
     "was saved with a pickle_protocol above 3"),
    (lambda: safe()[:-2], "is damaged, perhaps cut short"),
    (lambda: safe()[:30], "is a safetensors file, of which only 30 bytes are there"),
    (lambda: b"\n<!DOCTYPE html><title>Sign in", "is a web page; the download went wrong"),
    (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "`git lfs pull`"),
    (lambda: b"<?xml version='1.0'?>\n<Error>AccessDenied", "a text file that begins \"<?xml "),
    (lambda: b"not a checkpoint\n", "is a text file that begins 'not a checkpoint'"),
    (lambda: b"\x89HDF\r\n\x1a\n" + bytes(90), "is an HDF5 file, as Keras writes them"),
    (lambda: zipped(["metadata.json", "model.weights.h5"]), "is a Keras model"),
    (lambda: zipped(["expert_0.pth", "expert_1.pth"]), "a zip archive of expert_0.pth, expert_1"),
    (lambda: zipped([]), "no checkpoint of PyTorch"),
    (arrays, "is a NumPy archive; expected a state dict: torch.save({k: torch.from_numpy"),
    (lambda: b"\x93NUMPY\x01\x00" + bytes(90), "is a NumPy array"),
    (lambda: pickle.dumps({"a": np.ones(3)}), "is a pickle that torch.save didn't write"),
    (exported, "is a program of torch.export; expected its weights"),
    (lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:" + bytes(90), "is an ONNX program"),
    (tarred, "is a tar archive; unpack it"),
    (lambda: b"\x1f\x8b\x08" + bytes(90), "is gzip-compressed; unpack it"),
    (lambda: b"\x00\xff\x13\x37" * 50, "is no checkpoint of PyTorch, or its beginning is damaged"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(KINDS)))
def test_it_is_named_for_what_it_is(tmp_path: Path, case: int) -> None:
    make, words = KINDS[case]
    path = tmp_path / "expert_0_best.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and words in text and "\n" not in text and len(text) < 400
    assert not any(word in text.lower() for word in ("remove", "delete"))


def test_a_folder_of_parts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder, expected a checkpoint$"):
        load(tmp_path)
    (tmp_path / ".metadata").touch()
    with pytest.raises(CheckpointError, match="dcp_to_torch"):
        load(tmp_path)


def test_files_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content, kind in (
        (saved(), "archive"),
        (saved(_use_new_zipfile_serialization=False), "legacy"),
        (saved(_use_new_zipfile_serialization=False, pickle_protocol=3), "legacy"),
        (safe(), "safetensors"),
    ):
        path.write_bytes(content)
        assert file_kind(path) == kind


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(safe())
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(CheckpointError, match=r"a safetensors file.*pip install safetensors"):
        load(path)
