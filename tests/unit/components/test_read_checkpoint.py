"""Experts as other tools save them: the same weights whatever lies around them, or the reason."""

import argparse
import collections
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fusionrun.components.read_checkpoint import (
    load_expert_weights,
    peek_expert,
)
from fusionrun.components.store import save_component, state_hash
from fusionrun.experts import Expert, build_expert
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.training.checkpoint import CheckpointError, load, save
from tests.unit.components import gmf
from tests.unit.components.test_store import ARGUMENTS, CLASSES, make_about

State = dict[str, Any]


def make_expert(seed: int = 0, name: str = "resnet", **arguments: Any) -> Expert:
    """As after some training: the batch norms have seen images."""
    torch.manual_seed(seed)
    expert = build_expert(name, CLASSES, **{**ARGUMENTS[name], **arguments})
    with torch.no_grad():
        expert.train()(torch.rand(32, 3, 8, 8))
    return expert.eval()


def prefixed(state: State, prefix: str) -> State:
    return collections.OrderedDict((prefix + name, value) for name, value in state.items())


def cast(state: State, dtype: torch.dtype) -> State:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def other(state: State) -> State:
    """Weights of the same names that are not the wanted ones."""
    return {name: value + 1 for name, value in state.items()}


def optimizer(expert: Expert) -> State:
    found = torch.optim.AdamW(expert.parameters())
    expert(torch.rand(2, 3, 8, 8))[1].sum().backward()
    found.step()
    found.zero_grad()
    return dict(found.state_dict())


EPOCH = {"epoch": 9, "loss": 0.3, "best_acc": np.float64(93.1), "args": argparse.Namespace(lr=0.1)}

# what lies around the weights, and what is said of it
AROUND: list[tuple[Callable[[State], State], str]] = [
    (lambda s: s, ""),
    (lambda s: prefixed(s, "module."), "without 'module.' in its names"),
    (lambda s: prefixed(s, "_orig_mod."), "without '_orig_mod.' in its names"),
    (lambda s: prefixed(s, "module._orig_mod."), "without 'module.' and '_orig_mod.' in"),
    (lambda s: prefixed(s, "_orig_mod.module."), "without 'module.' and '_orig_mod.' in"),
    (lambda s: prefixed(s, "model.backbone."), "without 'model.backbone.' in its names"),
    (lambda s: prefixed(s, "_forward_module.model."), "without '_forward_module.model.'"),
    (lambda s: {k.replace("trunk.", "trunk._orig_mod."): v for k, v in s.items()}, "_orig_mod."),
    (lambda s: {"state_dict": s, **EPOCH}, "under 'state_dict'; left out epoch, loss, best_acc"),
    (lambda s: {"model_state_dict": s, **EPOCH}, "under 'model_state_dict'"),
    (lambda s: {**EPOCH, "model": prefixed(s, "module.")}, "under 'model'; without 'module.'"),
    (lambda s: {"net": s, "acc": 93.1}, "under 'net'; left out acc"),
    (lambda s: {"network": s}, "under 'network'"),
    (lambda s: {"anything": s}, "under 'anything'"),
    (lambda s: {"model": {"state_dict": s, "epoch": 3}}, "under 'model.state_dict'"),
    (lambda s: {"a": {"b": {"c": prefixed(s, "net.")}}}, "under 'a.b.c'"),
    (lambda s: {"state_dict_ema": s, "epoch": 9}, "under 'state_dict_ema'"),
    (lambda s: {"params_ema": s}, "under 'params_ema'"),
    (lambda s: {"model_ema": {"module": s, "decay": 0.99}}, "under 'model_ema.module'"),
    (lambda s: {"ema": other(s), "model": s}, "not 'ema', which fits too"),
    (lambda s: {"params_ema": other(s), "params": s}, "not 'params_ema', which fits too"),
    (lambda s: {"best": other(s), "state_dict": s}, "not 'best', which fits too"),
    (lambda s: {**prefixed(other(s), "ema_model."), **prefixed(s, "model.")}, "not 'ema_model'"),
    (lambda s: {**s, **prefixed(other(s), "ema.")}, "which fits too"),
    (lambda s: {**prefixed(s, "module."), "n_averaged": torch.tensor(5)}, "left out n_averaged"),
    (lambda s: {**s, "criterion.weight": torch.ones(CLASSES)}, "left out criterion.weight"),
    (lambda s: {**prefixed(s, "net."), "loss_fn.centers": torch.ones(3)}, "left out loss_fn"),
    (lambda s: {**prefixed(s, "1."), "0.mean": torch.ones(3)}, "left out 0.mean"),
    (lambda s: {**s, "trunk.stem.total_ops": torch.ones(1)}, "left out trunk.stem.total_ops"),
    (lambda s: {**s, "epoch": 3, "note": "text"}, "left out epoch, note"),
    (lambda s: cast(s, torch.float64), "float64 as float32"),
    (lambda s: {k: nn.Parameter(v, v.is_floating_point()) for k, v in s.items()}, ""),
    (lambda s: {k: v.numpy() for k, v in s.items()}, "NumPy arrays as tensors"),
    (lambda s: {k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v
                for k, v in s.items()}, ""),
    (lambda s: {k: torch.stack([v, v])[1] for k, v in s.items()}, ""),
    (lambda s: {k: v if v.dim() else v.reshape(1) for k, v in s.items()}, ""),
    (lambda s: {k: v if v.dim() else v.float() for k, v in s.items()}, ""),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(AROUND)))
def test_the_same_weights_whatever_lies_around_them(tmp_path: Path, case: int) -> None:
    around, words = AROUND[case]
    theirs, ours = make_expert(1), make_expert(2)
    content = around({name: value.clone() for name, value in theirs.state_dict().items()})
    content = {**content, "optimizer": optimizer(make_expert(3))} if case % 2 else content
    path = tmp_path / "expert_0_best.pth"
    torch.save(content, path)
    with torch.device("meta"):  # as before the data set and its classes are known
        seen = peek_expert(build_expert("resnet", CLASSES + 1, **ARGUMENTS["resnet"]), path)
    found = load_expert_weights(ours, path)
    assert state_hash(ours.state_dict()) == state_hash(theirs.state_dict())
    assert seen is not None and state_hash(seen.weights) == state_hash(theirs.state_dict())
    assert found.about is None and found.origin.startswith("not saved by fusionrun")
    assert words in found.origin and "\n" not in found.origin
    assert ("float" in found.origin) == ("float" in words)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_and_said(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs, ours, path = make_expert(1), make_expert(2), tmp_path / "a.pth"
    half = cast(theirs.state_dict(), dtype)
    torch.save(half, path)
    assert "float16 as float32" in load_expert_weights(ours, path).origin
    assert state_hash(ours.state_dict()) == state_hash(cast(half, torch.float32))


def test_a_file_of_torch_before_0_4_counts_no_batches(tmp_path: Path) -> None:
    theirs, ours, path = make_expert(1), make_expert(2), tmp_path / "a.pth"
    state = theirs.state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    assert "num_batches_tracked starts at 0" in load_expert_weights(ours, path).origin
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(ours(images)[1], theirs(images)[1])


def test_a_file_of_torch_before_1_6_has_no_checksum(tmp_path: Path) -> None:
    theirs, ours, path = make_expert(1), make_expert(2), tmp_path / "a.pth"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=False)
    assert "no checksum to verify" in load_expert_weights(ours, path).origin
    assert state_hash(ours.state_dict()) == state_hash(theirs.state_dict())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"a\.pth: is damaged, perhaps cut short"):
        load_expert_weights(ours, path)


def test_tensors_of_a_gpu_load_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours, path = make_expert(1), make_expert(2), tmp_path / "a.pth"
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    torch.save(theirs.state_dict(), path)
    load_expert_weights(ours, path)
    assert state_hash(ours.state_dict()) == state_hash(theirs.state_dict())


def test_safetensors_by_its_content(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs, ours, path = make_expert(1), make_expert(2), tmp_path / "expert_0_best.pth"
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, path)
    assert load_expert_weights(ours, path).notes == ("no checksum to verify",)
    assert state_hash(ours.state_dict()) == state_hash(theirs.state_dict())


# --- what a stranger's file says of itself -------------------------------------------------------

SAID: list[State] = [
    {"val_accuracy": "93.1"},
    {"val_accuracy": torch.tensor([90.0, 93.1])},
    {"val_accuracy": 0.931},
    {"classes": 4},
    {"classes": {"a": 0}},
    {"num_classes": "4"},
    {"num_classes": 1000},
    {"mean": 0.5, "std": torch.tensor(0.5)},
    {"image_size": [16, 16]},
    {"settings": {"lr": 0.1}},
    {"format": "pt", "component": "backbone"},
    {"format": 1, "model": "resnet"},
    {"format": torch.tensor(1), "component": torch.ones(3), "saved_by": np.ones(3)},
    {"saved_by": "timm", "expert": 3},
]


@pytest.mark.parametrize("said", SAID)
def test_nothing_that_it_says_is_taken_for_ours(tmp_path: Path, said: State) -> None:
    theirs, ours, path = make_expert(1), make_expert(2), tmp_path / "a.pth"
    torch.save({"state_dict": theirs.state_dict(), "epoch": "9", **said}, path)
    found = load_expert_weights(ours, path)
    assert found.about is None and "%" not in found.origin
    assert state_hash(ours.state_dict()) == state_hash(theirs.state_dict())


def test_ours_is_known_as_ours(tmp_path: Path) -> None:
    theirs, ours, path = make_expert(1), make_expert(2), tmp_path / "a.pth"
    about = make_about()
    save_component(path, theirs, about.__class__(**{**vars(about), "component": "expert"}))
    for marks in ((), ("saved_by",)):  # which 0.1.0 didn't write
        payload = load(path)
        save(path, {key: value for key, value in payload.items() if key not in marks})
        found = load_expert_weights(ours, path)
        assert found.about is not None and found.about.classes == about.classes
        assert found.origin == "epoch 7, validation 61.50 %" and found.notes == ()
        assert state_hash(ours.state_dict()) == state_hash(theirs.state_dict())


# --- what doesn't fit ----------------------------------------------------------------------------


class Net(nn.Module):
    """A network of somebody's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


def weight_normed() -> State:
    return parametrizations.weight_norm(nn.Linear(3, 3)).state_dict()


def whole_model() -> State:
    experts = [make_expert(k) for k in range(2)]
    return FusionModel(experts, build_fusion("concatenation", 2, 8), CLASSES).state_dict()


def without(state: State, *endings: str) -> State:
    return {name: value for name, value in state.items() if not name.endswith(endings)}


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: make_expert(blocks=[4]).state_dict(), "it has 3 blocks more, set models.resnet.bl"),
    (lambda: make_expert(width=16).state_dict(), "trained with other arguments (models.resnet)"),
    (
        lambda: build_expert("resnet", 100, **ARGUMENTS["resnet"]).state_dict(),
        "found shape (100, 8), expected (5, 8); it was trained for 100 classes",
    ),
    (lambda: make_expert(name="densenet").state_dict(), "these are the weights of a densenet: "),
    (lambda: make_expert(name="resnext").state_dict(), "these are the weights of a resnext: "),
    *((lambda prefix=prefix: {
        f"{prefix}{name}": value
        for name, value in gmf.trained("improved_wide_resnet", 4, 0, widen=1).state_dict().items()
    }, "these are the weights of an improved_wide_resnet: ") for prefix in ("", "module.")),
    (
        lambda: {
            **make_expert().state_dict(),
            "trunk.stem.weight": torch.ones(8, 3, 7, 7),
        },
        "it begins with a 7x7 stem, as torchvision's do for ImageNet; ours is 3x3",
    ),
    (lambda: without(make_expert().state_dict(), "stem.weight"), "lacks trunk.stem.weight"),
    (
        lambda: {**make_expert().state_dict(), "trunk.attention.weight": torch.ones(1)},
        "has unknown trunk.attention.weight",
    ),
    (whole_model, "holds 2 networks that fit (experts.0, experts.1); expected one"),
    (
        lambda: {"net1": make_expert().state_dict(), "net2": make_expert().state_dict()},
        "holds 2 networks that fit (net1, net2)",
    ),
    (weight_normed, "remove_parametrizations before saving"),
    (lambda: other(cast(make_expert().state_dict(), torch.float64)) | {"classifier.bias":
     torch.full((CLASSES,), 1e300, dtype=torch.float64)}, "not finite in classifier.bias"),
    (
        lambda: {k: v * float("nan") for k, v in make_expert().state_dict().items()},
        "has numbers that are not finite",
    ),
    (
        lambda: {k: v.to(torch.int8) for k, v in make_expert().state_dict().items()},
        "found int8 (quantised?), expected the float weights",
    ),
    (lambda: {"state_dict": torch.zeros(3)}, "has unknown state_dict"),
    (lambda: make_expert().to("meta").state_dict(), "on the meta device, without its values"),
    (lambda: {"epoch": 3}, "holds no tensors with names (found epoch), expected a state dict"),
    (lambda: {"nets": [make_expert().state_dict()] * 2}, "networks that fit (nets.0, nets.1)"),
    (lambda: {}, "holds no tensors with names"),
    (lambda: [torch.zeros(3)], "found list, expected a state dict"),
    (lambda: torch.zeros(3), "found Tensor, expected a state dict"),
    (Net, "holds a whole network (tests.unit.components.test_read_checkpoint.Net)"),
    (lambda: {"model": Net(), "epoch": 3}, "torch.save(model.state_dict(), NEW)"),
]  # fmt: skip


def test_the_smallest_of_another_architecture_is_recognised_too(tmp_path: Path) -> None:
    """Without a shortcut in it, and never taken for blocks that are lacking or too many."""
    path = tmp_path / "a.pth"
    small = gmf.trained("resnet", CLASSES, 0, blocks=[1], width=8).state_dict()
    for state in (small, build_expert("resnet", CLASSES, blocks=[1], width=8).state_dict()):
        torch.save(state, path)
        with pytest.raises(CheckpointError, match="these are the weights of a resnet: "):
            load_expert_weights(make_expert(name="densenet"), path)


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_does_not_fit_is_refused_with_the_likely_cause(tmp_path: Path, case: int) -> None:
    make, words = REFUSED[case]
    expert, path = make_expert(), tmp_path / "expert_0_best.pth"
    before = state_hash(expert.state_dict())
    torch.save(make(), path)
    with pytest.raises(CheckpointError) as caught:
        load_expert_weights(expert, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and words in text and "\n" not in text
    assert not any(word in text.lower() for word in ("remove it", "delete"))
    assert state_hash(expert.state_dict()) == before  # not half loaded


def test_a_component_of_ours_that_is_no_expert_or_of_other_classes(tmp_path: Path) -> None:
    path, about = tmp_path / "a.pth", make_about()
    for component, count, words in (
        ("fusion_module", CLASSES, "found a fusion module of fusionrun, expected an expert"),
        ("expert", 6, "is for 6 classes, this study has 5"),
    ):
        changed = {**vars(about), "component": component, "num_classes": count}
        save_component(path, make_expert(), about.__class__(**changed))
        with pytest.raises(CheckpointError, match=words):
            load_expert_weights(make_expert(), path)


def test_a_pickle_that_runs_code_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {mark}",)

    path, state = tmp_path / "a.pth", make_expert().state_dict()
    for zipped in (True, False):
        torch.save({"state_dict": state, "x": Evil()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            CheckpointError, match=r"\.system: loading it could run code, so it was refused"
        ):
            load_expert_weights(make_expert(), path)
        assert peek_expert(make_expert(), path) is None
    path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(CheckpointError, match=r"is a pickle that torch\.save didn't write"):
        load_expert_weights(make_expert(), path)
    assert not mark.exists()


def test_wrapped_by_torch_itself(tmp_path: Path) -> None:
    """DataParallel, an averaged model and torch.compile as they save, not as we think they do."""
    path, images = tmp_path / "a.pth", torch.rand(4, 3, 8, 8)
    for wrap in (
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda expert: torch.compile(expert, backend="eager"),
    ):
        theirs, ours = make_expert(1), make_expert(2)
        torch.save(wrap(theirs).state_dict(), path)
        load_expert_weights(ours, path)
        answer: Tensor = ours(images)[1]
        assert torch.equal(answer, theirs(images)[1])
