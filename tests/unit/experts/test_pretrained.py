"""Where a library's trained weights lie; nothing here has a network."""

import hashlib
from pathlib import Path

import pytest

from fusionrun.experts.base import IMAGENET
from fusionrun.experts.pretrained import HubWeights, UrlWeights, library_weights
from tests.libraries import URL_OF_RESNET18, hub_file


def test_those_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    weights = library_weights("timm:resnet10t")
    assert isinstance(weights, HubWeights)
    assert weights.repository == "timm/resnet10t.c3_in1k"
    assert weights.files == ("model.safetensors", "pytorch_model.bin")
    assert weights.normalisation == IMAGENET
    assert weights == library_weights("timm:resnet10t.c3_in1k")
    path = hub_file(tmp_path, weights.repository, "model.safetensors")
    assert HubWeights("timm/other", None, weights.files, None).cached() is None
    path.write_bytes(b"")
    found = weights.cached()
    assert found is not None and found.samefile(path)


def test_those_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = library_weights("torchvision:resnet18")
    assert weights == UrlWeights(URL_OF_RESNET18, IMAGENET)
    assert weights.cached() is None
    path = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert weights.cached() == path


def test_a_download_that_fails_says_why_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = UrlWeights("http://127.0.0.1:9/x-12345678.pth", None)
    assert "refused" in weights.problem()
    with pytest.raises(OSError, match="refused"):
        weights.download()
    assert "Errno" not in weights.problem() and "\n" not in weights.problem()


def test_a_download_is_verified_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    content = b"weights"
    digits = hashlib.sha256(content).hexdigest()[:8]
    for name, problem in ((f"x-{digits}.pth", ""), ("x-12345678.pth", "hash")):
        (tmp_path / name).write_bytes(content)
        weights = UrlWeights((tmp_path / name).as_uri(), None)
        assert weights.problem() == ""
        if problem:
            with pytest.raises(ValueError, match=problem):
                weights.download()
            assert weights.cached() is None
        else:
            assert weights.download() == weights.cached()


def test_a_network_without_trained_weights() -> None:
    with pytest.raises(ValueError, match="timm has no trained weights of resnet10x"):
        library_weights("timm:resnet10x")
