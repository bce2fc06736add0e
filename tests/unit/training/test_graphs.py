"""Steps that are recorded once: through a record on the CPU, which calls the program again."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.data.loader import Batch
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.training import graphs
from fusionrun.training.errors import StopRequested
from fusionrun.training.graphs import EAGER_STEPS
from fusionrun.training.precision import FP32, Precision
from fusionrun.training.recording import WARM_UP, Replay
from tests.unit.training.test_trainer import (
    BATCH,
    CLASSES,
    EPOCHS,
    KINDS,
    Kit,
    make_expert,
    make_kit,
    outcome,
    runs_out,
)

Program = Callable[[], Tensor]
Seed = Callable[[int], None]
PARTIAL = EPOCHS  # batches that are never recorded: each epoch's last


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pth"


class Record:
    """In place of the real one: warms up as it does, and counts what is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self.change: Callable[[Tensor], Tensor] = lambda losses: losses
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext  # a replay

    def __call__(self, program: Program, seed: Seed, device: torch.device) -> Replay:
        self.recorded += 1
        seed(0)
        for _ in range(WARM_UP + 1):
            program()

        def replay(number: int) -> Tensor:
            self.replayed += 1
            seed(number)
            with self.around():
                return self.change(program())

        return replay


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    made = Record()
    monkeypatch.setattr(graphs, "record", made)
    monkeypatch.setattr(graphs, "RECORDS", ("cpu",))
    return made


def eager(path: Path, kind: str = "fusion", **changes: Any) -> Any:
    """What a run without graphs comes to."""
    kit = make_kit(path.with_name("eager"), kind, graphs=False, **changes)
    kit.trainer.run()
    return outcome(kit.trainer)


CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"precision": p}) for kind in KINDS for p in (FP32, Precision("fp16"))),
    *((kind, {"micro_batch": 4}) for kind in KINDS),
    ("fusion", {"recompute": True}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_a_replayed_run_is_the_eager_one_bit_for_bit(
    path: Path, record: Record, kind: str, changes: dict[str, Any]
) -> None:
    kit = make_kit(path, kind, **changes)
    kit.trainer.run()
    assert outcome(kit.trainer) == eager(path, kind, **changes)
    assert record.recorded == 1
    assert record.replayed == 2 * EPOCHS - EAGER_STEPS  # of two full batches an epoch
    [said] = kit.diary.messages
    way = "experts side by side" if kind == "fusion" else "one kernel after another"
    assert f"one CUDA graph from now on ({way}; " in said


@pytest.mark.parametrize("control", ["frozen", "detached"])
def test_controls_are_replayed(path: Path, record: Record, control: str) -> None:
    def changes() -> dict[str, Any]:
        torch.manual_seed(3)
        experts = [make_expert(), make_expert()]
        fusion = build_fusion("concatenation", 2, 8)
        model = FusionModel(experts, fusion, CLASSES, detached=control == "detached")
        frozen = experts if control == "frozen" else []
        for expert in frozen:
            expert.requires_grad_(False)
        return {"model": model, "frozen": frozen}

    kit = make_kit(path, **changes())
    kit.trainer.run()
    assert outcome(kit.trainer) == eager(path, **changes())
    assert record.replayed


@pytest.mark.parametrize("steps", range(1, 3 * EPOCHS, 2))
def test_a_stop_at_any_step_resumes_bit_for_bit(path: Path, record: Record, steps: int) -> None:
    """Whichever of a run's steps are replayed then."""
    kit = make_kit(path)
    count, take = [0], kit.trainer.train_step

    def train_step(batch: Batch) -> Tensor:
        count[0] += 1
        return take(batch)

    kit.trainer.train_step = train_step  # type: ignore[method-assign]
    kit.trainer.stop_requested = lambda: count[0] >= steps
    with pytest.raises(StopRequested):
        kit.trainer.run()
    again = make_kit(path)
    again.trainer.run()
    assert outcome(again.trainer) == eager(path)


def test_a_replay_returns_losses_of_its_own(path: Path, record: Record) -> None:
    kept = torch.zeros(3)
    record.change = lambda losses: kept.copy_(losses)  # as a graph has one place for them
    kit = make_kit(path)
    losses = []
    for _ in range(EPOCHS):
        losses += [kit.trainer.train_step(batch) for batch in kit.trainer.start_epoch()]
    assert record.replayed > 2
    assert len({tuple(each.tolist()) for each in losses}) == len(losses)


def ways(monkeypatch: pytest.MonkeyPatch, *faults: Callable[[], None]) -> list[str]:
    """Ways to record of which the first ones are faulty; returns those that were tried."""
    tried: list[str] = []

    def way(name: str, fault: Callable[[], None]) -> graphs.Way:
        @contextmanager
        def active(model: nn.Module) -> Iterator[None]:
            tried.append(name)
            fault()
            yield

        return name, active

    made = [way(f"way {i}", fault) for i, fault in enumerate([*faults])]
    monkeypatch.setattr(graphs, "WAYS", tuple(made))
    return tried


def fails() -> None:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")


def assert_stays_eager(kit: Kit, path: Path, record: Record, word: str, **changes: Any) -> None:
    kit.trainer.run()
    assert outcome(kit.trainer) == eager(path, **changes)
    [said] = kit.diary.messages
    assert said.startswith("steps stay single kernels, without a CUDA graph: ")
    assert word in said and "more" not in said


def test_a_way_that_fails_is_left_out(
    path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = ways(monkeypatch, fails, lambda: None)
    kit = make_kit(path)
    kit.trainer.run()
    assert tried == ["way 0", "way 1"]
    assert record.replayed and "(way 1; " in kit.diary.messages[0]
    assert outcome(kit.trainer) == eager(path)


def test_where_every_way_fails_steps_stay_as_they_are(
    path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = ways(monkeypatch, fails, lambda: runs_out(torch.zeros(1)) and None)
    word = "way 0: RuntimeError: CUDA error: operation not permitted when stream is capturing"
    assert_stays_eager(make_kit(path), path, record, word)
    assert tried == ["way 0", "way 1"] and not record.replayed


@pytest.mark.parametrize("factor", [1.1, math.nan])
def test_a_recording_that_differs_is_not_used(path: Path, record: Record, factor: float) -> None:
    record.change = lambda losses: losses * factor
    word = f"its numbers differ from theirs by {factor - 1:.2g}"
    assert_stays_eager(make_kit(path), path, record, word)
    assert record.replayed == len(graphs.WAYS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0, 2])
def test_a_recording_that_updates_otherwise_is_not_used(
    path: Path, record: Record, kind: str, factor: float
) -> None:
    """Although its losses and gradients are right."""
    kit = make_kit(path, kind)
    rates = [group["lr"] for group in kit.trainer.optimisation.optimizer.param_groups]
    record.around = lambda: scaled(rates, factor)
    assert_stays_eager(kit, path, record, "its numbers differ from theirs by 1", kind=kind)


@contextmanager
def scaled(rates: list[Tensor], factor: float) -> Iterator[None]:
    before = [rate.clone() for rate in rates]
    for rate in rates:
        rate.mul_(factor)
    yield
    for rate, was in zip(rates, before, strict=True):
        rate.copy_(was)


def test_how_much_may_differ_is_read_when_it_is_asked(
    path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark times what differs by more than what a launch would use."""
    monkeypatch.setattr(graphs, "TOLERANCE", 0.5)
    record.change = lambda losses: losses * 1.1
    kit = make_kit(path)
    kit.trainer.run()
    assert record.replayed > 1 and "one CUDA graph from now on" in kit.diary.messages[0]


def test_where_runs_are_reproducible_no_bit_may_differ(path: Path, record: Record) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        kit, last = make_kit(path), 1 + 1e-6
        record.change = lambda losses: losses * last
        assert_stays_eager(kit, path, record, "differ from theirs by ")
        exact = make_kit(path.with_name("exact"))
        record.change = lambda losses: losses
        exact.trainer.run()
        assert "from now on" in exact.diary.messages[0]
        moments = make_kit(path.with_name("moments"))
        optimizer = moments.trainer.optimisation.optimizer

        def move(losses: Tensor) -> Tensor:  # as an update that was recorded with a fixed number
            next(iter(optimizer.state.values()))["exp_avg"].mul_(1 + 1e-6)
            return losses

        record.change = move
        assert_stays_eager(moments, path, record, "differ from theirs by inf")
    finally:
        torch.use_deterministic_algorithms(False)


class Plugin(nn.Module):
    """An expert's part that does what no recording has."""

    def __init__(self, does: str) -> None:
        super().__init__()
        self.does, self.calls, self.log = does, 0, list[int]()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.does == "reads" and float(x.detach().mean()) > 1e9:
            return -x
        if self.does == "counts":
            self.calls += 1
        if self.does == "notes":
            self.log.append(1)
        if self.does == "replaces":
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        if self.does == "draws":
            random.random()
        if self.does == "masks":
            return x + 0 * x[x > 0].sum()
        return x


PROBLEMS = {
    "reads": "reads numbers from the device (_local_scalar_dense)",
    "masks": "reads numbers from the device (index)",
    "counts": "the model's experts.0.trunk.plugin.calls changes from step to step",
    "notes": "the model's experts.0.trunk.plugin.log changes from step to step",
    "replaces": "the model's experts.0.trunk.plugin.mean changes from step to step",
    "draws": "draws random numbers on the host",
}


@pytest.mark.parametrize("does", PROBLEMS)
def test_what_keeps_numbers_on_the_host_is_not_recorded(
    path: Path, record: Record, does: str
) -> None:
    def model() -> FusionModel:
        torch.manual_seed(3)
        experts = [make_expert(), make_expert()]
        experts[0].trunk.add_module("plugin", Plugin(does))  # type: ignore[union-attr,operator]
        return FusionModel(experts, build_fusion("concatenation", 2, 8), CLASSES)

    random.seed(1)
    kit, other = make_kit(path, model=model()), model()
    assert_stays_eager(kit, path, record, PROBLEMS[does], model=other)
    assert not record.recorded


def test_numbers_that_are_not_finite_prove_nothing(path: Path, record: Record) -> None:
    """fp16 begins with a scale that may overflow; the next step is recorded."""
    fp16 = Precision("fp16")
    kit = make_kit(path, precision=fp16)
    plain = make_kit(path.with_name("eager"), precision=fp16, graphs=False)
    for each in (kit, plain):
        weight = next(iter(each.trainer.model.parameters()))
        calls = [0]

        def overflow(gradient: Tensor, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return gradient * math.inf if calls[0] == EAGER_STEPS + 2 else gradient

        weight.register_hook(overflow)  # type: ignore[no-untyped-call]
        each.trainer.run()
    assert record.recorded == 1 and record.replayed == 2 * EPOCHS - EAGER_STEPS - 1
    assert outcome(kit.trainer) == outcome(plain.trainer)


def test_a_lack_of_memory_takes_the_graph_first(path: Path, record: Record) -> None:
    """Of the last batch, which is taken beside it: the numbers stay the same."""
    kit = make_kit(path, micro_batch="auto")
    failures = [True]

    def look(model: nn.Module, arguments: tuple[Tensor]) -> None:
        if model.training and record.replayed and len(arguments[0]) < BATCH and failures:
            failures.clear()
            runs_out(arguments[0])

    kit.trainer.model.register_forward_pre_hook(look)
    kit.trainer.run()
    assert "given up" in kit.diary.messages[1]
    assert kit.trainer.fitting.micro_batch is None
    assert outcome(kit.trainer) == eager(path, micro_batch="auto")


def test_smaller_parts_are_recorded_once_they_fit(path: Path, record: Record) -> None:
    kit = make_kit(path, micro_batch="auto")
    kit.counter.at = {2: runs_out}
    kit.trainer.run()
    assert kit.trainer.fitting.micro_batch == BATCH // 2
    assert record.recorded == 1 and record.replayed


def test_a_cpu_and_who_wants_none_record_nothing(
    path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = make_kit(path, graphs=False)
    off.trainer.run()
    monkeypatch.undo()
    monkeypatch.setattr(graphs, "record", record)
    on_cpu = make_kit(path.with_name("cpu"))
    on_cpu.trainer.run()
    assert record.recorded == 0 and on_cpu.diary.messages == off.diary.messages == []


def test_a_graphs_memory_is_given_back_at_the_end(path: Path, record: Record) -> None:
    kit = make_kit(path)
    kit.trainer.run()
    assert record.replayed
    assert not any(leaves() for leaves, _ in kit.trainer.fitting.spare)


# --- kernels that are made for a network ----------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A compiler that pays and whose kernels are the same ones; what was asked of it."""
    asked: list[str] = []

    @contextmanager
    def compiled(model: nn.Module) -> Iterator[None]:
        asked.append("in")
        yield
        asked.append("out")

    seconds = iter([0.02, 0.01])  # of a replay without and with them
    monkeypatch.setattr(graphs, "compiled_trunks", compiled)
    monkeypatch.setattr(graphs, "repays", lambda model, steps, seconds: True)
    monkeypatch.setattr(graphs, "obstacle", lambda: "")
    timed = graphs.seconds_of

    def take_time(*of: Any) -> float:
        assert timed(*of) > 0
        return next(seconds)

    monkeypatch.setattr(graphs, "seconds_of", take_time)
    return asked


MAKING = "kernels are made for this network now, which can take minutes"


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_made_for_a_network_are_used_where_they_are_faster(
    path: Path, record: Record, compiler: list[str], kind: str
) -> None:
    kit = make_kit(path, kind)
    kit.trainer.run()
    assert compiler == ["in", "out"] and record.recorded == 2
    plain, making, used = kit.diary.messages
    assert "one CUDA graph from now on" in plain and making == MAKING
    assert used.startswith("kernels made for this network are used (10.0 ms a step, 20.0 without; ")
    assert outcome(kit.trainer) == eager(path, kind)


def test_slower_ones_are_not(
    path: Path, record: Record, compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.01, 0.02])
    monkeypatch.setattr(graphs, "seconds_of", lambda *of: next(seconds))
    assert_plain_graph_stays(path, record, "(20.0 ms a step, 10.0 without; ")


def test_nor_ones_that_fail(
    path: Path, record: Record, compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(model: nn.Module) -> Iterator[None]:
        fails()
        yield

    monkeypatch.setattr(graphs, "compiled_trunks", broken)
    assert_plain_graph_stays(path, record, "not used (RuntimeError: CUDA error: operation not")


def test_nor_ones_that_compute_something_else(
    path: Path, record: Record, compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def wrong(model: nn.Module) -> Iterator[None]:
        factors = iter([1.2])  # of its proof, which is its only replay
        record.change = lambda losses: losses * next(factors, 1.0)
        yield

    monkeypatch.setattr(graphs, "compiled_trunks", wrong)
    assert_plain_graph_stays(path, record, "not used (its numbers differ from theirs by 0.2)")


def assert_plain_graph_stays(
    path: Path, record: Record, word: str, *, is_alone: bool = True
) -> None:
    kit, before = make_kit(path), record.replayed
    kit.trainer.fitting.has_company = lambda: not is_alone
    kit.trainer.run()
    assert "one CUDA graph from now on" in kit.diary.messages[0]
    assert kit.diary.messages[1] == MAKING
    assert word in kit.diary.messages[2] and len(kit.diary.messages) == 3
    assert record.replayed > before
    assert outcome(kit.trainer) == eager(path)


def test_nor_ones_whose_graph_finds_no_memory_beside_others(
    path: Path, record: Record, compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def short(model: nn.Module) -> Iterator[None]:
        runs_out(torch.zeros(1))
        yield

    monkeypatch.setattr(graphs, "compiled_trunks", short)
    assert_plain_graph_stays(path, record, "not used (OutOfMemoryError", is_alone=False)


def test_where_there_is_no_compiler_that_is_said(
    path: Path, record: Record, compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "obstacle", lambda: "there is no C compiler")
    kit = make_kit(path)
    kit.trainer.run()
    _, said = kit.diary.messages
    assert said == "kernels can't be made for this network: there is no C compiler"
    assert not compiler and outcome(kit.trainer) == eager(path)


def test_who_wants_none_and_reproducible_runs_compile_nothing(
    path: Path, record: Record, compiler: list[str]
) -> None:
    make_kit(path, compiles=False).trainer.run()
    torch.use_deterministic_algorithms(True)
    try:
        make_kit(path.with_name("exact")).trainer.run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert record.recorded == 2 and not compiler
