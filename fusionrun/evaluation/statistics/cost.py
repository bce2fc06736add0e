"""What a row costs: counted, timed on this device, and read from the training logs."""

import csv
import math
import statistics
import time
from collections.abc import Iterable
from datetime import datetime
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.data.loader import Batch
from fusionrun.evaluation.problems import say
from fusionrun.evaluation.schema import Cost, TrainingTime
from fusionrun.evaluation.statistics.training_work import work_of
from fusionrun.fusions import FusionModel
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.study.tasks import RowTask
from fusionrun.training.fitting import Parts

DETACHED = "detached"  # the control that answers by its experts
BATCH = 512  # images of a timed pass, whatever the device
PASSES = 50  # that are timed,
SECONDS = 2.0  # or as many as begin in this time; one more goes before them to warm up


def measure_cost(context: RunContext, row: Row, model: FusionModel) -> Cost:
    """The fused model's size, work for an image, speed here, and the seconds it was trained.

    The images of the timed passes are on the device already. Memory: weights and activations of a
    batch, on a GPU. Raises ValueError: something else stands where a training log belongs.
    """
    model.eval()
    _, seconds = _timed(context, model, 1)
    one = [1000 * each for each in seconds]
    low, high = np.quantile(one, (0.05, 0.95))
    images = min(BATCH, len(context.data.test_labels))
    on_gpu, resident = context.device.type == "cuda", 0
    if on_gpu:
        own = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        resident = torch.cuda.memory_allocated(context.device) - own  # the data set
    images, seconds = _timed(context, model, images)
    batch = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated(context.device) - resident if on_gpu else None
    layout = context.study.layout
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=fused_macs(context, row),
        train_seconds=logged_seconds(layout.row(row.model, row.variant).csv),
        expert_seconds=tuple(logged_seconds(layout.expert_csv(*each)) for each in row.experts),
        latency_ms=statistics.median(one),
        latency_low=float(low),
        latency_high=float(high),
        images_per_second=images / batch,
        peak_memory_bytes=peak,
        **work_of(context, row)._asdict(),
    )


def counted_cost(context: RunContext, row: Row, model: nn.Module) -> Cost:
    """What is counted, not timed, of a row: of its training, and of the networks that answer.

    Those are its experts alone where they were trained without fusion.
    """
    answers = model.experts if isinstance(model, FusionModel) and row.control == DETACHED else model
    return Cost(
        parameters=sum(parameter.numel() for parameter in answers.parameters()),
        macs=answering_macs(context, row),
        **work_of(context, row)._asdict(),
    )


def answering_macs(context: RunContext, row: Row) -> int:
    """Multiply-accumulates for one image of the networks that answer for a row."""
    if row.experts and row.control != DETACHED:
        return fused_macs(context, row)
    with torch.device("meta"):
        experts = [context.build_expert(member.model, k=member.k) for member in row.experts]
        experts = experts or [context.build_expert(row.model) for _ in range(row.networks or 1)]
    return sum(
        multiply_accumulates(expert, context.data.test_images.shape[-1]) for expert in experts
    )


def _timed(context: RunContext, model: nn.Module, images: int) -> tuple[int, list[float]]:
    """(first test images, `images` or as many as memory takes, seconds of each pass over them)."""

    def time_passes(batch: Batch) -> tuple[int, list[float]]:
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(context.device)
        return len(batch.labels), _seconds(context, model, batch.images)

    return next(Parts().of(context.test_loader(images).evaluation_batches(), time_passes))


@torch.no_grad()
def _seconds(context: RunContext, model: nn.Module, batch: Tensor) -> list[float]:
    """Of each timed pass over the images, one at least."""
    seconds: list[float] = []
    end = float("inf")
    for turn in range(1 + PASSES):
        start = _clock(context.device)
        with context.precision.autocast(context.device):
            model(batch)
        stop = _clock(context.device)
        if turn == 0:
            end = stop + SECONDS
        else:
            seconds.append(stop - start)
            if stop > end:
                break
    return seconds


def _clock(device: torch.device) -> float:
    """Seconds, once the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fused_macs(context: RunContext, row: Row) -> int:
    """Of convolutions, linear layers and attention's products, for one image."""
    study = context.study
    with torch.device("meta"):
        experts = [context.build_expert(member.model, k=member.k) for member in row.experts]
        fusion = study.build_fusion(row.fusion, experts)
        model = FusionModel(experts, fusion, len(context.data.classes))
    return multiply_accumulates(model, context.data.test_images.shape[-1])


def logged_seconds(path: Path) -> float | None:
    """Seconds of all epochs in a training log, validation included; None where there is no log.

    Raises ValueError for a file that isn't one.
    """
    epochs = _epochs(path)
    return None if epochs is None else math.fsum(seconds for _, seconds in epochs)


def logged_training(study: Study) -> TrainingTime | None:
    """What the training of every expert and every row took, by its table of epochs."""
    members = dict.fromkeys(member for row in study.rows for member in row.experts)
    logs = [study.layout.expert_csv(*member) for member in members]
    rows = [task.row for task in study.tasks if isinstance(task, RowTask)]
    logs += [study.layout.row(row.model, row.variant).csv for row in rows]
    try:
        return training_time(logs)
    except ValueError as error:  # the rows that it belongs to have said so, too
        say(f"fusionrun: the time of training isn't measured: {error}")
        return None


def training_time(logs: Iterable[Path]) -> TrainingTime | None:
    """What tasks took: their epochs one after another, and the time in which any of them ran.

    Of the `logs` that are there; None: there are none. An epoch that a stop interrupted counts as
    if it had run in one piece. Raises ValueError for a file that isn't a training log.
    """
    tasks = [epochs for path in logs if (epochs := _epochs(path)) is not None]
    if not tasks:
        return None
    parallel, until = 0.0, -math.inf
    for start, stop in sorted((stop - seconds, stop) for stop, seconds in chain(*tasks)):
        parallel += max(stop - max(start, until), 0.0)
        until = max(until, stop)
    serial = math.fsum(seconds for _, seconds in chain(*tasks))
    return TrainingTime(len(tasks), serial, parallel)


def _epochs(path: Path) -> list[tuple[float, float]] | None:
    """(when it ended in seconds since 1970, seconds it took) of each."""
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        try:
            return [
                (datetime.fromisoformat(line["timestamp"]).timestamp(), float(line["seconds"]))
                for line in csv.DictReader(file)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a training log with seconds and timestamp ({error!r})"
            ) from None
