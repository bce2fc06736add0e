"""timm's and torchvision's networks as experts."""

import sys
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.experts import build_expert
from fusionrun.experts.backbone import Backbone

SMALL = ["timm:resnet10t", "timm:test_vit", "timm:mobilenetv3_small_050", "timm:test_efficientnet"]
SMALL += ["torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"]


@pytest.mark.parametrize("name", SMALL)
def test_they_give_features_and_learn(name: str) -> None:
    expert = build_expert(name, 3)
    features, logits = expert(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, expert.feature_dim) and logits.shape == (2, 3)
    (logits.sum() + features.sum()).backward()
    assert all(weight.grad is not None for weight in expert.parameters())
    assert isinstance(expert, Backbone) and expert.heads
    assert not any(n.startswith(f"trunk.{expert.heads[0]}.") for n in expert.state_dict())


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet18"])
def test_they_keep_the_librarys_first_weights(name: str) -> None:
    torch.manual_seed(3)
    expert = build_expert(name, 3)
    torch.manual_seed(3)
    library, _, network = name.partition(":")
    theirs = timm.create_model(network, num_classes=0) if library == "timm" else None
    theirs = theirs or torchvision.models.get_model(network, weights=None)
    state = {n: v for n, v in theirs.state_dict().items() if not n.startswith("fc.")}
    assert all(torch.equal(expert.trunk.state_dict()[name], v) for name, v in state.items())


def test_dots_and_arguments_of_the_library() -> None:
    with torch.device("meta"):
        expert = build_expert("timm:resnet18.a1_in1k", 3, drop_path_rate=0.1, global_pool="max")
        assert build_expert("timm:resnet18", 3, global_pool="").features  # gives maps
    assert isinstance(expert, Backbone) and expert.own_name("fc.weight") == "classifier.weight"
    assert expert.own_name("conv1.weight") == "trunk.conv1.weight"


@pytest.mark.parametrize(
    ("name", "size", "inside"),
    [
        ("timm:test_vit", None, 160),  # its library's
        ("timm:test_vit", 48, 48),  # built for it
        ("torchvision:vit_b_16", None, 224),
        ("torchvision:vit_b_16", 64, 64),
        ("timm:resnet10t", None, None),  # takes any
        ("torchvision:resnet18", 40, 40),
    ],
)
def test_the_size_of_images_inside(name: str, size: int | None, inside: int | None) -> None:
    with torch.device("meta"):
        expert = build_expert(name, 3, image_size=size)
    assert expert.input_size == inside
    assert expert.inputs(torch.zeros(1, 3, 20, 20)).shape[2:] == (inside or 20, inside or 20)
    assert multiply_accumulates(expert, 32) > 0


def test_work_is_counted_whatever_multiplies() -> None:
    """A transformer's by hand; a convolution that pads by itself; torch's fused attention."""
    with torch.device("meta"):
        vit = build_expert("timm:vit_tiny_patch16_224", 7, image_size=32)
        attention = nn.MultiheadAttention(8, 2, batch_first=True)
        padded = build_expert("timm:tf_efficientnet_b0", 7)
        plain = build_expert("timm:efficientnet_b0", 7)
    d, tokens = 192, 5
    block = tokens * d * d * 12 + 2 * tokens * tokens * d
    assert multiply_accumulates(vit, 32) == 4 * d * 3 * 256 + 12 * block + 7 * d
    assert multiply_accumulates(padded, 32) == multiply_accumulates(plain, 32)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = images.flatten(2)[..., :8]
            return self.attention(tokens, tokens, tokens)[0]

    assert multiply_accumulates(Attends(), 4) == 4 * 3 * 8 * 8 + 2 * 3 * 3 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_network_that_computes_while_it_is_built() -> None:
    with torch.device("meta"):
        expert = build_expert("torchvision:regnet_y_400mf", 3)
    assert all(value.is_meta for value in expert.state_dict().values())


@pytest.mark.parametrize(
    ("name", "count"), [("timm:resnet10t", 5), ("torchvision:resnet18", 5), ("timm:test_vit", None)]
)
def test_stages(name: str, count: int | None) -> None:
    with torch.device("meta"):
        expert = build_expert(name, 3)
    stages = expert.stages()
    names = [each for stage in stages for each in stage]
    assert sorted(names) == sorted(n for n, _ in expert.trunk.named_parameters())
    assert count in (None, len(stages)) and len(stages) > 2
    expert.freeze(1)
    learns = {n for n, weight in expert.trunk.named_parameters() if weight.requires_grad}
    assert learns == set(names) - set(stages[0]) and expert.frozen


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("timm:resnet19", {}, "timm has no network 'resnet19'; did you mean 'resnet1"),
        ("timm:resnet18.a1_in2k", {}, "no weights 'a1_in2k' of resnet18; did you mean"),
        ("timm:", {}, "timm has no network ''"),
        ("timm:hf-hub:timm/resnet18", {}, "timm has no network"),
        ("torchvision:resnet19", {}, "torchvision has no network 'resnet19'; did you mean"),
        ("torchvision:fcn_resnet50", {}, "torchvision has no network"),
        ("timm:resnet10t", {"widht": 3}, "unexpected keyword argument 'widht'"),
        ("timm:resnet10t", {"pretrained": True}, "fusionrun sets it"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "fusionrun sets it"),
        ("timm:resnet10t", {"image_size": 500}, "8 to 384"),
    ],
)
def test_what_a_library_has_not(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said), torch.device("meta"):
        build_expert(name, 3, **arguments)


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm isn't installed: pip install 'fusionrun\[timm\]'"):
        build_expert("timm:resnet18", 3)
