"""Trunks that torch.compile has seen: whole, once for all that are alike, and as they were."""

import importlib.util
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.experts import build_expert
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.training import compiling
from fusionrun.training.compiling import compiled_trunks, obstacle, repays, trunks

# narrow, and about as deep as published; dropout draws random numbers
DEEP: dict[str, dict[str, Any]] = {
    "resnet": {"width": 4, "dropout": 0.2},
    "densenet": {"growth": 4, "stem": 8, "blocks": [6, 12], "dropout": 0.2},
    "improved_wide_resnet": {"widen": 1, "width": 4},
    "resnext": {"cardinality": 2, "base_width": 4, "stem": 4},
}
CLASSES = 10


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    import torch._dynamo

    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled; instead of kernels it gets what it was traced from."""
    return _instead(monkeypatch, lambda graph, inputs: graph.forward)


def _instead(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Any] | str) -> list[str]:
    found: list[str] = []
    compile_it = nn.Module.compile

    def traced(graph: Any, inputs: Any) -> Any:
        found.append(str(len(graph.graph.nodes)))
        return backend(graph, inputs)  # type: ignore[operator]

    def compiled(self: nn.Module, *, options: dict[str, Any], **how: Any) -> None:
        assert options["fallback_random"]
        compile_it(self, backend=backend if isinstance(backend, str) else traced, **how)

    monkeypatch.setattr(nn.Module, "compile", compiled)
    return found


def row(name: str, count: int = 2, **arguments: Any) -> FusionModel:
    torch.manual_seed(0)
    experts = [build_expert(name, CLASSES, **{**DEEP[name], **arguments}) for _ in range(count)]
    fusion = build_fusion("concatenation", count, experts[0].feature_dim)
    return FusionModel(experts, fusion, CLASSES).to(memory_format=torch.channels_last).train()


def learnt(model: nn.Module, half: bool = False) -> list[Tensor]:
    """Losses, gradients and statistics of a step."""
    images = torch.linspace(-1, 1, 4 * 3 * 16 * 16).view(4, 3, 16, 16).sin()
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = model(images.to(memory_format=torch.channels_last))
    loss = output.logits.float().square().mean() + output.expert_logits.float().square().mean()
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *gradients, *(buffer.clone() for buffer in model.buffers())]


@pytest.mark.parametrize("name", DEEP)
def test_a_trunk_is_compiled_as_a_whole_and_once_for_all_that_are_alike(
    name: str, graphs: list[str]
) -> None:
    model, plain = row(name), row(name)
    names = list(model.state_dict())
    with compiled_trunks(model):
        found = learnt(model, half=True)
        assert len(graphs) == 1
        learnt(model, half=True)
        assert len(graphs) == 1
    assert list(model.state_dict()) == names
    for ours, theirs in zip(found, learnt(plain, half=True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    learnt(model, half=True)
    assert len(graphs) == 1  # and the next step is as before
    assert all(trunk._compiled_call_impl is None for trunk in trunks(model))


def test_a_process_compiles_many_architectures_whole(graphs: list[str]) -> None:
    for width in range(2, 12):  # more than the 8 variants that dynamo keeps by itself
        model = row("resnet", 1, blocks=[1], width=width)
        with compiled_trunks(model):
            learnt(model)
    assert len(graphs) == 10


def test_what_is_computed_twice_is_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _instead(monkeypatch, "aot_eager")
    model, plain = (row("densenet", blocks=[1, 1]) for _ in range(2))
    assert model.recompute_experts()
    with compiled_trunks(model):
        found = learnt(model)
    for ours, theirs in zip(found, learnt(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_trunk_that_cant_be_traced_as_a_whole_is_left_as_it_was(graphs: list[str]) -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    model = row("resnet", blocks=[1])
    model.experts[0].trunk.append(Reads())  # type: ignore[union-attr,operator]
    with pytest.raises(RuntimeError, match="from user code"), compiled_trunks(model):
        learnt(model)
    assert not graphs
    learnt(model)


def test_only_what_has_a_trunk_is_compiled(graphs: list[str]) -> None:
    assert trunks(nn.Linear(2, 2)) == []
    expert = build_expert("resnet", CLASSES, width=4, blocks=[1])
    assert trunks(expert) == [expert.trunk]
    assert not repays(nn.Linear(2, 2), 10**9, 1.0)


def test_it_pays_where_enough_steps_are_left() -> None:
    one, four = row("resnet", 1), row("resnet", 4)
    seconds = compiling.SECONDS_A_LAYER * 40
    enough = round(seconds / (compiling.GAIN * 0.01)) + 1
    assert repays(one, enough, 0.01) and not repays(one, enough - 2, 0.01)
    assert repays(four, enough, 0.01)  # compiled once
    mixed = FusionModel([*one.experts, row("densenet", 1).experts[0]], _fusion(), CLASSES)
    assert not repays(mixed, enough, 0.01)


def _fusion() -> Any:
    return build_fusion("concatenation", 2, 32)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert obstacle() == "there is no C compiler: install gcc, or name one in CC"
    monkeypatch.setenv("CC", "cc")
    assert obstacle() == "Python's headers aren't installed (package python3-dev)"
    (tmp_path / "Python.h").touch()
    assert obstacle() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert obstacle() == "triton isn't installed"
