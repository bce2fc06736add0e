"""Experts side by side: every number as if they had been computed one after another."""

import contextlib
import gc
import random
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionrun.experts import Expert, build_expert
from fusionrun.fusions import FUSIONS, FusionModel, build_fusion
from fusionrun.fusions.branches import in_streams, in_threads
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(model: FusionModel, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    """Two steps of two parts each, and answers; all that they leave behind."""
    torch.manual_seed(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    answers = []
    for _ in range(2):
        optimizer.zero_grad()
        for images in torch.rand(8, 3, 16, 16).to(memory_format=torch.channels_last).chunk(2):
            with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
                output = model(images)
            answers.append(output.logits.detach())
            loss = output.logits.float().sigmoid().sum() + output.expert_logits.float().sin().sum()
            loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        answers += [*model(images), *model(images)]
    gradients = {f"{n}.grad": p.grad for n, p in model.named_parameters() if p.grad is not None}
    seen = {f"answers {k}": tensor for k, tensor in enumerate(answers)}
    found = {**model.state_dict(), **gradients, **seen, "drawn": torch.rand(3)}
    assert all(tensor.isfinite().all() for tensor in found.values())
    return found


def assert_same(
    model: FusionModel, plain: FusionModel, precision: torch.dtype | None = None, threads: int = 3
) -> set[str]:
    """What was done in threads of their own: "forward", "backward", "answers"."""
    used = set()

    def note(what: str) -> None:
        if threading.current_thread().name != "MainThread":
            used.add(what)

    for expert in model.experts:
        expert.register_forward_hook(
            lambda module, *_: note("forward" if model.training else "answers")
        )
        for parameter in expert.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda _: note("backward"))
    with in_threads(model, lambda: threads):
        found = train(model, precision)
    expected = train(plain, precision)
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not differing
    return used


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("model", SMALL)
def test_threads_give_the_same_numbers_bit_for_bit(
    model: str, precision: torch.dtype | None
) -> None:
    for threads in (2, 5):
        used = assert_same(row_of(model), row_of(model), precision, threads)
        draws = model in ("improved_wide_resnet", "resnext")  # dropout, if they aren't told else
        assert used == {"backward", "answers", *(() if draws else ("forward",))}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("fusion", FUSIONS)
def test_threads_with_every_fusion_and_without_its_gradients(fusion: str) -> None:
    for detached in (False, True):
        rows = (row_of("resnet", fusion, detached=detached) for _ in range(2))
        assert assert_same(*rows)


@pytest.mark.usefixtures("one_thread")
def test_threads_with_experts_that_learn_in_part_or_not_at_all() -> None:
    rows = row_of("resnet"), row_of("resnet")
    for row in rows:
        row.experts[0].requires_grad_(False).eval()
        expert: Any = row.experts[1]
        expert.freeze(2)
        for part in expert.frozen:
            part.eval()
    assert assert_same(*rows)
    rows = row_of("resnet"), row_of("resnet")
    for row in rows:
        row.experts.requires_grad_(False).eval()
    assert assert_same(*rows)


class Noisy(Expert):
    """Draws in training, from its `begin`th pass on, in one of the ways that there are."""

    def __init__(self, way: str, begin: int) -> None:
        super().__init__(5, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 4)
        self.way = way
        self.register_buffer("left", torch.tensor(begin))

    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        if not self.training:
            return found
        self.left -= 1
        if self.left > 0:
            return found
        if self.way == "torch":
            return found * torch.rand_like(found)
        if self.way == "dropout":
            return nn.functional.dropout(found, 0.3)
        return found * (random.random() if self.way == "python" else np.random.random())


def noisy(way: str, begin: int) -> FusionModel:
    torch.manual_seed(3)
    experts = [Noisy(way, begin) for _ in range(3)]
    return FusionModel(experts, build_fusion("concatenation", 3, 4), 5)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("begin", [1, 3])
@pytest.mark.parametrize("way", ["torch", "dropout", "python", "numpy"])
def test_experts_that_draw_do_so_in_turn(way: str, begin: int) -> None:
    """Whatever they draw from, and those that begin later as if they had always been in turn."""
    found = []
    for threads in (3, 1):
        random.seed(5)
        np.random.seed(5)
        model = noisy(way, begin)
        used: list[tuple[bool, str]] = []

        def look(module: nn.Module, *_: object, used: list[tuple[bool, str]] = used) -> None:
            used.append((module.training, threading.current_thread().name))

        for expert in model.experts:
            expert.register_forward_hook(look)
        with in_threads(model, lambda threads=threads: threads):
            found.append(train(model))
        in_threads_of_their_own = [training for training, name in used if name != "MainThread"]
        if threads == 1:
            assert not in_threads_of_their_own
        else:  # the second pass of three, and the third until it was seen to draw
            assert in_threads_of_their_own.count(True) == (0 if begin == 1 else 6)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


class Twice(Expert):
    """Computes its trunk again where it is derived."""

    def features(self, images: Tensor) -> Tensor:
        found: Tensor = checkpoint(super().features, images, use_reentrant=False)
        return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("dropout", "expected"), [(0.0, {"forward", "backward", "answers"}), (0.2, set())]
)
def test_experts_that_compute_parts_of_themselves_twice(dropout: float, expected: set[str]) -> None:
    """The generator is as ever afterwards; if they draw again, all is done in turn."""

    def row() -> FusionModel:
        torch.manual_seed(3)
        resnets = [build_expert("resnet", 5, width=4, blocks=(1,), dropout=dropout) for _ in "abc"]
        experts = [Twice(5, resnet.trunk, 4) for resnet in resnets]
        return FusionModel(experts, build_fusion("concatenation", 3, 4), 5)

    assert assert_same(row(), row()) == expected


@pytest.mark.usefixtures("one_thread")
def test_an_expert_that_fails_is_said_when_all_are_through_and_keeps_no_memory() -> None:
    model, through = row_of("resnet"), []
    fails = [False]
    kept: list[weakref.ref[Tensor]] = []

    def look(module: nn.Module, images: object, output: tuple[Tensor, Tensor]) -> None:
        if fails[0] and module is model.experts[0]:
            raise RuntimeError("can't allocate memory")
        time.sleep(0.05 * fails[0])
        through.append(module)
        kept.append(weakref.ref(output[0]))

    for expert in model.experts:
        expert.register_forward_hook(look)
    images = torch.rand(4, 3, 16, 16)
    gc.collect()
    gc.disable()
    try:
        with in_threads(model, lambda: 3):
            for _ in range(2):
                model(images).logits.sum().backward()
            del through[:]
            fails[0] = True
            with contextlib.suppress(RuntimeError):
                model(images)
            assert through and len(through) == 2
            assert [each() for each in kept] == [None] * len(kept)
            fails[0] = False
            model(images).logits.sum().backward()
    finally:
        gc.enable()


@pytest.mark.usefixtures("one_thread")
def test_what_fails_in_a_backward_pass_reaches_whoever_asked_for_it() -> None:
    model = row_of("resnet")

    def fail(gradient: Tensor) -> None:
        raise MemoryError("of a gradient")

    with in_threads(model, lambda: 2):
        model(torch.rand(4, 3, 16, 16)).logits.sum().backward()
        output = model(torch.rand(4, 3, 16, 16))
        next(model.experts[1].parameters()).register_hook(fail)
        with pytest.raises(MemoryError, match="of a gradient"):
            model(torch.rand(4, 3, 16, 16)).logits.sum().backward()
    assert output.logits.requires_grad
    assert not [t for t in threading.enumerate() if t.name.startswith("expert")]


@pytest.mark.usefixtures("one_thread")
def test_as_many_threads_as_there_are_cores_to_spare_at_a_pass() -> None:
    rows, counts = (row_of("resnet"), row_of("resnet")), iter([1, 2, 3, 1, 2, 3])
    with in_threads(rows[0], lambda: next(counts)):
        found = train(rows[0])
    expected = train(rows[1])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert next(counts, None) is None
