"""Weights that an expert begins with."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fusionrun.components.pretrained import begin_with
from fusionrun.components.read_checkpoint import load_expert_weights
from fusionrun.experts import Expert, build_expert
from fusionrun.training.checkpoint import CheckpointError


def saved(path: Path, payload: Any) -> Path:
    torch.save(payload, path)
    return path


def test_the_librarys_file_for_other_classes(tmp_path: Path) -> None:
    theirs = timm.create_model("resnet10t", num_classes=7)
    save_file(theirs.state_dict(), path := tmp_path / "weights.safetensors")
    expert = build_expert("timm:resnet10t", 3)
    head = expert.classifier.weight.clone()
    assert begin_with(expert, path) == ["without its classifier of 7 classes"]
    assert torch.equal(expert.classifier.weight, head)
    images = torch.randn(2, 3, 32, 32)
    features = theirs.eval().forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(expert.eval()(images)[0], features)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet18"])
def test_a_file_for_these_classes_is_the_same_network(name: str, tmp_path: Path) -> None:
    library, _, network = name.partition(":")
    build = timm.create_model if library == "timm" else torchvision.models.get_model
    theirs = build(network, num_classes=3).eval()
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    path = saved(tmp_path / "x.pth", {"state_dict": state, "epoch": 3})
    images = torch.randn(2, 3, 32, 32)
    for load in (begin_with, load_expert_weights):  # to train, and as an expert that is trained
        expert = build_expert(name, 3)
        load(expert, path)
        assert torch.equal(expert.eval()(images)[1], theirs(images))


def test_positions_are_resized_as_the_library_does(tmp_path: Path) -> None:
    theirs = timm.create_model("test_vit", num_classes=7)
    path = saved(tmp_path / "x.pth", theirs.state_dict())
    expert = build_expert("timm:test_vit", 3, image_size=48)
    converted, without = begin_with(expert, path)
    assert (converted, without) == (
        "converted as its library does",
        "without its classifier of 7 classes",
    )
    at = "patch_embed.proj.weight"
    assert torch.equal(expert.trunk.state_dict()[at], theirs.state_dict()[at])


def test_a_second_classifier_is_left_out(tmp_path: Path) -> None:
    theirs = torchvision.models.googlenet(init_weights=False)
    path = saved(tmp_path / "x.pth", theirs.state_dict())
    notes = begin_with(build_expert("torchvision:googlenet", 3, init_weights=False), path)
    assert notes[0] == "without its classifier of 1000 classes"
    assert notes[1].startswith("left out aux1.conv.conv.weight, ")


def test_a_trunk_of_ones_own(tmp_path: Path) -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = saved(tmp_path / "x.pth", {"model": trunk.state_dict()})
    expert = Expert(2, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 4)
    begin_with(expert, path)
    assert torch.equal(expert.trunk[0].weight, trunk[0].weight)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("resnet34", "has trunk.layer1.2.conv1.weight"),  # larger: its beginning would fit
        ("mobilenet_v3_small", "lacks trunk.conv1.weight"),
        ("resnet50", "layer1.0.conv1.weight"),
    ],
)
def test_another_networks_weights_are_refused(network: str, said: str, tmp_path: Path) -> None:
    theirs = torchvision.models.get_model(network, weights=None)
    path = saved(tmp_path / "x.pth", theirs.state_dict())
    expert = build_expert("torchvision:resnet18", 3)
    before = {name: value.clone() for name, value in expert.state_dict().items()}
    with pytest.raises(CheckpointError, match=said):
        begin_with(expert, path)
    assert all(torch.equal(before[name], v) for name, v in expert.state_dict().items())
