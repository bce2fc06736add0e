"""What a GPU is asked for to record a CUDA graph: a card that isn't there, and one that is."""

import gc
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from fusionrun.training.recording import WARM_UP, record

MIB = 2**20


class FakeStream:
    """Of torch.cuda's names those that a recording uses."""

    device_index = 0

    def __init__(self, device: torch.device | None = None) -> None:
        self.waited_for: list[FakeStream] = []

    def wait_stream(self, other: "FakeStream") -> None:
        self.waited_for.append(other)


class FakeGenerator:
    """Points to a state, as CUDA's generators do."""

    def __init__(self, device: object = None) -> None:
        self.state = object()

    def graphsafe_get_state(self) -> "FakeGenerator":
        got = FakeGenerator()
        got.state = self.state
        return got

    def graphsafe_set_state(self, other: "FakeGenerator") -> None:
        self.state = other.state


class FakePool:
    """Of memory, as torch's allocator counts who uses it."""

    id = (0, 7)

    def __init__(self, card: "FakeCard") -> None:
        self.card = card

    def use_count(self) -> int:
        return 1 + self.card.uses


class FakeCard:
    """What torch.cuda would be asked, in order."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, breaks: bool = False, forgets: bool = False
    ) -> None:
        self.default, self.generator = FakeStream(), FakeGenerator()
        self.current, self.log, self.breaks = self.default, list[str](), breaks
        self.forgets = forgets  # by itself, where the end of a recording fails
        self.is_recording, self.uses = False, 0  # what the allocator thinks
        for name, value in {
            "CUDAGraph": lambda: self,
            "MemPool": lambda: FakePool(self),
            "Stream": FakeStream,
            "current_stream": lambda device: self.current,
            "default_stream": lambda device: self.default,
            "default_generators": (self.generator,),
            "stream": self.stream,
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name in ("endAllocateToPool", "releasePool"):
            called = getattr(self, name)
            monkeypatch.setattr(torch._C, f"_cuda_{name}", called, raising=False)
        monkeypatch.setattr(torch, "Generator", FakeGenerator)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self,
        graph: object,
        pool: tuple[int, int],
        stream: FakeStream,
        capture_error_mode: str,
    ) -> Iterator[None]:
        assert graph is self and capture_error_mode == "thread_local" and not gc.isenabled()
        assert stream is not self.default and pool == FakePool.id
        self.log.append("begin")
        self.is_recording, self.uses = True, 1
        try:
            yield
        finally:
            self.log.append("end")
            if self.breaks:
                self.is_recording &= not self.forgets
                raise RuntimeError("operation failed due to a previous error during capture")
            self.is_recording = False

    def replay(self) -> None:
        self.log.append("replay")

    def reset(self) -> None:
        if self.forgets or not self.breaks:
            self.uses = 0

    def endAllocateToPool(self, device: int, pool: tuple[int, int]) -> None:  # noqa: N802
        if not self.is_recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.is_recording = False

    def releasePool(self, device: int, pool: tuple[int, int]) -> None:  # noqa: N802
        assert self.uses > 0  # where torch ends the process
        self.uses -= 1


def test_a_recording_warms_up_and_draws_from_numbers_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card, losses = FakeCard(monkeypatch), torch.ones(2)
    shared, drawn_from = card.generator.state, list[object]()

    def program() -> Tensor:
        card.log.append("program")
        drawn_from.append(card.generator.state)
        return losses

    def seed(number: int) -> None:
        card.log.append(f"seed {number}")
        drawn_from.append(card.generator.state)

    replay = record(program, seed, torch.device("cuda", 0))
    assert card.log == ["seed 0", *["program"] * WARM_UP, "begin", "program", "end"]
    assert card.default.waited_for and card.current is card.default and gc.isenabled()
    assert card.generator.state is shared and card.uses == 1
    card.log.clear()
    assert replay(7) is losses
    assert card.log == ["seed 7", "replay"]
    assert len(set(drawn_from)) == 1 and drawn_from[0] is not shared
    assert card.generator.state is shared


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("breaks", [False, True])  # the end, too
def test_a_recording_that_breaks_says_what_broke_it_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, breaks: bool, forgets: bool
) -> None:
    card = FakeCard(monkeypatch, breaks=breaks, forgets=forgets)
    shared, calls = card.generator.state, [0]

    def program() -> Tensor:
        calls[0] += 1
        if calls[0] > WARM_UP:
            raise ValueError("the first")
        return torch.ones(1)

    with pytest.raises(ValueError, match="the first"):
        record(program, lambda number: None, torch.device("cuda", 0))
    assert card.generator.state is shared and card.current is card.default and gc.isenabled()
    assert card.default.waited_for  # so that nothing is put back too early
    assert not card.is_recording and card.uses == 0


def test_a_stream_that_is_no_default_is_recorded_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard(monkeypatch)
    own = card.current = FakeStream()
    used: list[FakeStream] = []

    def program() -> Tensor:
        used.append(card.current)
        return torch.ones(1)

    record(program, lambda number: None, torch.device("cuda", 0))
    assert all(each is own for each in used)


def test_torch_has_what_a_recording_uses() -> None:
    parameters = inspect.signature(torch.cuda.graph.__init__).parameters
    assert [*parameters][2:5] == ["pool", "stream", "capture_error_mode"]
    for name in ("CUDAGraph", "Stream", "current_stream", "default_stream", "stream"):
        assert hasattr(torch.cuda, name)
    for name in ("graphsafe_get_state", "graphsafe_set_state"):
        assert hasattr(torch.Generator, name)
    for name in ("id", "use_count"):
        assert hasattr(torch.cuda.MemPool, name)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        assert hasattr(torch._C, name)
    assert hasattr(torch.cuda.CUDAGraph, "replay") or not torch.cuda.is_available()


# --- on a card ------------------------------------------------------------------------------------


def card() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.cuda
def test_cuda_replays_what_the_program_does_and_draws() -> None:
    weight = torch.ones(8, device=card())

    def program() -> Tensor:
        weight.add_(torch.rand(8, device=weight.device))
        return weight.sum().reshape(1)

    ways = [record(program, torch.cuda.manual_seed, weight.device) for _ in range(2)]

    def eager(number: int) -> Tensor:
        torch.cuda.manual_seed(number)
        return program()

    found = []
    for take in (eager, *ways):
        torch.cuda.manual_seed(99)
        before = torch.cuda.get_rng_state(weight.device)
        weight.fill_(1)
        found.append(torch.cat([take(number).clone() for number in (3, 4)]).tolist())
        is_moved = not torch.equal(torch.cuda.get_rng_state(weight.device), before)
        assert is_moved == (take is eager)
    assert found[0] == found[1] == found[2]


@pytest.mark.cuda
@pytest.mark.parametrize("is_apart", [False, True])
def test_cuda_a_recording_that_breaks_leaves_nothing(is_apart: bool) -> None:
    """On the stream that is recorded, or on one that wasn't joined to it again."""
    there = torch.ones(4 * MIB, device=card())
    side, calls = torch.cuda.Stream(card()), [0]  # type: ignore[no-untyped-call]

    def program() -> Tensor:
        calls[0] += 1
        begun = torch.cuda.current_stream(there.device)
        stream = side if is_apart else begun
        stream.wait_stream(begun)
        with torch.cuda.stream(stream):
            total = (there * 2).sum()
            if calls[0] == WARM_UP + 1:
                total.item()  # which can't be recorded
        begun.wait_stream(stream)
        return total.reshape(1)

    gc.collect()
    torch.cuda.empty_cache()
    held, words = torch.cuda.memory_reserved(), ""
    try:
        record(program, torch.cuda.manual_seed, there.device)
    except RuntimeError as error:
        words = str(error)
    assert "captur" in words and calls[0] == WARM_UP + 1
    gc.collect()
    torch.cuda.empty_cache()  # fails where the allocator thinks that it is still recording
    assert torch.cuda.memory_reserved() <= held + 4 * MIB
    assert record(program, torch.cuda.manual_seed, there.device)(1).item() == 8 * MIB
