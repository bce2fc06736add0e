"""How long a study will take: a few timed steps of every kind of task, then arithmetic."""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionrun.common.device_errors import has_broken_process, is_out_of_memory
from fusionrun.common.distributed import usable_cpus
from fusionrun.common.memory import free_memory
from fusionrun.common.text import plural, size
from fusionrun.doctor.step_timing import Timing, time_task
from fusionrun.launch.checks.finding import Finding, split_message
from fusionrun.launch.checks.folders import weight_bytes
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.study.schedule import simulate
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.errors import TaskError
from fusionrun.training.precision import FP32, Precision

CONTEXT_BYTES = 2**29  # of a GPU, held by each process that uses it
IN_TRAINING = "it would fail in training, too"
EVALUATION_SHARE = 1 / 3  # of a training step's time an image: the backward pass costs two


@dataclass(frozen=True)
class RowEstimate:
    """One row of the table, while all ranks work; None: not known."""

    row: Row
    experts_left: int  # experts of this architecture that are still to be trained
    expert_seconds: float | None  # of each of them, on average
    epoch_seconds: float | None  # of fusion training, with validation
    seconds: float | None  # of all that is left of fusion training, with evaluation
    memory: float | None  # peak bytes, of the row or of its experts
    timing: Timing | None  # of fusion training
    expert_timing: Timing | None


@dataclass(frozen=True)
class Estimate:
    """What a launch with `ranks` ranks on this machine will take."""

    ranks: int
    rows: list[RowEstimate]
    seconds: float | None
    findings: list[Finding]
    precision: Precision = FP32  # what was timed computed in


def estimate(
    context: RunContext,
    done: Mapping[str, int],
    *,
    ranks: int,
    gpus: int,
    seconds: float,
    scratch: Path,
    progress: Callable[[str], None],
) -> Estimate:
    """Time what is still to do, rows of one model and fusion once, and add it up.

    `done` are the epochs of each task that an earlier launch did; `gpus` the GPUs, or slices of
    them, that `ranks` share, 0 where they use the CPU.
    """
    precision = context.precision  # asked before a task can break the device
    tasks = [task for task in context.study.tasks if done[task.name] < task.epochs]
    timings, findings, is_broken = _time_all(context, tasks, seconds, scratch, progress)
    # how much slower a task is while all ranks work than alone, if they share evenly
    crowd = max(1.0, min(ranks, len(tasks)) * context.threads / usable_cpus())
    if gpus:
        crowd = max(1.0, min(ranks, len(tasks)) / gpus)
    spent: dict[str, float | None] = {}
    for task in tasks:
        timing = timings[task.name]
        epochs = task.epochs - done[task.name]
        seconds_alone = None if timing is None else task_seconds(context, task, timing, epochs)
        spent[task.name] = None if seconds_alone is None else crowd * seconds_alone
    total = None
    known = {name: value for name, value in spent.items() if value is not None}
    if len(known) == len(spent):
        total = max((run.end for run in simulate(tasks, known, ranks)), default=0.0)
    rows = [
        _row_estimate(context, task, timings, spent, crowd)
        for task in context.study.tasks
        if isinstance(task, RowTask)
    ]
    if not is_broken:
        together = math.ceil(ranks / gpus) if gpus else ranks
        findings += _check_memory(context, [timings[task.name] for task in tasks], together)
    return Estimate(ranks, rows, total, findings, precision)


def _time_all(
    context: RunContext,
    tasks: Sequence[Task],
    seconds: float,
    scratch: Path,
    progress: Callable[[str], None],
) -> tuple[dict[str, Timing | None], list[Finding], bool]:
    """{task: its timing, None where it failed}; why; whether one broke the device for the rest."""
    weights = weight_bytes(context.study)
    timings: dict[tuple[str, ...], Timing | None] = {}
    findings: list[Finding] = []
    is_broken = False
    for task in tasks:
        kind = _kind(task)
        if kind in timings:
            continue
        progress(f"timing {task.name}")
        everything, learning = weights[task.name]
        copies = 2 if task.trains_alone else 3  # gradients and what AdamW or SGD keeps
        fixed = everything + copies * learning
        timings[kind] = None
        # a single network is timed as an expert, with which it shares everything but the images
        timed = task
        if task.trains_alone:
            timed = ExpertTask(task.index, task.model, 0, task.cost, task.epochs)
        try:
            timings[kind] = time_task(context, timed, fixed, seconds, scratch)
        except CheckpointError:
            pass  # the experts' check has said it
        except Exception as error:
            findings.append(_failed(task, error))
            if is_broken := has_broken_process(error):
                found = "what comes after that task couldn't be timed: it broke this process's GPU"
                findings.append(Finding("time", "warn", found, "run doctor again without that row"))
                break
    return {task.name: timings.get(_kind(task)) for task in tasks}, findings, is_broken


def _failed(task: Task, error: Exception) -> Finding:
    """Why a task's first steps weren't done."""
    if isinstance(error, TaskError):
        found, advice = split_message(str(error))
        return Finding(task.name, "fail", found, advice or IN_TRAINING)
    if is_out_of_memory(error):
        field = "experts.batch_size" if task.trains_alone else "fusion.batch_size"
        advice = f"set a smaller {field}, or train fewer experts or a smaller network"
        return Finding(task.name, "fail", "needs more memory than is free", advice)
    reason = str(error).splitlines()[0] if str(error) else "no message"
    found = f"its first steps fail: {type(error).__name__}: {reason}"
    return Finding(task.name, "fail", found, IN_TRAINING)


def _kind(task: Task) -> tuple[str, ...]:
    """Tasks of one kind take equally long steps."""
    if isinstance(task, ExpertTask) or not task.row.experts:
        return (task.model,)
    return task.model, task.row.method


def task_seconds(context: RunContext, task: Task, timing: Timing, epochs: int) -> float:
    """Of `epochs` epochs with their validation and, of a row, the measurements around them."""
    train, validation, once = _images(context, task)
    images = epochs * (train + EVALUATION_SHARE * validation) + EVALUATION_SHARE * once
    return timing.seconds_per_image * images


def _images(context: RunContext, task: Task) -> tuple[int, int, int]:
    """Images that a task trains on and validates with in an epoch, and evaluates once."""
    splits = context.splits
    if isinstance(task, ExpertTask):
        return len(splits.expert_train[task.expert]), len(splits.expert_val[task.expert]), 0
    validation, test = len(splits.fusion_val), len(context.data.test_labels)
    if task.row.is_full_ensemble:  # whose networks are other tasks'
        return 0, 0, len(task.needs) * (validation + test)
    if task.row.is_single:
        return len(splits.everything), validation, test
    # the experts before fusion on validation and test set, the row on the test set
    return len(splits.fusion_train), validation, validation + 2 * test


def _row_estimate(
    context: RunContext,
    task: RowTask,
    timings: Mapping[str, Timing | None],
    spent: Mapping[str, float | None],
    crowd: float,
) -> RowEstimate:
    left = [name for name in task.needs if name in spent]
    each = [value for name in left if (value := spent[name]) is not None]
    timing = timings.get(task.name)
    train, validation, _ = _images(context, task)
    epoch = None
    if timing is not None:
        images = train + EVALUATION_SHARE * validation
        epoch = crowd * timing.seconds_per_image * images
    of_experts = [timings[name] for name in left]
    known = (each for each in (timing, *of_experts) if each is not None)
    memory = [each.memory for each in known if each.memory is not None]
    return RowEstimate(
        row=task.row,
        experts_left=len(left),
        expert_seconds=sum(each) / len(each) if each else None,
        epoch_seconds=epoch,
        seconds=spent.get(task.name, 0.0),
        memory=max(memory, default=None),
        timing=timing,
        expert_timing=next(iter(of_experts), None),
    )


# ---------------------------------------------------------------- memory


def _check_memory(
    context: RunContext, timings: Sequence[Timing | None], together: int
) -> Iterator[Finding]:
    """The largest of the tasks, `together` of which can meet on one device, all at once."""
    known = [timing for timing in timings if timing is not None and timing.memory is not None]
    free = free_memory(context.device)
    if not known or free is None:
        return
    largest = heapq.nlargest(together, known, key=lambda timing: timing.memory or 0)
    need = sum(timing.memory or 0 for timing in largest)
    if context.device.type == "cuda":
        need += CONTEXT_BYTES * len(largest)
    guessed = any(timing.is_scaled for timing in largest)
    where = "on a GPU" if context.device.type == "cuda" else "of this machine"
    found = (
        f"{'about ' if guessed else ''}{size(need)} for {plural(len(largest), 'task')} at once, "
        f"{size(free)} free {where}"
    )
    advice = "start fewer ranks, or set a smaller fusion.batch_size and experts.batch_size"
    shrinks = context.study.recipe.fusion.micro_batch == "auto" and context.device.type == "cuda"
    if need <= 0.9 * free:
        yield Finding("memory", "pass", found)
    elif shrinks and len(largest) > 1:  # alone each of them has been seen to fit
        advice = "they would train in smaller micro-batches; start fewer ranks, and they needn't"
        yield Finding("memory", "warn", found, advice)
    else:
        yield Finding("memory", "fail" if need > free and not guessed else "warn", found, advice)
