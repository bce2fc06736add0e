"""Tasks on a GPU: waits for it, half precision's learning, a save's pause, a first epoch."""

import itertools
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusionrun.training.checkpoint import ResumeFile
from tests.bench import fusionrun_side
from tests.bench.gpu_steps import half_precision, warm_up
from tests.bench.measure import Bench, Row, share
from tests.bench.steps import GPU_BATCH
from tests.bench.worker_pool import Part, WorkerPool

CURVE_STEPS, CURVE_END = 200, 20  # steps, and how many of the last ones are averaged
EPOCH_IMAGES, EPOCH_MODEL = 9000, "densenet"  # has the most kernels to choose


def waits(bench: Bench) -> list[Row]:
    """How often the host waits for the device while it makes a batch and does a step."""
    trainer = fusionrun_side.row(fusionrun_side.run_context(bench, "resnet", batch_size=GPU_BATCH))
    for batch in itertools.islice(fusionrun_side.endless_batches(trainer), warm_up(trainer)):
        trainer.train_step(batch)
    batches = trainer.loaders.train.training_batches(seed=1)  # the first with those ahead
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            trainer.train_step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    name = "waits for the device in a step and the batch for it"
    return [share("gpu", name, 0.0, ours=[float(len(found))], of=[1.0], unit="waits")]


def curve(bench: Bench) -> list[Row]:
    """Loss after some training, half precision against float32, of the same weights and batches."""
    half = _losses(bench, seed=0, amp="auto")
    single = _losses(bench, seed=0, amp="off", tf32=False)
    other = _losses(bench, seed=1, amp="off", tf32=False)
    name = f"resnet: relative difference of the loss after {CURVE_STEPS} steps, "
    name += f"{half_precision()} to float32"
    ends = [float(np.mean(losses[-CURVE_END:])) for losses in (half, single, other)]
    note = f"losses {ends[0]:.4f} and {ends[1]:.4f}; float32 with other batches {ends[2]:.4f}"
    for words, losses in (("half", half), ("float32", single)):
        parts = np.array_split(losses, min(10, CURVE_STEPS))
        note += f"; {words}, means on the way " + " ".join(f"{part.mean():.3f}" for part in parts)
    apart = abs(ends[0] - ends[1])
    return [share("gpu", name, 0.01, ours=[apart], of=[ends[1]], unit="loss", note=note)]


def _losses(bench: Bench, *, seed: int, **runtime: Any) -> list[float]:
    """Of the fused head, at every step."""
    context = fusionrun_side.run_context(
        bench, "resnet", batch_size=GPU_BATCH, images=8000, rate=None, **runtime
    )
    trainer = fusionrun_side.row(context)
    epochs = (
        trainer.loaders.train.training_batches(seed + 2 * number) for number in itertools.count()
    )
    batches = itertools.islice(itertools.chain.from_iterable(epochs), CURVE_STEPS)
    found: list[float] = torch.stack([trainer.train_step(each).clone() for each in batches])[
        :, 0
    ].tolist()
    return found


def save_pause(bench: Bench, model: str) -> list[Row]:
    """How long training stands still for a resume state, and how long a synchronous one takes."""
    trainer = fusionrun_side.row(fusionrun_side.run_context(bench, model, batch_size=GPU_BATCH))
    trainer.train_step(next(trainer.loaders.train.training_batches(seed=0)))
    weights, moments = trainer.model.state_dict(), trainer.optimisation.optimizer.state_dict()
    file = ResumeFile(bench.folder("save") / "checkpoint.pth")
    save = bench.timed(trainer.save)  # until the device, too, may go on

    def alone() -> float:
        seconds = save()
        trainer._saver.settle()
        return seconds

    pause, whole = bench.interleave(
        alone,
        bench.timed(lambda: file.save({"model": weights, "optimizer": moments})),
    )
    name = f"a {model} row: a save's pause against the whole save"
    return [share("gpu", name, 0.15, ours=pause, of=whole)]


def first_epoch(bench: Bench) -> list[Row]:
    """A task's first epoch, in which its step is prepared, against its second."""
    with WorkerPool([partial(_epochs, bench.device, bench.scratch)]) as pool:
        (first,), (second,) = pool(), pool()
    name = f"{EPOCH_MODEL} row, {EPOCH_IMAGES} images: its first epoch against its second"
    return [share("gpu", name, 1.3, ours=[first], of=[second])]


def _epochs(device: torch.device, scratch: Path) -> Part:
    """In a process of its own: what was prepared before would count otherwise."""
    bench = Bench(device, 1, scratch, lambda message: None)
    images = EPOCH_IMAGES + 200
    context = fusionrun_side.run_context(bench, EPOCH_MODEL, batch_size=GPU_BATCH, images=images)
    parts = np.split(np.arange(images), [EPOCH_IMAGES])
    splits = replace(context.splits, fusion_train=parts[0], fusion_val=parts[1])
    trainer = fusionrun_side.row(replace(context, splits=splits))
    return bench.timed(lambda: fusionrun_side.train_epoch(trainer))
