"""How long a study will take and how much memory: a few steps of every task, then arithmetic.

The steps are those of the real tasks (execution.py) with a scratch folder for their files and
a stopwatch where training asks whether it should stop.
"""

import gc
import heapq
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fusionrun.assignment import Row, Task
from fusionrun.checks import Finding, expert_paths, plural, size, weight_bytes
from fusionrun.execution import Workplace, train_expert, train_row
from fusionrun.experts import build_expert
from fusionrun.layout import Layout, expert_file
from fusionrun.logs.text import TaskLog
from fusionrun.reporting import TaskReporter
from fusionrun.status import Record
from fusionrun.training.checkpoint import CheckpointError, save
from fusionrun.training.loop import TaskError

MAX_STEPS = 200  # timed steps; more make no estimate better
WARM_UP = {"cpu": 1, "cuda": 5}  # steps: choosing algorithms, allocating memory
PROBE = 2  # images of the first batch on a CPU, where a full one may take minutes
STEPS_WANTED = 3  # timed steps that should fit the budget
CONTEXT_BYTES = 2**29  # of a GPU, held by each process that uses it
EVALUATION_SHARE = 1 / 3  # of a training step's time an image: the backward pass costs two


@dataclass(frozen=True)
class Timing:
    """What a few steps of one task cost."""

    seconds_per_image: float
    steps: int  # that were timed
    batch: int  # of these steps
    full_batch: int  # of real training
    memory: float | None  # peak bytes at the full batch; None: not measured here

    @property
    def is_scaled(self) -> bool:
        return self.batch < self.full_batch


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


@dataclass(frozen=True)
class Estimate:
    """What a launch with `ranks` ranks on this machine will take."""

    ranks: int
    rows: list[RowEstimate]
    seconds: float | None
    findings: list[Finding]


# ---------------------------------------------------------------- a few steps


class Enough(Exception):  # noqa: N818 - not an error
    """The stopwatch has seen enough steps."""


class Stopwatch:
    """Asked after every step whether to stop; times the steps after the warm-up, one at least."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.steps = 0  # timed
        self.seconds = 0.0  # of all timed steps
        self._device = device
        self._budget = seconds
        self._warm_up = WARM_UP[device.type]
        self._asked = 0
        self._start = 0.0

    def __call__(self) -> bool:
        """Raises Enough; stopping the usual way would write gigabytes of resume state."""
        self._asked += 1
        self.steps = self._asked - self._warm_up
        if self.steps == 0:
            self._start = self._now()
        elif self.steps > 0 and (
            self.steps >= MAX_STEPS or time.perf_counter() - self._start >= self._budget
        ):
            self.seconds = self._now() - self._start
            raise Enough
        return False

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def time_task(work: Workplace, task: Task, fixed: int, seconds: float, scratch: Path) -> Timing:
    """A few training steps of `task` on `work`'s device, in about 2 x `seconds` after set-up.

    A GPU takes the full batch. On a CPU the batch starts small and grows to what the time allows.
    `fixed` are the bytes of weights, gradients and optimizer, which don't grow with the batch.
    Raises whatever the task raises.
    """
    full = _full_batch(work, task)
    batch = full if work.device.type == "cuda" else min(full, PROBE)
    while batch < full:
        watch, *_ = _rehearse(work, task, batch, 0, scratch)
        affordable = int(batch * seconds / (STEPS_WANTED * watch.seconds / watch.steps))
        if affordable < 2 * batch:
            break
        batch = min(full, affordable)
    watch, before, peak = _rehearse(work, task, batch, seconds, scratch)
    if before is not None and peak is not None:
        peak += max(0.0, peak - before - fixed) * (full / batch - 1)
    return Timing(watch.seconds / watch.steps / batch, watch.steps, batch, full, peak)


def _full_batch(work: Workplace, task: Task) -> int:
    """Images of a real step; a part of the data may be smaller than the recipe's batch."""
    if task.row is not None:
        return min(work.study.recipe.fusion.batch_size, max(2, len(work.splits.fusion_train)))
    batch_size = work.study.expert_defaults(task.model).batch_size
    return min(batch_size, *(len(part) for part in work.splits.expert_train))


def _rehearse(
    work: Workplace, task: Task, batch: int, seconds: float, scratch: Path
) -> tuple[Stopwatch, float | None, float | None]:
    """The real task, cut short by the stopwatch: (that, bytes in use before, at the peak)."""
    watch = Stopwatch(work.device, seconds)
    stage = _stage(work, task, batch, scratch, watch)
    execute = train_row if task.row is not None else train_expert
    before = _reset_peak(work.device)
    with TaskLog(stage.study.layout.task_log(task.name), task.name) as log:
        reporter = TaskReporter(stage.study, task, Record(), log, work.device)
        try:
            execute(stage, task, reporter)
        except Enough:
            pass
        finally:
            reporter.close()
    return watch, before, _peak(work.device)


def _stage(work: Workplace, task: Task, batch: int, scratch: Path, watch: Stopwatch) -> Workplace:
    """The workplace for a rehearsal: an endless epoch, little validation, files in `scratch`."""
    recipe, splits = work.study.recipe, work.splits
    if task.row is not None:
        recipe = replace(recipe, fusion=replace(recipe.fusion, batch_size=batch))
    else:
        recipe = replace(recipe, experts=replace(recipe.experts, batch_size=batch))
    images = (WARM_UP[work.device.type] + MAX_STEPS + 1) * batch
    study = replace(
        work.study,
        recipe=recipe,
        layout=Layout(scratch / "out"),
        checkpoint_dir=_experts_for(work, task, scratch),
    )
    endless = replace(
        splits,
        expert_train=tuple(np.resize(part, images) for part in splits.expert_train),
        expert_val=tuple(part[:2] for part in splits.expert_val),
        fusion_train=np.resize(splits.fusion_train, images),
        fusion_val=splits.fusion_val[:2],
    )
    return replace(work, study=study, splits=endless, stop_requested=watch)


def _experts_for(work: Workplace, task: Task, scratch: Path) -> Path:
    """Where a row finds experts: the real ones, or untrained ones, which cost as much time."""
    study = work.study
    if task.row is None or all(path.is_file() for path in expert_paths(study)[task.model]):
        return study.checkpoint_dir
    folder = scratch / "experts"
    first = expert_file(folder, task.model, 0)
    if not first.is_file():
        arguments = study.model_arguments(task.model)
        expert = build_expert(task.model, len(work.data.classes), **arguments)
        save(first, expert.state_dict())
        for k in range(1, study.recipe.experts.count):
            os.link(first, expert_file(folder, task.model, k))
    return folder


def _reset_peak(device: torch.device) -> float | None:
    """Start measuring peak memory anew; returns the bytes in use, None where that can't be."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _peak(device)


def _peak(device: torch.device) -> float | None:
    """Peak bytes: allocated by this process on its GPU, or its resident memory on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024.0 * float(kibibytes[0]) if kibibytes else None


# ---------------------------------------------------------------- arithmetic


def estimate(
    work: Workplace,
    done: Mapping[str, int],
    *,
    ranks: int,
    seconds: float,
    scratch: Path,
    progress: Callable[[str], None],
) -> Estimate:
    """Time what is still to do, rows of one model and fusion once, and add it up.

    `done` are the epochs of each task that an earlier launch did.
    """
    tasks = [task for task in work.study.tasks if done[task.name] < task.epochs]
    timings, findings = _time_all(work, tasks, seconds, scratch, progress)
    crowd = _crowding(work, min(ranks, len(tasks)))
    spent: dict[str, float | None] = {}
    for task in tasks:
        timing = timings[task.name]
        epochs = task.epochs - done[task.name]
        seconds_alone = None if timing is None else task_seconds(work, task, timing, epochs)
        spent[task.name] = None if seconds_alone is None else crowd * seconds_alone
    total = None
    known = {name: value for name, value in spent.items() if value is not None}
    if len(known) == len(spent):
        total = launch_seconds(tasks, known, ranks)
    rows = [
        _row_estimate(work, task, timings, spent, crowd) for task in work.study.tasks if task.row
    ]
    findings += _check_memory(work, [timings[task.name] for task in tasks], ranks)
    return Estimate(ranks, rows, total, findings)


def _time_all(
    work: Workplace,
    tasks: Sequence[Task],
    seconds: float,
    scratch: Path,
    progress: Callable[[str], None],
) -> tuple[dict[str, Timing | None], list[Finding]]:
    """{task: its timing, None where it failed}, and why."""
    weights = weight_bytes(work.study)
    timings: dict[tuple[str, str], Timing | None] = {}
    findings = []
    for task in tasks:
        kind = (task.model, task.row.fusion if task.row else "")
        if kind in timings:
            continue
        progress(f"timing {task.name}")
        everything, learning = weights[task.name]
        fixed = (
            everything + (3 if task.row else 2) * learning
        )  # gradients; AdamW keeps two, SGD one
        timings[kind] = None
        try:
            timings[kind] = time_task(work, task, fixed, seconds, scratch)
        except torch.OutOfMemoryError:
            findings.append(_no_memory(task))
        except TaskError as error:
            # untrained experts stand in for trained ones, so it need not happen in earnest
            findings.append(Finding(task.name, "warn", str(error), "watch its first epoch"))
        except CheckpointError:
            pass  # the experts' check has said it
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else "no message"
            found = f"its first steps fail: {type(error).__name__}: {reason}"
            findings.append(Finding(task.name, "fail", found, "it would fail in training, too"))
    return {
        task.name: timings[task.model, task.row.fusion if task.row else ""] for task in tasks
    }, findings


def task_seconds(work: Workplace, task: Task, timing: Timing, epochs: int) -> float:
    """Of `epochs` epochs with their validation and, of a row, the measurements around them."""
    train, validation, once = _images(work, task)
    images = epochs * (train + EVALUATION_SHARE * validation) + EVALUATION_SHARE * once
    return timing.seconds_per_image * images


def _images(work: Workplace, task: Task) -> tuple[int, int, int]:
    """Images that a task trains on and validates with in an epoch, and evaluates once."""
    splits = work.splits
    if task.row is None:
        assert task.expert is not None
        return len(splits.expert_train[task.expert]), len(splits.expert_val[task.expert]), 0
    validation = len(splits.fusion_val)
    # the experts before fusion on validation and test set, the row on the test set
    return len(splits.fusion_train), validation, validation + 2 * len(work.data.test_labels)


def _row_estimate(
    work: Workplace,
    task: Task,
    timings: Mapping[str, Timing | None],
    spent: Mapping[str, float | None],
    crowd: float,
) -> RowEstimate:
    assert task.row is not None
    left = [name for name in task.needs if name in spent]
    each = [value for name in left if (value := spent[name]) is not None]
    timing = timings.get(task.name)
    train, validation, _ = _images(work, task)
    epoch = None
    if timing is not None:
        images = train + EVALUATION_SHARE * validation
        epoch = crowd * timing.seconds_per_image * images
    own = [found for name in (task.name, *left) if (found := timings.get(name)) is not None]
    memory = [found.memory for found in own if found.memory is not None]
    return RowEstimate(
        row=task.row,
        experts_left=len(left),
        expert_seconds=sum(each) / len(each) if each else None,
        epoch_seconds=epoch,
        seconds=spent.get(task.name, 0.0),
        memory=max(memory, default=None),
        timing=timing,
    )


def _crowding(work: Workplace, busy: int) -> float:
    """How much slower a task is while `busy` ranks work than alone, if they share evenly."""
    if work.device.type == "cuda":
        return max(1.0, busy / torch.cuda.device_count())
    return max(1.0, busy * work.threads / len(os.sched_getaffinity(0)))


def launch_seconds(tasks: Sequence[Task], seconds: Mapping[str, float], ranks: int) -> float:
    """When the last of `tasks` ends if ranks claim them as assignment.Queue lets them.

    Its own row and what that needs first, then the longest expected; needs that aren't among
    `tasks` are done.
    """
    rows = {task.row.index: task for task in tasks if task.row is not None}
    open_tasks = {task.name: task for task in tasks}
    ends: dict[str, float] = {}  # of the tasks that were started
    free = [(0.0, rank) for rank in range(ranks)]  # a heap
    while open_tasks:
        now, rank = heapq.heappop(free)
        own = {rows[rank].name, *rows[rank].needs} if rank in rows else set()
        ready = [
            task
            for task in open_tasks.values()
            if all(need not in open_tasks and ends.get(need, 0.0) <= now for need in task.needs)
        ]
        if ready:
            task = min(ready, key=lambda t: (t.name not in own, -t.cost, t.index))
            del open_tasks[task.name]
            ends[task.name] = now + seconds[task.name]
            heapq.heappush(free, (ends[task.name], rank))
        else:  # wait for the next task to end
            heapq.heappush(free, (min(end for end in ends.values() if end > now), rank))
    return max(ends.values(), default=0.0)


# ---------------------------------------------------------------- memory


def _no_memory(task: Task) -> Finding:
    field = "fusion.batch_size" if task.row is not None else "experts.batch_size"
    advice = f"set a smaller {field}, or train fewer experts or a smaller network"
    return Finding(task.name, "fail", "needs more memory than the GPU has free", advice)


def _check_memory(
    work: Workplace, timings: Sequence[Timing | None], ranks: int
) -> Iterator[Finding]:
    """The largest tasks that can meet on one device, all at once."""
    known = [timing for timing in timings if timing is not None and timing.memory is not None]
    room = _room(work.device)
    if not known or room is None:
        return
    together = ranks
    if work.device.type == "cuda":
        together = math.ceil(ranks / torch.cuda.device_count())
    largest = heapq.nlargest(together, known, key=lambda timing: timing.memory or 0)
    need = sum(timing.memory or 0 for timing in largest)
    if work.device.type == "cuda":
        need += CONTEXT_BYTES * len(largest)
    guessed = any(timing.is_scaled for timing in largest)
    where = "on a GPU" if work.device.type == "cuda" else "of this machine"
    found = (
        f"{'about ' if guessed else ''}{size(need)} for {plural(len(largest), 'task')} at once, "
        f"{size(room)} free {where}"
    )
    advice = "start fewer ranks, or set a smaller fusion.batch_size and experts.batch_size"
    if need <= 0.9 * room:
        yield Finding("memory", "pass", found)
    else:
        yield Finding("memory", "fail" if need > room and not guessed else "warn", found, advice)


def _room(device: torch.device) -> float | None:
    """Bytes that tasks on a device can have; None where that isn't known."""
    if device.type == "cuda":
        count = torch.cuda.device_count()
        return float(
            # what this process holds will be free again
            min(
                torch.cuda.mem_get_info(index)[0] + torch.cuda.memory_reserved(index)
                for index in range(count)
            )
        )
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * float(kibibytes[0]) if kibibytes else None
