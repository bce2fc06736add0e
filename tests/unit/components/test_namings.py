"""Other code's names for our networks: equal answers, or the reason why they can't be."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionrun.components.namings import NAMINGS
from fusionrun.components.read_checkpoint import load_expert_weights
from fusionrun.components.store import save_component
from fusionrun.experts import Expert, build_expert
from fusionrun.training.checkpoint import CheckpointError
from tests.unit.components import gmf
from tests.unit.components.test_store import CLASSES, make_about

DEEPER: dict[str, dict[str, Any]] = {
    "resnet": {"width": 8, "blocks": [2, 1]},
    "improved_wide_resnet": {"depth": 10, "widen": 2, "width": 4},
    "densenet": {"growth": 4, "blocks": [2, 1], "stem": 8},
    "resnext": {"depth": 20, "cardinality": 2, "base_width": 4, "stem": 4},
}
NORMS = [(r"\.norm(\d)\.", r".bn\1.")]
PLAIN = [(r"^trunk\.", ""), (r"^stem_norm\.", "bn1."), (r"^stem\.", "conv1."), *NORMS]
STAGES = [(r"^stage(\d)", r"layer\1")]

# ours -> theirs, by their code's modules
THEIRS: dict[tuple[str, str], list[tuple[str, Any]]] = {
    ("resnet", "pytorch-cifar names, which GMF has too"): [
        *PLAIN,
        *STAGES,
        ("^classifier", "linear"),
    ],
    ("resnet", "torchvision names, taken to have no max-pool"): [
        *PLAIN,
        *STAGES,
        ("^classifier", "fc"),
        ("shortcut", "downsample"),
    ],
    ("resnet", "pytorch-cifar100 names"): [
        (r"^trunk\.", ""),
        (r"^stem\.", "conv1.0."),
        (r"^stem_norm\.", "conv1.1."),
        (r"^stage(\d)", lambda found: f"conv{int(found[1]) + 1}_x"),
        (r"(_x\.\d)\.conv1", r"\1.residual_function.0"),
        (r"(_x\.\d)\.norm1", r"\1.residual_function.1"),
        (r"(_x\.\d)\.conv2", r"\1.residual_function.3"),
        (r"(_x\.\d)\.norm2", r"\1.residual_function.4"),
        ("^classifier", "fc"),
    ],
    ("improved_wide_resnet", "GMF and WideResNet-pytorch names"): [
        *PLAIN,
        (r"^norm\.", "bn1."),
        (r"^group(\d)", r"block\1.layer"),
        ("shortcut", "conv_shortcut"),
        ("^classifier", "fc"),
    ],
    ("densenet", "GMF names"): [
        (r"^trunk\.stem_norm", "features.1"),
        (r"^trunk\.stem", "features.0"),
        (r"^trunk\.norm\.", "features.norm_final."),
        (r"^trunk\.block(\d)\.(\d)\.norm1", r"features.denseblock\1.dense_block.\2.dense_layer.0"),
        (r"^trunk\.block(\d)\.(\d)\.conv1", r"features.denseblock\1.dense_block.\2.dense_layer.2"),
        (r"^trunk\.block(\d)\.(\d)\.norm2", r"features.denseblock\1.dense_block.\2.dense_layer.3"),
        (r"^trunk\.block(\d)\.(\d)\.conv2", r"features.denseblock\1.dense_block.\2.dense_layer.5"),
        (r"^trunk\.transition(\d)", r"features.transition\1.transition_layer"),
    ],
    ("densenet", "torchvision names, taken to have no max-pool"): [
        (r"^trunk\.stem_norm", "features.norm0"),
        (r"^trunk\.stem", "features.conv0"),
        (r"^trunk\.norm\.", "features.norm5."),
        (
            r"^trunk\.block(\d)\.(\d)",
            lambda found: f"features.denseblock{found[1]}.denselayer{int(found[2]) + 1}",
        ),
        (r"^trunk\.transition(\d)\.0", r"features.transition\1.norm"),
        (r"^trunk\.transition(\d)\.2", r"features.transition\1.conv"),
    ],
    ("resnext", "GMF names"): [
        *PLAIN,
        *STAGES,
        (r"^norm\.", "bn."),
        (r"(\.\d)\.conv2\.", r"\1.conv2.conv."),
        (r"\.shortcut\.", ".shortcut.0."),
        ("^classifier", "fc"),
    ],
}


def trained(name: str, seed: int, **arguments: Any) -> Expert:
    torch.manual_seed(seed)
    expert = build_expert(name, CLASSES, **{**DEEPER[name], **arguments})
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        expert.train()(torch.rand(32, 3, 8, 8))
    return expert.eval()


def renamed(expert: Expert, pairs: list[tuple[str, Any]]) -> dict[str, Tensor]:
    found = {}
    for name, value in expert.state_dict().items():
        for pattern, theirs in pairs:
            name = re.sub(pattern, theirs, name)
        found[name] = value
    return found


@pytest.mark.parametrize(("model", "words"), THEIRS)
def test_other_names_and_bit_equal_logits(tmp_path: Path, model: str, words: str) -> None:
    needed = {"shortcut": "input"} if model == "resnext" else {}
    theirs, ours = trained(model, 1, **needed), trained(model, 2, **needed)
    path, images = tmp_path / "expert_0_best.pth", torch.rand(4, 3, 8, 8)
    state = renamed(theirs, THEIRS[model, words])
    assert len(state) == len(theirs.state_dict()) and not any("trunk" in name for name in state)
    for content in (state, {"net": {f"module.{k}": v for k, v in state.items()}, "acc": 91.2}):
        torch.save(content, path)
        assert words in load_expert_weights(ours, path).origin
        for one, other in zip(ours(images), theirs(images), strict=True):
            assert torch.equal(one, other)


def test_every_naming_is_tried() -> None:
    named = {(model, naming.words) for model in NAMINGS for naming in NAMINGS[model]}
    tried = {(m, w) for m, w in named for model, words in THEIRS if m == model and words in w}
    assert {words for _, words in named - tried} == {"pytorch-cifar names"}  # refused, below


def test_the_predecessors_resnext_needs_its_shortcut(tmp_path: Path) -> None:
    """Its tensors fit ours by name and shape, and would answer otherwise."""
    path, images = tmp_path / "a.pth", torch.rand(4, 3, 8, 8)
    theirs, ours = trained("resnext", 1, shortcut="input"), trained("resnext", 2)
    torch.save(renamed(theirs, THEIRS["resnext", "GMF names"]), path)
    with pytest.raises(CheckpointError, match=r"set models\.resnext\.shortcut=input"):
        load_expert_weights(ours, path)
    ours.load_state_dict(theirs.state_dict())
    assert not torch.allclose(ours(images)[1], theirs(images)[1], atol=1e-3)
    # ours says by itself which it is
    about = make_about("resnext", ours.feature_dim)
    own = {"component": "expert", "arguments": {**DEEPER["resnext"], "shortcut": "input"}}
    save_component(path, theirs, about.__class__(**{**vars(about), **own}))
    with pytest.raises(CheckpointError, match=r"trained with models\.resnext\.shortcut=input"):
        load_expert_weights(ours, path)


def test_a_shortcut_that_reads_the_input() -> None:
    """By hand: y = residual(relu(norm(x))) + projection(x)."""
    expert = trained("resnext", 1, shortcut="input")
    block: Any = expert.trunk.get_submodule("stage1.0")
    x = torch.randn(2, 4, 8, 8)
    active = F.relu(block.norm1(x))
    out = F.relu(block.norm2(block.conv1(active)))
    out = block.conv3(F.relu(block.norm3(block.conv2(out))))
    assert torch.equal(block(x), out + block.shortcut(x))
    with pytest.raises(ValueError, match="shortcut must be 'activated' or 'input', found 'inpt'"):
        build_expert("resnext", CLASSES, shortcut="inpt")


def test_networks_that_only_look_alike_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    dense = renamed(
        trained("densenet", 1),
        [
            *PLAIN,
            (r"^norm\.", "bn."),
            (r"^block", "dense"),
            (r"^transition(\d)\.0", r"trans\1.bn"),
            (r"^transition(\d)\.2", r"trans\1.conv"),
            ("^classifier", "linear"),
        ],
    )
    torch.save({k: v for k, v in dense.items() if not k.startswith("bn1.")}, path)
    with pytest.raises(CheckpointError, match=r"puts a layer's new channels before the others"):
        load_expert_weights(trained("densenet", 2), path)
    post = renamed(
        trained("resnext", 1), [*PLAIN, *STAGES, ("^classifier", "linear"), (r"^norm\.", "bn1.")]
    )
    shortcuts = [name for name in post if "shortcut" in name]
    projected = {name.replace("shortcut.", "shortcut.0."): post.pop(name) for name in shortcuts}
    norms = {name.replace("0.weight", "1.weight"): torch.ones(4) for name in projected}
    torch.save({**post, **projected, **norms}, path)
    with pytest.raises(CheckpointError, match=r"normalises behind its convolutions, ours before"):
        load_expert_weights(trained("resnext", 2), path)


def test_torchvisions_stem_is_named(tmp_path: Path) -> None:
    names = THEIRS["resnet", "torchvision names, taken to have no max-pool"]
    path = tmp_path / "a.pth"
    state = renamed(trained("resnet", 1), names)
    torch.save({**state, "conv1.weight": torch.ones(8, 3, 7, 7)}, path)
    with pytest.raises(CheckpointError, match=r"it begins with a 7x7 stem.*ours is 3x3"):
        load_expert_weights(trained("resnet", 2), path)


def test_torchvisions_own_networks_name_their_tensors_so(tmp_path: Path) -> None:
    """Its ResNet-18 and DenseNet-121, with the stem that people give them for small images."""
    from torchvision.models import densenet121, resnet18

    path, images = tmp_path / "a.pth", torch.rand(2, 3, 16, 16)
    resnet = resnet18(num_classes=CLASSES)
    resnet.conv1, resnet.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    densenet = densenet121(num_classes=CLASSES)
    densenet.features.conv0 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    densenet.features.pool0 = nn.Identity()
    for name, theirs in (("resnet", resnet), ("densenet", densenet)):
        ours = build_expert(name, CLASSES).eval()
        torch.save(theirs.state_dict(), path)
        assert "torchvision names" in load_expert_weights(ours, path).origin
        with torch.no_grad():
            torch.testing.assert_close(ours(images)[1], theirs.eval()(images))


@pytest.mark.parametrize("model", gmf.NETWORKS)
def test_full_size_networks_of_the_system_before_this_one(tmp_path: Path, model: str) -> None:
    """Bit-equal features and logits, of code that shares nothing with ours."""
    theirs, path = gmf.trained(model, 100, seed=1), tmp_path / "expert.pth"
    torch.save(theirs.state_dict(), path)
    ours = build_expert(model, 100, **{"shortcut": "input"} if model == "resnext" else {}).eval()
    assert "GMF" in load_expert_weights(ours, path).origin
    assert len(ours.state_dict()) == len(theirs.state_dict())
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for one, other in zip(ours(images), theirs(images), strict=True):
            assert torch.equal(one, other) and one.std() > 0
