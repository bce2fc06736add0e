"""Experts side by side: every number as if they had been computed one after another."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from fusionrun.experts import build_expert
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.fusions.branches import in_streams
from tests.fake_cuda import CUDA, fake_cuda

SMALL: dict[str, dict[str, Any]] = {
    "densenet": {"growth": 4, "blocks": (2, 2), "stem": 8},
    "resnet": {"blocks": (1, 1), "width": 8},
    "improved_wide_resnet": {"depth": 10, "widen": 1, "width": 8},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 4, "stem": 8},
}


def row_of(model: str, fusion: str = "concatenation", **more: Any) -> FusionModel:
    torch.manual_seed(3)
    experts = [build_expert(model, 5, **SMALL[model]) for _ in range(3)]
    return FusionModel(experts, build_fusion(fusion, 3, experts[0].feature_dim), 5, **more)


class Streams:
    """torch.cuda's, of a card that isn't there: which waited for which, and what ran on each."""

    def __init__(self) -> None:
        self.now = "main"
        self.log: list[str] = []
        self.made = 0

    def stream(self, device: object = None) -> Any:
        self.made += 1
        return self.of(f"side {self.made}")

    def current(self, device: object = None) -> Any:
        return self.of(self.now)

    def of(self, name: str) -> Any:
        def wait_stream(other: Any) -> None:
            self.log.append(f"{name} waits for {other.called}")

        return mock.Mock(called=name, wait_stream=wait_stream)

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.now = self.now, stream.called
        yield
        self.now = before


@pytest.fixture
def streams() -> Iterator[Streams]:
    found = Streams()
    with (
        fake_cuda(),
        mock.patch.object(torch.cuda, "Stream", found.stream),
        mock.patch.object(torch.cuda, "current_stream", found.current),
        mock.patch.object(torch.cuda, "stream", found.on),
    ):
        yield found


def watched(model: FusionModel, streams: Streams) -> FusionModel:
    """`model`, whose experts say where they are computed."""
    for k, expert in enumerate(model.experts):
        expert.register_forward_pre_hook(
            lambda *_, k=k: streams.log.append(f"{k} on {streams.now}")
        )
    return model


FORKED = [
    text for k in range(3) for text in (f"side {k + 1} waits for main", f"{k} on side {k + 1}")
] + [f"main waits for side {k + 1}" for k in range(3)]


def test_each_expert_has_a_stream_that_begins_and_ends_with_the_step(streams: Streams) -> None:
    model = watched(row_of("resnet").to(CUDA), streams)
    images = torch.empty(6, 3, 16, 16, device=CUDA)
    with in_streams(model):
        for _ in range(2):  # with the same streams
            output = model(images)
            assert output.expert_logits.shape == (6, 3, 5)
    assert streams.log == FORKED * 2 and streams.made == 3
    streams.log.clear()
    model(images)
    assert streams.log == [f"{k} on main" for k in range(3)]


def test_a_stream_whose_expert_fails_is_waited_for(streams: Streams) -> None:
    model = watched(row_of("resnet").to(CUDA), streams)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    model.experts[1].register_forward_hook(fail)
    with in_streams(model), pytest.raises(RuntimeError, match="out of memory"):
        model(torch.empty(6, 3, 16, 16, device=CUDA))
    assert streams.log[-3:] == FORKED[-3:]
    assert model.branches is FusionModel.branches


def test_what_is_computed_in_turn(streams: Streams) -> None:
    """Experts that share a part or are recomputed, and a model that has none."""
    shared = row_of("resnet")
    shared.experts[2].get_submodule("trunk")[0] = shared.experts[0].get_submodule("trunk")[0]  # type: ignore[index, operator]
    recomputed = row_of("resnet")
    assert recomputed.recompute_experts()
    images = torch.empty(6, 3, 16, 16, device=CUDA)
    for model in (shared, recomputed):
        watched(model.to(CUDA), streams)
        with in_streams(model):
            model(images)
        assert streams.log == [f"{k} on main" for k in range(3)]
        streams.log.clear()
    expert = build_expert("resnet", 5, **SMALL["resnet"]).to(CUDA)
    with in_streams(expert):
        expert(images)
    assert streams.log == [] and streams.made == 0
