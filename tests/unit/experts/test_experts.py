"""The experts against formulas, plain torch operations and wrong arguments."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fusionrun.common.image_classifier import has_output
from fusionrun.experts import BUILDERS, Expert, argument_names, build_expert
from tests.tiny import ROOT

# Small enough for a CPU, yet with more than one block in a stage, odd widths, and no default left.
SMALL: dict[str, dict[str, Any]] = {
    "densenet": {"growth": 6, "blocks": (2, 3), "bottleneck": 3, "compression": 0.4, "stem": 10},
    "resnet": {"blocks": (2, 1, 2), "width": 6},
    "improved_wide_resnet": {"depth": 16, "widen": 3, "width": 4},
    "resnext": {"depth": 20, "cardinality": 3, "base_width": 4, "stem": 8},
}
ALL = sorted(BUILDERS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small lose more to waiting between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_expert(name: str, num_classes: int = 5, **more: Any) -> Expert:
    torch.manual_seed(0)
    return build_expert(name, num_classes, **(SMALL.get(name, {}) | more))


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "feature_dim"),
    [
        ("densenet", 7_048_676, 1024),
        ("resnet", 11_220_132, 512),
        ("improved_wide_resnet", 36_536_884, 640),
        ("resnext", 34_515_364, 1024),
    ],
)
def test_full_size(name: str, parameters: int, feature_dim: int) -> None:
    with torch.device("meta"):
        expert = build_expert(name, 100)
    assert parameter_count(expert) == parameters
    assert expert.feature_dim == feature_dim
    assert expert.num_classes == expert.classifier.out_features == 100


def densenet_size(
    growth: int, blocks: tuple[int, ...], bottleneck: int, compression: float, stem: int
) -> tuple[int, int]:
    """Closed form: parameters of the trunk, and its feature size."""
    channels, total, inner = stem, 27 * stem + 2 * stem, bottleneck * growth
    for index, layers in enumerate(blocks):
        if index:
            kept = int(channels * compression)
            total += 2 * channels + channels * kept
            channels = kept
        sum_of_inputs = layers * channels + growth * layers * (layers - 1) // 2
        total += sum_of_inputs * (2 + inner) + layers * (2 * inner + 9 * inner * growth)
        channels += layers * growth
    return total + 2 * channels, channels


def resnet_size(blocks: tuple[int, ...], width: int) -> tuple[int, int]:
    total = 29 * width + blocks[0] * (18 * width**2 + 4 * width)
    for stage, count in enumerate(blocks[1:], start=1):
        w = width * 2**stage
        # The first convolution and the projection read half as many channels.
        total += count * (18 * w * w + 4 * w) - 9 * w * w // 2 + w * w // 2 + 2 * w
    return total, width * 2 ** (len(blocks) - 1)


def wide_resnet_size(depth: int, widen: int, width: int) -> tuple[int, int]:
    n, total, before = (depth - 4) // 6, 27 * width, width
    for w in (width * widen, 2 * width * widen, 4 * width * widen):
        total += 9 * before * w + 9 * w * w * (2 * n - 1)
        total += 2 * before + 2 * w * (2 * n - 1)
        total += before * w if before != w else 0
        before = w
    return total + 2 * before, before


def resnext_size(depth: int, cardinality: int, base_width: int, stem: int) -> tuple[int, int]:
    n, total, before = (depth - 2) // 9, 27 * stem, stem
    for factor in (1, 2, 4):
        inner, out = factor * cardinality * base_width, factor * 4 * stem
        for source in (before, *[out] * (n - 1)):
            total += source * inner + 9 * inner * inner // cardinality + inner * out
            total += 2 * source + 4 * inner
        total += before * out
        before = out
    return total + 2 * before, before


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("densenet", densenet_size, SMALL["densenet"]),
        (
            "densenet",
            densenet_size,
            {"growth": 32, "blocks": (6, 12, 32, 32), "bottleneck": 4, "compression": 0.5}
            | {"stem": 64},
        ),
        ("resnet", resnet_size, SMALL["resnet"]),
        ("resnet", resnet_size, {"blocks": (3, 4, 6, 3), "width": 64}),
        ("resnet", resnet_size, {"blocks": (1,), "width": 8}),
        ("improved_wide_resnet", wide_resnet_size, SMALL["improved_wide_resnet"]),
        ("improved_wide_resnet", wide_resnet_size, {"depth": 10, "widen": 1, "width": 16}),
        ("improved_wide_resnet", wide_resnet_size, {"depth": 40, "widen": 2, "width": 16}),
        ("resnext", resnext_size, SMALL["resnext"]),
        (
            "resnext",
            resnext_size,
            {"depth": 29, "cardinality": 16, "base_width": 64, "stem": 64},
        ),
    ],
)
def test_parameters_follow_the_closed_form(
    name: str, size: Callable[..., tuple[int, int]], arguments: dict[str, Any]
) -> None:
    trunk, feature_dim = size(**arguments)
    with torch.device("meta"):
        expert = build_expert(name, 7, **arguments)
    assert expert.feature_dim == feature_dim
    assert parameter_count(expert) == trunk + 7 * feature_dim + 7


# --- what is computed --------------------------------------------------------------------------

State = dict[str, Tensor]


def norm_relu(x: Tensor, s: State, key: str, relu: bool = True) -> Tensor:
    mean, var = s[f"{key}.running_mean"], s[f"{key}.running_var"]
    scale = (s[f"{key}.weight"] / (var + 1e-5).sqrt())[:, None, None]
    out = (x - mean[:, None, None]) * scale + s[f"{key}.bias"][:, None, None]
    return out.clamp(min=0) if relu else out


def conv(x: Tensor, s: State, key: str, stride: int = 1, groups: int = 1) -> Tensor:
    weight = s[f"{key}.weight"]
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)


def densenet_maps(x: Tensor, s: State) -> Tensor:
    blocks = SMALL["densenet"]["blocks"]
    x = norm_relu(conv(x, s, "stem"), s, "stem_norm")
    for block, layers in enumerate(blocks, start=1):
        if block > 1:
            x = conv(norm_relu(x, s, f"transition{block - 1}.0"), s, f"transition{block - 1}.2")
            x = F.avg_pool2d(x, 2)
        outputs = [x]
        for layer in range(layers):
            key = f"block{block}.{layer}"
            new = conv(norm_relu(torch.cat(outputs, 1), s, f"{key}.norm1"), s, f"{key}.conv1")
            outputs.append(conv(norm_relu(new, s, f"{key}.norm2"), s, f"{key}.conv2"))
        x = torch.cat(outputs, 1)
    return norm_relu(x, s, "norm")


def resnet_maps(x: Tensor, s: State) -> Tensor:
    x = norm_relu(conv(x, s, "stem"), s, "stem_norm")
    for stage, count in enumerate(SMALL["resnet"]["blocks"], start=1):
        for block in range(count):
            key, stride = f"stage{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = norm_relu(conv(x, s, f"{key}.conv1", stride), s, f"{key}.norm1")
            out = norm_relu(conv(out, s, f"{key}.conv2"), s, f"{key}.norm2", relu=False)
            if stride == 2:
                x = conv(x, s, f"{key}.shortcut.0", stride)
                x = norm_relu(x, s, f"{key}.shortcut.1", relu=False)
            x = (out + x).clamp(min=0)
    return x


def wide_resnet_maps(x: Tensor, s: State) -> Tensor:
    x = conv(x, s, "stem")
    for group in (1, 2, 3):
        for block in range((SMALL["improved_wide_resnet"]["depth"] - 4) // 6):
            key, stride = f"group{group}.{block}", 2 if group > 1 and block == 0 else 1
            active = norm_relu(x, s, f"{key}.norm1")
            out = norm_relu(conv(active, s, f"{key}.conv1", stride), s, f"{key}.norm2")
            x = conv(active, s, f"{key}.shortcut", stride) if block == 0 else x
            x = x + conv(out, s, f"{key}.conv2")
    return norm_relu(x, s, "norm")


def resnext_maps(x: Tensor, s: State) -> Tensor:
    x = conv(x, s, "stem")
    for stage in (1, 2, 3):
        for block in range((SMALL["resnext"]["depth"] - 2) // 9):
            key, stride = f"stage{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            active = norm_relu(x, s, f"{key}.norm1")
            out = norm_relu(conv(active, s, f"{key}.conv1"), s, f"{key}.norm2")
            out = conv(out, s, f"{key}.conv2", stride, groups=SMALL["resnext"]["cardinality"])
            out = conv(norm_relu(out, s, f"{key}.norm3"), s, f"{key}.conv3")
            x = out + (conv(active, s, f"{key}.shortcut", stride) if block == 0 else x)
    return norm_relu(x, s, "norm")


@pytest.mark.parametrize(
    ("name", "maps", "map_side"),
    [
        ("densenet", densenet_maps, 16 // 2),
        ("resnet", resnet_maps, 16 // 4),
        ("improved_wide_resnet", wide_resnet_maps, 16 // 4),
        ("resnext", resnext_maps, 16 // 4),
    ],
)
def test_forward_equals_plain_operations(
    name: str, maps: Callable[[Tensor, State], Tensor], map_side: int
) -> None:
    expert = small_expert(name, dropout=0.5).double().eval()
    for key, value in expert.state_dict().items():
        if key.endswith("running_mean") or (value.dim() == 1 and value.is_floating_point()):
            value.uniform_(0.2, 1.5)  # norms that do something; in place, so it is the expert's
    state = {key.removeprefix("trunk."): v for key, v in expert.state_dict().items()}
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    expected_maps = maps(images, state)
    assert expected_maps.shape == (2, expert.feature_dim, map_side, map_side)
    expected = expected_maps.flatten(2).sum(2) / map_side**2
    features, logits = expert(images)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(expert.features(images), expected)
    torch.testing.assert_close(
        logits, expected @ state["classifier.weight"].T + state["classifier.bias"]
    )


@pytest.mark.parametrize(
    ("name", "arguments", "map_side"),
    [
        ("densenet", {"growth": 4, "stem": 8, "blocks": (1, 1, 1, 1)}, 4),
        ("resnet", {"width": 8, "blocks": (1, 1, 1, 1)}, 4),
        ("improved_wide_resnet", {"depth": 10, "widen": 1}, 8),
        ("resnext", {"depth": 11, "cardinality": 2, "base_width": 8, "stem": 16}, 8),
    ],
)
def test_last_map_of_a_32_pixel_image(name: str, arguments: dict[str, Any], map_side: int) -> None:
    expert = build_expert(name, 10, **arguments)
    assert expert.trunk(torch.randn(2, 3, 32, 32)).shape[2:] == (map_side, map_side)


# --- initialisation and dropout ----------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_initialisation(name: str) -> None:
    expert = small_expert(name, num_classes=40)
    for module in expert.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            target = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
            # 4.5 standard errors of the standard deviation of n normal draws.
            tolerance = 4.5 / math.sqrt(2 * weight.numel())
            assert weight.std().item() == pytest.approx(target, rel=tolerance)
            assert weight.abs().max() > 1.8 * target or weight.numel() < 100  # not a uniform
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    bound = math.sqrt(6 / (expert.feature_dim + 40))
    assert expert.classifier.weight.abs().max() <= bound
    assert expert.classifier.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert (expert.classifier.bias == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_expert(name: str) -> None:
    first, second = small_expert(name).state_dict(), small_expert(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in ALL if "dropout" in argument_names(name)])
def test_dropout_changes_no_key_and_acts_only_in_training(name: str) -> None:
    with_dropout, without = small_expert(name, dropout=0.5), small_expert(name, dropout=0.0)
    assert list(with_dropout.state_dict()) == list(without.state_dict())
    with_dropout.load_state_dict(without.state_dict())
    images = torch.randn(4, 3, 16, 16)

    assert not torch.equal(with_dropout.features(images), with_dropout.features(images))
    assert torch.equal(without.features(images), without.features(images))
    without.load_state_dict(with_dropout.state_dict())  # running statistics moved
    assert torch.equal(with_dropout.eval().features(images), without.eval().features(images))


@pytest.mark.parametrize(
    ("name", "after", "sites"),
    [
        ("densenet", "conv2", 5),
        ("resnet", "conv1", 5),
        ("improved_wide_resnet", "conv1", 6),
        ("resnext", "conv2", 6),
    ],
)
def test_dropout_sits_in_every_block_at_its_place(name: str, after: str, sites: int) -> None:
    expert = small_expert(name, dropout=0.25)
    order: list[str] = []
    for path, module in expert.named_modules():
        if isinstance(module, nn.Conv2d | nn.Dropout):
            leaf = path.rsplit(".", 1)[-1]
            module.register_forward_hook(lambda *_, leaf=leaf: order.append(leaf))
    expert.features(torch.randn(2, 3, 8, 8))
    rates = [m.p for m in expert.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.25] * sites
    places = [i for i, leaf in enumerate(order) if leaf == "dropout"]
    assert [order[i - 1] for i in places] == [after] * sites


@pytest.mark.parametrize(
    ("name", "rate"),
    [("densenet", 0.0), ("resnet", 0.0), ("improved_wide_resnet", 0.3), ("resnext", 0.3)],
)
def test_default_dropout(name: str, rate: float) -> None:
    with torch.device("meta"):
        expert = build_expert(name, 10)
    assert {m.p for m in expert.modules() if isinstance(m, nn.Dropout)} == {rate}


# --- how it runs -------------------------------------------------------------------------------


class Layouts(TorchDispatchMode):
    """Notes, for every operation that yields 4-d tensors, whether they are channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []
        self.lost: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple) else (result,):
            if isinstance(output, Tensor) and output.dim() == 4:
                kept = output.is_contiguous(memory_format=torch.channels_last)
                (self.kept if kept else self.lost).append(str(func))
        return result


@pytest.mark.parametrize("name", ALL)
def test_channels_last_stays_channels_last(name: str) -> None:
    expert = small_expert(name).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    with Layouts() as layouts:
        expert(images)
    assert len(layouts.kept) > 10 and layouts.lost == []


@pytest.mark.parametrize("name", ALL)
def test_eval_treats_each_image_alone(name: str) -> None:
    expert = small_expert(name).double().eval()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    alone = torch.cat([expert(image[None])[1] for image in images])
    torch.testing.assert_close(expert(images)[1], alone)


def test_lists_do_as_well_as_tuples() -> None:
    assert small_expert("resnet", blocks=[2, 1, 2]).state_dict().keys() == (
        small_expert("resnet", blocks=(2, 1, 2)).state_dict().keys()
    )
    assert small_expert("densenet", blocks=[2, 3]).feature_dim == (
        small_expert("densenet", blocks=(2, 3)).feature_dim
    )


def test_a_whole_number_may_stand_for_a_rate() -> None:
    assert small_expert("densenet", compression=1, dropout=0).feature_dim == 10 + 6 * 5


# --- wrong arguments ---------------------------------------------------------------------------


def test_argument_names() -> None:
    assert argument_names("resnet") == ("blocks", "width", "dropout")
    assert argument_names("improved_wide_resnet") == ("depth", "widen", "dropout", "width")


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("resnett", {}, ["unknown expert 'resnett'", "resnet, resnext", "did you mean 'resnet'"]),
        ("DENSENET", {}, ["unknown expert 'DENSENET'", "did you mean 'densenet'"]),
        ("wide_resnet", {}, ["did you mean 'improved_wide_resnet'"]),
        (None, {}, ["unknown expert None"]),
        (["resnet"], {}, ["unknown expert ['resnet']"]),
        ("resnet", {"widht": 8}, ["'widht'", "blocks, dropout, width", "did you mean 'width'"]),
        ("resnet", {"depth": 18}, ["'resnet' has no argument 'depth'"]),
        ("resnet", {"width": 0}, ["'resnet': width", "at least 1", "found 0"]),
        ("resnet", {"width": "64"}, ["width", "whole number", "found '64'"]),
        ("resnet", {"width": 64.0}, ["width", "whole number", "found 64.0"]),
        ("resnet", {"width": True}, ["width", "whole number", "found True"]),
        ("resnet", {"blocks": 2}, ["blocks", "list", "found 2"]),
        ("resnet", {"blocks": "2222"}, ["blocks", "list", "found '2222'"]),
        ("resnet", {"blocks": []}, ["blocks", "found []"]),
        ("resnet", {"blocks": [2, 0]}, ["blocks[1]", "found 0"]),
        ("resnet", {"dropout": 1.0}, ["dropout", "[0, 1)", "found 1.0"]),
        ("resnet", {"dropout": -0.1}, ["dropout", "[0, 1)", "found -0.1"]),
        ("densenet", {"dropout": None}, ["dropout", "number", "found None"]),
        ("densenet", {"dropout": math.nan}, ["dropout", "number", "found nan"]),
        ("densenet", {"dropout": "0.1"}, ["dropout", "number", "found '0.1'"]),
        ("densenet", {"compression": 0}, ["compression", "(0, 1]", "found 0"]),
        ("densenet", {"compression": 1.5}, ["compression", "(0, 1]", "found 1.5"]),
        ("densenet", {"growth": -1}, ["growth", "found -1"]),
        ("densenet", {"bottleneck": 0}, ["bottleneck", "found 0"]),
        ("densenet", {"stem": 0}, ["stem", "found 0"]),
        ("densenet", {"blocks": (6, "12")}, ["blocks[1]", "found '12'"]),
        ("improved_wide_resnet", {"depth": 27}, ["depth", "6n+4", "found 27", "nearest: 28"]),
        ("improved_wide_resnet", {"depth": 4}, ["depth", "6n+4", "found 4", "nearest: 10"]),
        ("improved_wide_resnet", {"depth": "28"}, ["depth", "whole number", "found '28'"]),
        ("improved_wide_resnet", {"widen": 0}, ["widen", "found 0"]),
        ("improved_wide_resnet", {"width": 0}, ["width", "found 0"]),
        ("resnext", {"depth": 28}, ["depth", "9n+2", "found 28", "nearest: 29"]),
        ("resnext", {"cardinality": 0}, ["cardinality", "found 0"]),
        ("resnext", {"base_width": 0}, ["base_width", "found 0"]),
        ("resnext", {"stem": 2.5}, ["stem", "found 2.5"]),
    ],
)
def test_a_wrong_argument_is_named(name: Any, arguments: dict[str, Any], parts: list[str]) -> None:
    with torch.device("meta"), pytest.raises(ValueError) as caught:
        build_expert(name, 10, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("num_classes", [0, -3, "10", 2.0, None])
def test_a_wrong_number_of_classes_is_named(name: str, num_classes: Any) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="num_classes must be a whole"):
        build_expert(name, num_classes)


SHORTCUT = """
import sys
import torch
from fusionrun.experts.base import conv1x1
torch.manual_seed(0)
channels, images, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
for _ in range(20):
    layer, x = conv1x1(channels, 16, stride=2), torch.randn(images, channels, 16, 16)
    layer(x.to(memory_format=torch.channels_last)).square().sum().backward()
    weight = layer.weight.detach().double().requires_grad_()
    torch.nn.functional.conv2d(x.double(), weight, stride=2).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-2)
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "DEFAULT"])
@pytest.mark.parametrize(("channels", "images", "threads"), [(4, 8, 1), (8, 11, 2), (15, 3, 2)])
def test_narrow_shortcuts_learn_on_any_cpu(
    channels: int, images: int, threads: int, instructions: str
) -> None:
    """oneDNN's own gradient is wrong there or ends the process, see conv1x1."""
    settings = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "PYTHONPATH": str(ROOT)}
    words = [str(channels), str(images), str(threads)]
    done = subprocess.run(
        [sys.executable, "-c", SHORTCUT, *words], env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_outputs_for_its_own_classes_alone() -> None:
    expert, images = small_expert("resnet", 10).eval(), torch.rand(3, 3, 8, 8)
    features = expert.features(images)
    expert.answer_only(range(3, 6))
    found, logits = expert(images)
    assert logits.shape == (3, 10) and torch.equal(found, features)
    assert torch.equal(logits[:, 3:6], expert.classifier(features))
    outside = torch.cat([logits[:, :3], logits[:, 6:]], dim=1)
    assert not has_output(outside).any() and has_output(logits[:, 3:6]).all()
    for number in (logits, logits.half(), logits.bfloat16()):
        shares = number.float().softmax(dim=1)
        assert shares.isfinite().all() and not shares[:, :3].any() and not shares[:, 6:].any()
    for wrong in ([], [3, 5], [9, 10], [-1, 0], [4, 3]):
        with pytest.raises(ValueError, match="own classes must be consecutive numbers from 0 to 9"):
            expert.answer_only(wrong)
