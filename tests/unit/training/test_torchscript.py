"""TorchScript archives: their weights by the state dict's names, and no code."""

import os
import pickle
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusionrun.training.checkpoint import CheckpointError, has_checksums, is_program, load, peek


def network() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    blocks = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 2)])
    blocks[0].weight = nn.Parameter(torch.randn(4, 4).t())  # strides of its own
    last = nn.Sequential(OrderedDict(first=blocks[0], second=blocks[1]))
    return nn.Sequential(inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).double().eval()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch writes none there")
@pytest.mark.parametrize("how", ["trace", "script"])
@pytest.mark.parametrize("home", ["__main__", "package.networks"])
def test_the_weights_of_a_program(tmp_path: Path, how: str, home: str) -> None:
    """Whose class may stand in the script that trained it."""
    path, model = tmp_path / "a.pth", network()
    model.__class__ = type("Network", (nn.Sequential,), {"__module__": home})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
        made: Any = torch.jit.script(model) if how == "script" else torch.jit.trace(model, image)
        torch.jit.save(made, str(path))
    expected = model.state_dict()
    assert is_program(path) and has_checksums(path)
    for found in (load(path), peek(path)):
        assert found is not None and found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    content = bytearray(path.read_bytes())
    content[content.find(expected["3.second.bias"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth: is damaged \(its record .*has changed"):
        load(path)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch writes none there")
def test_a_frozen_program_has_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
        torch.jit.save(torch.jit.freeze(torch.jit.trace(network(), image)), str(path))
    with pytest.raises(CheckpointError, match=r"a\.pth: .*frozen.* before torch\.jit\.freeze"):
        load(path)


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/data.pkl", pickled)
        made.writestr("a/constants.pkl", b"")
    return path


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "a.pth", pickle.dumps({"weight": Command()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"a\.pth: holds .*posix\.system.*refused"):
        load(path)
    assert peek(path) is None and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("pickled", [b"", b"\x80\x02N.", b"\x80\x02}."])
def test_what_holds_no_network(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth: "):
        load(archive(tmp_path / "a.pth", pickled))
