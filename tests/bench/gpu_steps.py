"""Steps on a GPU: kernel by kernel, as one graph, with branches, compiled, four experts at once."""

import contextlib
import gc
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import nn

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.common.device_errors import is_out_of_memory
from fusionrun.common.memory import reset_peak
from fusionrun.common.text import one_line
from fusionrun.common.text import size as size_of
from fusionrun.data.loader import STEPS_AHEAD
from fusionrun.experts import build_expert
from fusionrun.fusions.branches import in_streams
from fusionrun.launch.company import Company
from fusionrun.training import graphs
from fusionrun.training.compiling import compiled_trunks
from fusionrun.training.errors import ShortOfMemoryError
from fusionrun.training.trainer import Trainer
from tests.bench import fusionrun_side
from tests.bench.measure import Bench, Goal, Row, share, times_as_fast
from tests.bench.steps import GPU_BATCH, GPU_GOALS

EXPERT_BATCH = {"densenet": 64}  # as published; others GPU_BATCH
# ms an expert's step with its batch may take on an H100, four at once
EXPERT_BARS = {"resnet": 3.2, "densenet": 9.5, "improved_wide_resnet": 14.0, "resnext": 25.0}
AT_ONCE = 4
EXPERTS = 4  # of a row
WARM_UP = graphs.EAGER_STEPS + 2  # steps before the first that is timed
OVERFLOWS = 20  # steps more that fp16 may take before its scale fits; none of them is recorded
REPEAT = 10  # steps that are timed together
IMAGES = 4096  # of which batches are loaded: more than are made ahead
FAILED = "failed: "  # how the note of a figure begins that couldn't be had
SIZE = 8192  # of the matrices whose product shows the peak
KINDS: dict[str, Callable[..., Trainer]] = {
    "expert": fusionrun_side.expert,
    "row": fusionrun_side.row,
}


@contextlib.contextmanager
def _compiled_branches(model: nn.Module) -> Iterator[None]:
    with in_streams(model), compiled_trunks(model):
        yield


# what graphs.WAYS is there
WAYS: dict[str, tuple[graphs.Way, ...]] = {
    "graph": graphs.WAYS[-1:],
    "compiled": (("compiled", _compiled_branches),),
}


@dataclass(frozen=True)
class Timed:
    """A way to do a step."""

    seconds: list[float]  # a step, of each round
    host: list[float]  # the same, until the host has asked for all of it
    kernels: int
    reserved: int  # bytes
    set_up: float  # seconds until it was ready, the network's making left out

    @property
    def note(self) -> str:
        return (
            f"asked for in {1e3 * median(self.host):.2f} ms, {self.kernels:,} kernels, "
            f"{size_of(self.reserved)}, ready in {self.set_up:.1f} s"
        )


def batch_of(model: str, kind: str) -> int:
    return EXPERT_BATCH.get(model, GPU_BATCH) if kind == "expert" else GPU_BATCH


def row_steps(bench: Bench, model: str) -> list[Row]:
    """A row's step in every way but compiled, against the conventional one, one after another."""
    name = f"{model} row, batch {GPU_BATCH}"
    conventional: list[float] = []

    def measure() -> list[Row]:
        conventional.extend(_conventional(bench, model))
        return []

    rows = unless_it_fails(measure, f"{name}: conventional")
    for way, goal in (("eager", None), ("graph", None), ("launched", GPU_GOALS[model])):
        rows += row_step(bench, model, way, goal, conventional)
    return rows


def row_step(
    bench: Bench, model: str, way: str, goal: float | None, conventional: list[float]
) -> list[Row]:
    """One way of it; without a ratio where the conventional one found no room."""

    def measure() -> list[Row]:
        ours = timed(bench, model, "row", way)
        least = None if goal is None else Goal(goal)
        row = Row("gpu", name, least, (), median(ours.seconds), None, "s", ours.note)
        if conventional:
            row = times_as_fast(
                "gpu", name, goal, theirs=conventional, ours=ours.seconds, note=ours.note
            )
        return [row, *(_shares(bench, model, "row", ours) if way == "launched" else ())]

    name = f"{model} row, batch {GPU_BATCH}: {way}"
    return unless_it_fails(measure, name)


def compiled(bench: Bench, model: str) -> list[Row]:
    """The step of an expert and of a row with kernels made for it, against the graph without."""
    rows = []
    for kind in KINDS:
        name = f"{model} {kind}, batch {batch_of(model, kind)}: compiled against launched"

        def measure(kind: str = kind, name: str = name) -> list[Row]:
            theirs, ours = (timed(bench, model, kind, way) for way in ("launched", "compiled"))
            return [
                times_as_fast(
                    "gpu", name, None, theirs=theirs.seconds, ours=ours.seconds, note=ours.note
                )
            ]

        rows += unless_it_fails(measure, name)
    return rows


def halves(bench: Bench, model: str) -> list[Row]:
    """A row's step in float16, whose batch norm is cuDNN's, against bfloat16, whose is torch's."""
    name = f"{model} row, batch {GPU_BATCH}: fp16 against bf16"

    def measure() -> list[Row]:
        theirs, ours = (timed(bench, model, "row", "launched", amp=amp) for amp in ("bf16", "fp16"))
        return [
            times_as_fast(
                "gpu", name, None, theirs=theirs.seconds, ours=ours.seconds, note=ours.note
            )
        ]

    return unless_it_fails(measure, name)


def expert_steps(bench: Bench, model: str) -> list[Row]:
    """An expert's step alone, eager and as launched; its batch; four at once with their batches."""
    name = f"{model} expert, batch {batch_of(model, 'expert')}"

    def alone() -> list[Row]:
        eager, launched = (timed(bench, model, "expert", way) for way in ("eager", "launched"))
        return [
            times_as_fast(
                "gpu",
                f"{name}: launched against eager",
                None,
                theirs=eager.seconds,
                ours=launched.seconds,
                note=f"{launched.note}; eager {eager.note}",
            ),
            *_shares(bench, model, "expert", launched),
        ]

    at_once = f"{name}: {AT_ONCE} at once, a step of each with its batch"

    def together() -> list[Row]:
        seconds = _at_once(bench, model)
        bar = [EXPERT_BARS[model] / 1e3] * len(seconds)
        return [share("gpu", at_once, 1.0, ours=seconds, of=bar, note="the bar: an H100's")]

    rows = unless_it_fails(alone, name)
    return rows + unless_it_fails(together, at_once)


@contextlib.contextmanager
def done_by(way: str, trainer: Trainer) -> Iterator[None]:
    """In here `trainer` finds its way to do a step: eager, as one graph, as launched, compiled.

    Compilers are left out but where they are asked for. Raises OtherWayError if it hasn't found it.
    """
    said = list[str]()
    take = trainer._take
    with mock.patch.object(graphs, "repays", lambda *_: False), contextlib.ExitStack() as changes:
        if isinstance(take, graphs.GraphedStep):
            changes.enter_context(mock.patch.object(take, "_say", said.append))
        if way in WAYS:
            changes.enter_context(mock.patch.object(graphs, "WAYS", WAYS[way]))
        if way == "compiled":
            changes.enter_context(mock.patch.object(graphs, "TOLERANCE", graphs.FUSED_TOLERANCE))
        yield
    is_graph = isinstance(take, graphs.GraphedStep) and take._replay is not None
    if is_graph != (way != "eager"):
        raise OtherWayError("; ".join(said) or f"a graph: {is_graph}")


class OtherWayError(Exception):
    """A step isn't done as it was to be."""


def unless_it_fails(measure: Callable[[], list[Row]], name: str) -> list[Row]:
    """What `measure` finds, or a row that says why it doesn't: the next may."""
    try:
        return measure()
    except Exception as error:
        is_full = is_out_of_memory(error) or isinstance(error, ShortOfMemoryError)
        if not is_full:
            traceback.print_exc()
        note = "out of memory" if is_full else f"{FAILED}{type(error).__name__}: {one_line(error)}"
    give_back()  # the traceback held what filled the memory
    return [Row("gpu", name, None, note=note)]


def warm_up(trainer: Trainer) -> int:
    """Steps until `trainer` has found its way."""
    return WARM_UP + OVERFLOWS * trainer.optimisation.precision.is_scaled


def timed(bench: Bench, model: str, kind: str, way: str, **runtime: Any) -> Timed:
    """Raises OtherWayError where a step isn't done in that way."""
    give_back()
    trainer = _trainer(bench, model, kind, graphs="off" if way == "eager" else "auto", **runtime)
    reset_peak(bench.device)
    batch = next(fusionrun_side.endless_batches(trainer))
    start = time.perf_counter()
    with done_by(way, trainer):
        for _ in range(warm_up(trainer)):
            trainer.train_step(batch)
    bench.settle()
    set_up = time.perf_counter() - start
    reserved = torch.cuda.max_memory_reserved(bench.device)
    seconds, host = clocked(bench, lambda: trainer.train_step(batch))
    return Timed(seconds, host, kernels(bench, lambda: trainer.train_step(batch)), reserved, set_up)


def clocked(bench: Bench, work: Callable[[], object]) -> tuple[list[float], list[float]]:
    """(seconds of one `work()`, those that the host needs for it), of each round."""
    host: list[float] = []

    def side() -> float:
        bench.settle()
        start = time.perf_counter()
        for _ in range(REPEAT):
            work()
        host.append((time.perf_counter() - start) / REPEAT)
        bench.settle()
        return (time.perf_counter() - start) / REPEAT

    (seconds,) = bench.interleave(side)
    return seconds, host[1:]


def kernels(bench: Bench, work: Callable[[], object]) -> int:
    """How many are launched for it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        bench.settle()
    return sum(1 for event in seen.events() or () if event.device_type.name == "CUDA")


def give_back() -> None:
    """What the networks before have left; a graph keeps its memory as long as anybody knows it."""
    gc.collect()
    torch.cuda.empty_cache()


def half_precision() -> torch.dtype:
    """What this GPU computes fast in."""
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _at_once(bench: Bench, model: str) -> list[float]:
    """Seconds a step of an expert and its batch, several experts taking turns in this process."""
    give_back()
    trainers = [_trainer(bench, model, "expert") for _ in range(AT_ONCE)]
    lanes = Company(AT_ONCE, bench.device).lanes(AT_ONCE)
    batches = map(fusionrun_side.endless_batches, trainers)
    turns = list(zip(lanes, trainers, batches, strict=True))

    def steps() -> None:
        for lane, trainer, ahead in turns:
            with lane:
                trainer.train_step(next(ahead))

    with contextlib.ExitStack() as ways:
        for trainer in trainers:
            ways.enter_context(done_by("launched", trainer))
        for _ in range(warm_up(trainers[0])):
            steps()
    (seconds,) = bench.interleave(bench.timed(steps, STEPS_AHEAD))
    return [each / AT_ONCE for each in seconds]


def _trainer(bench: Bench, model: str, kind: str, **runtime: Any) -> Trainer:
    size = batch_of(model, kind)
    context = fusionrun_side.run_context(bench, model, batch_size=size, images=IMAGES, **runtime)
    return KINDS[kind](context)


def _conventional(bench: Bench, model: str) -> list[float]:
    give_back()
    trainer = _trainer(bench, model, "row")
    theirs = fusionrun_side.reference_trainer(trainer)
    _, mixed = fusionrun_side.batch_for_both(trainer)
    (seconds,) = bench.interleave(bench.timed(lambda: theirs.step(mixed), REPEAT))
    return seconds


def _shares(bench: Bench, model: str, kind: str, step: Timed) -> list[Row]:
    """Of the GPU's peak, that of a large matrix product in half precision; and of the loader."""
    give_back()
    dtype, batch = half_precision(), batch_of(model, kind)
    a, b = (torch.randn(SIZE, SIZE, device=bench.device, dtype=dtype) for _ in range(2))
    batches = fusionrun_side.endless_batches(_trainer(bench, model, kind))
    matmul, loading = bench.interleave(
        bench.timed(lambda: a @ b, REPEAT), bench.timed(lambda: next(batches), STEPS_AHEAD)
    )
    with torch.device("meta"):
        network = build_expert(model, fusionrun_side.CLASSES)
    # two operations a multiply-accumulate; the backward pass costs two forward ones
    experts = 1 if kind == "expert" else EXPERTS
    work = 6 * multiply_accumulates(network, 32) * batch * experts
    at_peak = [work / (2 * SIZE**3) * seconds for seconds in matmul]
    peak = f"{2e-12 * SIZE**3 / median(matmul):.0f} TFLOP/s in {dtype}, measured"
    name = f"{model} {kind}, batch {batch}"
    both = [step + load for step, load in zip(step.seconds, loading, strict=True)]
    return [
        share("gpu", f"{name}: at the peak", None, ours=at_peak, of=step.seconds, note=peak),
        share("gpu", f"{name}: the loader's part", 0.03, ours=loading, of=both),
    ]
