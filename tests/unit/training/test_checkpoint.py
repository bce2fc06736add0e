"""Checkpoints that are cut, flipped, forged or interrupted: whole, or refused by name."""

import argparse
import errno
import io
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusionrun.training.checkpoint import CheckpointError, ResumeFile, has_checksums, load, save

Payload = dict[str, Any]


def make_payload(epoch: int = 3) -> Payload:
    generator = torch.Generator().manual_seed(epoch)
    return {
        "epoch": epoch,
        "settings": {"model": "resnet", "blocks": [1, 2], "lr": 1e-4, "note": None, "amp": True},
        "model": {
            "weight": torch.randn(5, 3, generator=generator),
            "image": torch.randn(2, 3, 4, 4, generator=generator).to(
                memory_format=torch.channels_last
            ),
            "half": torch.randn(6, generator=generator).bfloat16(),
            "count": torch.tensor(epoch),
        },
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.dtype == other.dtype
        return same and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        same = isinstance(other, dict) and one.keys() == other.keys()
        return same and all(equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "row" / "checkpoint.pth"


@pytest.fixture
def whole(path: Path) -> bytes:
    save(path, make_payload())
    return path.read_bytes()


def refusal(path: Path) -> str:
    """The message of the refusal, which must name the file and stay one line."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


# --- whole ---------------------------------------------------------------------------------------


def test_comes_back_as_it_was_saved(path: Path) -> None:
    save(path, make_payload())
    found = load(path)
    assert equal(found, make_payload())
    assert found["model"]["image"].stride() == make_payload()["model"]["image"].stride()
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_named(path: Path) -> None:
    assert "no such checkpoint" in refusal(path)


def test_a_failing_disk_raises_os_error_and_keeps_the_old_file(path: Path) -> None:
    """A real failing write: this process may not make files larger than 20 kB for a moment."""
    save(path, make_payload(1))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"checkpoint\.pth") as caught:
            save(path, {"large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.errno == errno.EFBIG
    assert equal(load(path), make_payload(1))
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_saved_is_no_disk_error(path: Path) -> None:
    save(path, make_payload(1))
    with pytest.raises(Exception, match=r"pickle|local object") as caught:
        save(path, {"function": lambda: None})
    assert not isinstance(caught.value, OSError)
    assert equal(load(path), make_payload(1))


# --- damaged -------------------------------------------------------------------------------------


def test_truncated_at_any_length(path: Path, whole: bytes) -> None:
    for length in [*range(0, len(whole), 13), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)


def tensor_bytes(path: Path) -> list[int]:
    """Positions in the file of the numbers of all tensors, found by searching for them."""
    content = path.read_bytes()
    positions: list[int] = []
    for tensor in load(path)["model"].values():
        memory = tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor
        raw = memory.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert content.count(raw) == 1
        positions += range(content.index(raw), content.index(raw) + len(raw))
    return positions


def test_a_flipped_bit_of_a_tensor_is_always_found(path: Path, whole: bytes) -> None:
    rng = random.Random(0)
    positions = tensor_bytes(path)
    assert len(positions) == 4 * 15 + 4 * 96 + 2 * 6 + 8
    for position in rng.sample(positions, 150):
        path.write_bytes(flip(whole, position, rng.randrange(8)))
        assert "damaged" in refusal(path)


def test_a_flipped_bit_anywhere_changes_nothing_unseen(path: Path, whole: bytes) -> None:
    """Most bits outside of tensors are padding; none of them may yield other tensors."""
    rng = random.Random(1)
    positions = rng.sample(range(len(whole)), 200)
    directory = whole.index(b"PK\x01\x02")  # where the archive's table of contents begins
    positions += rng.sample(range(directory, len(whole)), 200)
    found = [flipped(path, whole, position, rng.randrange(8)) for position in positions]
    assert found.count("refused") > 50
    assert found.count("whole") > 50


@pytest.mark.parametrize(("offset", "bit"), [(38, 4), (10, 3), (8, 0)])
def test_a_flipped_mark_in_the_table_of_contents_is_found(
    path: Path, whole: bytes, offset: int, bit: int
) -> None:
    """A folder (offset 38): torch takes uninitialised memory for its tensor. 10, 8: it gives up."""
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"/data/0"))
    path.write_bytes(flip(whole, entry + offset, bit))
    refusal(path)


def flip(content: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def flipped(path: Path, whole: bytes, position: int, bit: int) -> str:
    path.write_bytes(flip(whole, position, bit))
    try:
        found = load(path)
    except CheckpointError:
        return "refused"
    assert equal(found, make_payload()), f"bit {bit} of byte {position} went unseen"
    return "whole"


def test_blocks_that_the_disk_lost_are_found(path: Path) -> None:
    payload = {"weight": torch.randn(4000, generator=torch.Generator().manual_seed(0))}
    save(path, payload)
    whole = path.read_bytes()
    for start in range(0, len(whole) - 512, 1536):
        path.write_bytes(whole[:start] + bytes(512) + whole[start + 512 :])
        assert "damaged" in refusal(path)


# --- foreign -------------------------------------------------------------------------------------


def test_an_archive_of_something_else_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is a zip archive of readme.txt; unpack it" in refusal(path)


@pytest.mark.parametrize(
    ("value", "kind"), [(torch.zeros(3), "Tensor"), ([torch.zeros(3)], "list"), (7, "int")]
)
def test_something_other_than_a_dict_is_refused(path: Path, value: object, kind: str) -> None:
    path.parent.mkdir()
    torch.save(value, path)
    assert f"found {kind}, expected a state dict" in refusal(path)


class Malicious:
    """Its unpickling creates a file, where an attacker's would do worse."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._marker),)


def forge(path: Path, value: object, how: str) -> None:
    """A checkpoint of today's format, of the one before 2020, or with a pickle put in by hand."""
    path.parent.mkdir(exist_ok=True)
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(value))
    elif how in ("today", "before 2020"):
        torch.save(value, path, _use_new_zipfile_serialization=how == "today")
    else:
        buffer = io.BytesIO()
        torch.save({"x": torch.zeros(2)}, buffer)
        with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as archive:
            for name in source.namelist():
                pickled = name.endswith("data.pkl")
                archive.writestr(name, pickle.dumps(value, 2) if pickled else source.read(name))


FORGERIES = ("today", "before 2020", "by hand", "plain pickle")


@pytest.mark.parametrize("how", FORGERIES)
@pytest.mark.parametrize("deep", [False, True])
def test_a_malicious_pickle_runs_nothing(path: Path, tmp_path: Path, how: str, deep: bool) -> None:
    marker = tmp_path / "ran"
    forge(path, {"a": {"b": [Malicious(marker)]}} if deep else Malicious(marker), how)
    text = refusal(path)
    assert not marker.exists()
    if how in ("today", "by hand"):
        assert "could run code, so it was refused" in text
    # the forgery works: whoever loads it unsafely is caught
    if how == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("today", [True, False])
def test_a_whole_module_is_refused_with_advice(path: Path, today: bool) -> None:
    path.parent.mkdir()
    torch.save({"model": nn.Linear(2, 2)}, path, _use_new_zipfile_serialization=today)
    text = refusal(path)
    assert "holds a whole network (torch.nn.modules.linear.Linear)" in text
    assert "refused" in text
    assert "torch.save(model.state_dict(), NEW)" in text


def test_plain_values_beside_the_tensors_are_read(path: Path) -> None:
    """What training scripts put there: none of it holds code."""
    path.parent.mkdir()
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("/tmp/x")),
        "best": np.float64(93.1),
        "curve": np.arange(3, dtype=np.float32),
        "counts": np.arange(3),
        "names": np.array(["a", "b"]),
        "at": datetime(2020, 1, 2),
        "torch": torch.__version__,
        "device": torch.device("cuda:3"),
        "dtype": torch.float16,
    }
    torch.save({"weight": torch.ones(3), **beside}, path)
    found = load(path)
    assert torch.equal(found["weight"], torch.ones(3))
    assert found["args"].lr == 0.1 and found["best"] == 93.1 and list(found["counts"]) == [0, 1, 2]


def test_a_whole_file_of_before_2020_is_read(path: Path) -> None:
    path.parent.mkdir()
    torch.save(make_payload(), path, _use_new_zipfile_serialization=False)
    assert equal(load(path), make_payload()) and not has_checksums(path)
    save(path, make_payload())
    assert has_checksums(path)


# --- resume --------------------------------------------------------------------------------------


def test_resume_file_reads_the_newest(path: Path) -> None:
    assert ResumeFile(path).load() == (None, "")
    file = ResumeFile(path)
    for epoch in (1, 2, 3):
        file.save(make_payload(epoch))
        found, problem = ResumeFile(path).load()
        assert equal(found, make_payload(epoch))
        assert problem == ""
    assert equal(load(file.previous), make_payload(2))


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_resume_file_steps_back_and_says_so(path: Path) -> None:
    file = ResumeFile(path)
    file.save(make_payload(1))
    file.save(make_payload(2))
    damage(path)
    found, problem = ResumeFile(path).load()
    assert equal(found, make_payload(1))
    assert str(path) in problem
    assert "damaged" in problem
    damage(file.previous)
    found, problem = ResumeFile(path).load()
    assert found is None
    assert str(path) in problem


def test_resume_file_does_without_a_newest(path: Path) -> None:
    """As a writer leaves it that is killed between its two renames."""
    file = ResumeFile(path)
    file.save(make_payload(1))
    file.save(make_payload(2))
    path.unlink()
    found, problem = ResumeFile(path).load()
    assert equal(found, make_payload(1))
    assert problem == ""


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_damaged_state_never_replaces_the_whole_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """After falling back, a save that dies at its worst moment still leaves the fallback."""
    first = ResumeFile(path)
    first.save(make_payload(1))
    first.save(make_payload(2))
    damage(path)
    file = ResumeFile(path)
    file.load()
    with monkeypatch.context() as patch:
        patch.setattr("fusionrun.common.atomic_files.os.fsync", fail)
        for _ in range(attempts):
            with pytest.raises(OSError, match="pulled the plug"):
                file.save(make_payload(3))
    assert equal(ResumeFile(path).load()[0], make_payload(1))
    file.save(make_payload(3))
    assert equal(ResumeFile(path).load()[0], make_payload(3))
    file.save(make_payload(4))
    assert equal(load(file.previous), make_payload(3))


def fail(descriptor: int) -> None:
    raise OSError(errno.EIO, "pulled the plug")


WRITERS = """
import os, signal, sys, time
from pathlib import Path
import torch
from fusionrun.training.checkpoint import ResumeFile, save

def write(directory):
    file = ResumeFile(directory / "checkpoint.pth")
    for n in range(1, 100_000):
        payload = {"n": n, "weight": torch.full((300_000,), float(n))}
        save(directory / "component.pth", payload)
        file.save(payload)

for k, name in enumerate(sys.argv[1:]):
    writer = os.fork()
    if not writer:
        write(Path(name))
    while not (Path(name) / "checkpoint_previous.pth").exists():
        time.sleep(0.001)
    time.sleep(0.05 + 0.017 * k)  # somewhere in the middle of things
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    directories = [tmp_path / str(k) for k in range(8)]
    command = [sys.executable, "-c", WRITERS, *map(str, directories)]
    subprocess.run(command, check=True, timeout=60, cwd=Path(__file__).parents[3])
    for directory in directories:
        state, problem = ResumeFile(directory / "checkpoint.pth").load()
        assert problem == ""
        assert state is not None
        component = load(directory / "component.pth")
        for payload in (state, component):
            assert payload["n"] >= 1
            assert torch.equal(payload["weight"], torch.full((300_000,), float(payload["n"])))
        assert 0 <= component["n"] - state["n"] <= 1
    # else no writer was killed while it wrote, and the test proves nothing
    assert list(tmp_path.rglob(".*.tmp"))
