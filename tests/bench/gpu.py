"""What only a GPU has: a peak to come near, a host that mustn't wait, half precision's learning."""

import itertools
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.common.memory import reset_peak
from fusionrun.common.text import size as size_of
from fusionrun.data.loader import STEPS_AHEAD
from fusionrun.experts import build_expert
from fusionrun.training.checkpoint import ResumeFile
from tests.bench import fusionrun_side
from tests.bench.measure import MODELS, Bench, Goal, Row, share, unless_out_of_memory
from tests.bench.worker_pool import Part, WorkerPool

BATCH, REPEAT = 128, 5
EXPERT_BATCH = {"densenet": 64}  # as published; others BATCH
H100_BAR = {"resnet": 3.2, "densenet": 9.5, "improved_wide_resnet": 14.0, "resnext": 25.0}  # ms
SIZE = 8192  # of the matrices whose product shows the peak
CURVE_STEPS, CURVE_END = 200, 20  # steps, and how many of the last ones are averaged
EPOCH_IMAGES, EPOCH_MODEL = 9000, "densenet"  # has the most kernels to choose

ONLY_THERE = (
    ("an expert's step with its batch against the bar for an H100", Goal(1.0, at_most=True)),
    ("the host's own part in a step", None),
    ("a step at this GPU's half precision peak against the real one", None),
    ("waits for the device in a step and the batch for it", Goal(0.0, at_most=True)),
    ("difference of half precision's loss to float32's", Goal(0.01, at_most=True)),
    ("a save's pause against the whole save", Goal(0.15, at_most=True)),
    ("a task's first epoch against its second", Goal(1.3, at_most=True)),
)


def measure(bench: Bench) -> list[Row]:
    """Without a GPU: rows that say so."""
    if not bench.on_gpu:
        return [Row("gpu", name, goal, note="there is no GPU here") for name, goal in ONLY_THERE]
    rows = []
    for model in MODELS:
        bench.say(f"gpu: {model}")
        rows += measure_model(bench, model)
    return [*rows, waits(bench), curve(bench), save_pause(bench), first_epoch(bench)]


def measure_model(bench: Bench, model: str) -> list[Row]:
    """The steps of a row and of one expert."""
    rows = []
    for kind in ("row", "expert"):
        one = partial(_measure_step, bench, model, kind)
        rows += unless_out_of_memory(one, "gpu", f"{model} {kind}")
    return rows


def _measure_step(bench: Bench, model: str, kind: str) -> list[Row]:
    """Its time, the host's own part in it, and its share of the peak.

    The peak is what a large matrix product in half precision reaches.
    """
    alone = kind == "expert"
    size = EXPERT_BATCH.get(model, BATCH) if alone else BATCH
    context = fusionrun_side.run_context(bench, model, batch_size=size)
    trainer = fusionrun_side.expert(context) if alone else fusionrun_side.row(context)
    batch = next(trainer.loaders.train.training_batches(seed=0))
    reset_peak(bench.device)
    trainer.train_step(batch)
    reserved = torch.cuda.max_memory_reserved(bench.device)
    batches, host = fusionrun_side.endless_batches(trainer), list[float]()

    def step() -> float:
        bench.settle()
        start = time.perf_counter()
        for _ in range(REPEAT):
            trainer.train_step(batch)
        host.append((time.perf_counter() - start) / REPEAT)
        bench.settle()
        return (time.perf_counter() - start) / REPEAT

    dtype = half_precision()
    a, b = (torch.randn(SIZE, SIZE, device=bench.device, dtype=dtype) for _ in range(2))
    step_seconds, matmul, loading = bench.interleave(
        step,
        bench.timed(lambda: a @ b, REPEAT),
        bench.timed(lambda: next(batches), STEPS_AHEAD),
    )
    with torch.device("meta"):
        network = build_expert(model, fusionrun_side.CLASSES)
    # two operations a multiply-accumulate; the backward pass costs two forward ones
    experts = 1 if alone else len(trainer.optimisation.head_weights) - 1
    work = 6 * multiply_accumulates(network, 32) * size * experts
    at_peak = [work / (2 * SIZE**3) * seconds for seconds in matmul]
    name = f"{model} {kind}, batch {size}"
    note = f"{_kernels(bench, lambda: trainer.train_step(batch)):,} kernels, {size_of(reserved)}"
    peak = f"{2e-12 * SIZE**3 / fmean(matmul):.0f} TFLOP/s in {dtype}, measured"
    rows = [
        share(
            "gpu", f"{name}: the host's own part", None, ours=host[1:], of=step_seconds, note=note
        ),
        share("gpu", f"{name}: at the peak", None, ours=at_peak, of=step_seconds, note=peak),
    ]
    if alone:
        both = [step + load for step, load in zip(step_seconds, loading, strict=True)]
        bar = [H100_BAR[model] / 1e3] * len(both)
        note = "the bar: an H100, four of them side by side"
        rows.append(share("gpu", f"{name}: with its batch", 1.0, ours=both, of=bar, note=note))
    return rows


def half_precision() -> torch.dtype:
    """What this GPU computes fast in."""
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _kernels(bench: Bench, work: Any) -> int:
    """How many are launched for it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        bench.settle()
    return sum(1 for event in seen.events() or () if event.device_type.name == "CUDA")


def waits(bench: Bench) -> Row:
    """How often the host waits for the device while it makes a batch and does a step."""
    trainer = fusionrun_side.row(fusionrun_side.run_context(bench, "resnet", batch_size=BATCH))
    batches = trainer.loaders.train.training_batches(seed=0)
    trainer.train_step(next(batches))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            trainer.train_step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    name = "waits for the device in a step and the batch for it"
    return share("gpu", name, 0.0, ours=[float(len(found))], of=[1.0], unit="waits")


def curve(bench: Bench) -> Row:
    """Loss after some training, half precision against float32, of the same weights and batches."""
    half = _final_loss(bench, seed=0, amp="auto")
    single = _final_loss(bench, seed=0, amp="off", tf32=False)
    other = _final_loss(bench, seed=1, amp="off", tf32=False)
    name = f"resnet: relative difference of the loss after {CURVE_STEPS} steps, "
    name += f"{half_precision()} to float32"
    note = f"losses {half:.4f} and {single:.4f}; float32 with other batches {other:.4f}"
    return share("gpu", name, 0.01, ours=[abs(half - single)], of=[single], unit="loss", note=note)


def _final_loss(bench: Bench, *, seed: int, **runtime: Any) -> float:
    context = fusionrun_side.run_context(
        bench, "resnet", batch_size=BATCH, images=8000, rate=None, **runtime
    )
    trainer = fusionrun_side.row(context)
    epochs = (
        trainer.loaders.train.training_batches(seed + 2 * number) for number in itertools.count()
    )
    batches = itertools.islice(itertools.chain.from_iterable(epochs), CURVE_STEPS)
    losses = [trainer.train_step(batch) for batch in batches]
    return float(torch.stack(losses[-CURVE_END:])[:, 0].mean())


def save_pause(bench: Bench) -> Row:
    """How long training stands still for a resume state, and how long that takes to be written."""
    trainer = fusionrun_side.row(fusionrun_side.run_context(bench, "resnet", batch_size=BATCH))
    trainer.train_step(next(trainer.loaders.train.training_batches(seed=0)))
    weights, moments = trainer.model.state_dict(), trainer.optimisation.optimizer.state_dict()
    file = ResumeFile(bench.folder("save") / "checkpoint.pth")
    pause, whole = bench.interleave(
        bench.timed(trainer.save),
        bench.timed(lambda: file.save({"model": weights, "optimizer": moments})),
    )
    name = "a resnet row: a save's pause against the whole save"
    return share("gpu", name, 0.15, ours=pause, of=whole)


def first_epoch(bench: Bench) -> Row:
    """A task's first epoch, in which kernels are chosen, against its second."""
    with WorkerPool([partial(_epochs, bench.device, bench.scratch)]) as pool:
        (first,), (second,) = pool(), pool()
    name = f"{EPOCH_MODEL} row, {EPOCH_IMAGES} images: its first epoch against its second"
    return share("gpu", name, 1.3, ours=[first], of=[second])


def _epochs(device: torch.device, scratch: Path) -> Part:
    """In a process of its own: what kernels were chosen before would count otherwise."""
    bench = Bench(device, 1, scratch, lambda message: None)
    images = EPOCH_IMAGES + 200
    context = fusionrun_side.run_context(bench, EPOCH_MODEL, batch_size=BATCH, images=images)
    parts = np.split(np.arange(images), [EPOCH_IMAGES])
    splits = replace(context.splits, fusion_train=parts[0], fusion_val=parts[1])
    trainer = fusionrun_side.row(replace(context, splits=splits))
    return bench.timed(lambda: fusionrun_side.train_epoch(trainer))
