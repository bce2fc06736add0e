"""Several ranks on one machine: their joint speed, the memory of a row, copies of the data set."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusionrun.common.memory import peak_memory, reset_peak
from fusionrun.study.context import RunContext
from tests.bench import fusionrun_side
from tests.bench.measure import MODELS, Bench, Row, share, times_as_fast
from tests.bench.startup import make_data_set
from tests.bench.worker_pool import Part, WorkerPool

RANKS = 4
SMALL = {"width": 32}  # ResNet-18 of half width
GPU_STEPS = 50  # of each rank in a round; on a CPU 1
PEAK_ROUNDS = {"cpu": 2, "cuda": 1}  # peaks hardly vary
PEAK_BATCH = {"cpu": 4, "cuda": 128}


def measure_speed(bench: Bench) -> list[Row]:
    """The same steps by four ranks at once, and by one rank with all cores, row after row."""
    steps, batch_size = (GPU_STEPS, 128) if bench.on_gpu else (1, 16)
    member = partial(_trains, bench.device, bench.scratch, batch_size)
    threads = max(1, bench.cores // RANKS)
    with (
        WorkerPool([partial(member, bench.cores, RANKS * steps)]) as one,
        WorkerPool([partial(member, threads, steps)] * RANKS) as four,
    ):
        alone, together = bench.interleave(bench.timed(one), bench.timed(four))
    bound = "the GPU" if bench.on_gpu else f"{bench.cores} cores"
    return [
        times_as_fast(
            "ranks",
            f"{RANKS} ranks with {threads} threads against one with {bench.cores}, in turn",
            0.95,
            theirs=alone,
            ours=together,
            unit="s",
            note=f"half-width resnet, batch {batch_size}; bound 1: one rank may use {bound}, too",
        )
    ]


def _trains(device: torch.device, scratch: Path, batch_size: int, threads: int, steps: int) -> Part:
    torch.set_num_threads(threads)
    bench = Bench(device, threads, scratch, lambda message: None)
    trainer = fusionrun_side.row(
        fusionrun_side.run_context(bench, "resnet", SMALL, batch_size=batch_size)
    )
    batch, _ = fusionrun_side.batch_for_both(trainer)

    def part() -> float:
        for _ in range(steps):
            trainer.train_step(batch)
        bench.settle()
        return 0.0

    return part


def measure_memory(bench: Bench) -> list[Row]:
    """Peaks of training a full-size row, each in a process of its own; then the data set."""
    rows = []
    for model in MODELS if bench.on_gpu else MODELS[:2]:
        bench.say(f"memory: {model}")
        ours, theirs = [], []
        name = f"{model}: peak of a row, batch {PEAK_BATCH[bench.device.type]}"
        try:
            for _ in range(PEAK_ROUNDS[bench.device.type]):
                ours.append(_peak(bench, model, is_reference=False))
                theirs.append(_peak(bench, model, is_reference=True))
        except EOFError:
            rows.append(Row("memory", name, None, note="its process died, as it says above"))
            continue
        rows.append(share("memory", name, 1.0, ours=ours, of=theirs, unit="GiB"))
    return [*rows, _copies(bench)]


def _peak(bench: Bench, model: str, *, is_reference: bool) -> float:
    with WorkerPool([partial(_peaks, bench.device, bench.scratch, model, is_reference)]) as pool:
        return pool()[0]


def _peaks(device: torch.device, scratch: Path, model: str, is_reference: bool) -> Part:
    bench = Bench(device, 1, scratch, lambda message: None)
    before = reset_peak(device) or 0.0
    batch_size = PEAK_BATCH[device.type]
    trainer = fusionrun_side.row(fusionrun_side.run_context(bench, model, batch_size=batch_size))
    batch, mixed = fusionrun_side.batch_for_both(trainer)
    step: Callable[[], Any] = partial(trainer.train_step, batch)
    if is_reference:
        step = partial(fusionrun_side.reference_trainer(trainer).step, mixed)
        del trainer, batch
        gc.collect()

    def part() -> float:
        reset_peak(device)
        for _ in range(2):  # the first makes the optimizer's state
            step()
        return ((peak_memory(device) or 0.0) - before) / 2**30

    return part


def _copies(bench: Bench) -> Row:
    """The data set in host memory while four ranks hold it, in sizes of the data set."""
    cache_dir = bench.folder("copies")
    size = sum(path.stat().st_size for path in make_data_set(cache_dir).glob("*.npy"))
    with WorkerPool([partial(_holder, bench.scratch, cache_dir)] * RANKS) as pool:
        before = sum(pool())
        pool()  # load it and read all of it
        held = sum(pool()) - before
    name = f"copies of the data set ({size / 2**20:.0f} MiB) that {RANKS} ranks hold"
    note = "proportional set size, before and after"
    return share("memory", name, 1.1, ours=[held / size], of=[1.0], unit="copies", note=note)


def _holder(scratch: Path, cache_dir: Path) -> Part:
    """Three calls: its memory before, the data set, its memory after."""
    bench = Bench(torch.device("cpu"), 1, scratch, lambda message: None)
    _read_all(
        fusionrun_side.run_context(bench, "resnet", fusionrun_side.TINY)
    )  # whatever that takes once

    def calls() -> Iterator[float]:
        yield _held_bytes()
        context = fusionrun_side.run_context(
            bench, "resnet", fusionrun_side.TINY, cache_dir=cache_dir
        )
        _read_all(context)
        yield 0.0
        yield _held_bytes()

    following = calls()
    return lambda: next(following)


def _read_all(context: RunContext) -> None:
    for loader in (context.loader(np.arange(len(context.labels)), 128), context.test_loader(128)):
        for _ in loader.evaluation_batches():
            pass


def _held_bytes() -> float:
    """This process's own memory, and its part of the prepared arrays it shares with others."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (own,) = (float(line.split()[1]) for line in rollup if line.startswith("Pss_Anon:"))
    mapped, is_array = 0.0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # a new mapping, with its file
            is_array = words[-1].endswith(".npy")
        elif is_array and words[0] == "Pss:":
            mapped += float(words[1])
    return 1024 * (own + mapped)
