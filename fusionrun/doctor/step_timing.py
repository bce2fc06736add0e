"""A few steps of a task as it will be trained: how long one takes, how much memory it needs.

They are the real task's, with a scratch folder for its files and a stopwatch where training asks
whether it should stop.
"""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fusionrun.common.memory import peak_memory, reset_peak
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.train_task import train
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.context import RunContext
from fusionrun.study.models import without_pretrained
from fusionrun.study.paths import Layout, expert_file
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.training.checkpoint import save

MAX_STEPS = 200  # timed steps; more make no estimate better
WARM_UP = {"cpu": 1, "cuda": 5}  # steps: choosing algorithms, allocating memory
PROBE = 2  # images of the first batch on a CPU, where a full one may take minutes
STEPS_WANTED = 3  # timed steps that should fit the budget
LEAST_SLOPE = 0.25  # of a step's time that surely grows with the batch, however noisy two timings


@dataclass(frozen=True)
class Timing:
    """What a few steps of one task cost."""

    seconds_per_image: float
    steps: int  # that were timed
    batch: int  # of these steps
    full_batch: int  # of real training
    memory: float | None  # peak bytes at the full batch; None: not measured here
    fixed: float = 0.0  # bytes of that which don't grow with the batch: weights and their updates
    activations: float | None = None  # bytes that do

    @property
    def is_scaled(self) -> bool:
        return self.batch < self.full_batch


class Enough(Exception):  # noqa: N818 - not an error
    """The stopwatch has seen enough steps."""


class Stopwatch:
    """Asked after every step whether to stop; times the steps after the warm-up, one at least.

    Beside that it adds up what autograd keeps for the backward pass, if `keep` is its hook.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.steps = 0  # timed
        self.seconds = 0.0  # of all timed steps
        self.activations = 0  # bytes that the last step kept
        self._kept: dict[int, int] = {}  # {address: bytes} in the running step
        self._device = device
        self._budget = seconds
        self._warm_up = WARM_UP[device.type]
        self._asked = 0
        self._start = 0.0

    def __call__(self) -> bool:
        """Raises Enough; stopping the usual way would write gigabytes of resume state."""
        self.activations = sum(self._kept.values())
        self._kept.clear()
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

    def keep(self, tensor: Tensor) -> Tensor:
        """What grows with the batch: weights, or views of them, are left out."""
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, nn.Parameter):
            storage = tensor.untyped_storage()
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def time_task(context: RunContext, task: Task, fixed: int, seconds: float, scratch: Path) -> Timing:
    """A few training steps of `task` on `context`'s device, in about 2 x `seconds` after set-up.

    A GPU takes the full batch. On a CPU the batch starts small and grows to what the time allows.
    `fixed` are the bytes of weights, gradients and optimizer, which don't grow with the batch.
    Raises whatever the task raises.
    """
    # a part of the data may be smaller than the recipe's batch
    if isinstance(task, RowTask):
        images = max(2, len(context.splits.fusion_train))
        full = min(context.study.recipe.fusion.batch_size, images)
    else:
        images = min(map(len, context.splits.expert_train))
        full = min(context.study.expert_defaults(task.model).batch_size, images)
    trials: dict[int, float] = {}  # {batch: seconds a step}
    batch = full if context.device.type == "cuda" else min(full, PROBE)
    while batch < full:
        watch, *_ = _run_steps(context, task, batch, 0, scratch)
        trials[batch] = watch.seconds / watch.steps
        affordable = int(batch * seconds / (STEPS_WANTED * trials[batch]))
        if affordable < 2 * batch:
            break
        batch = min(full, affordable)
    batch = min(full, max(batch, 2 * PROBE)) if trials else full
    watch, before, peak = _run_steps(context, task, batch, seconds, scratch)
    step, growing = watch.seconds / watch.steps, watch.activations * full / batch
    if context.device.type == "cuda":
        growing = max(0.0, (peak or 0.0) - (before or 0.0) - fixed)
    if batch < full:
        smaller = max(trial for trial in trials if trial < batch)
        slope = (step - trials[smaller]) / (batch - smaller)
        slope = min(max(slope, LEAST_SLOPE * step / batch), step / batch)
        step += slope * (full - batch)
        peak = None if before is None else before + fixed + growing
    return Timing(step / full, watch.steps, batch, full, peak, fixed, growing)


def _run_steps(
    context: RunContext, task: Task, batch: int, seconds: float, scratch: Path
) -> tuple[Stopwatch, float | None, float | None]:
    """The real task, cut short by the stopwatch: (that, bytes in use before, at the peak)."""
    watch = Stopwatch(context.device, seconds)
    short = _shortened(context, task, batch, scratch, watch)
    hook: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if context.device.type == "cpu":  # on a GPU the full batch says it all
        hook = torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor)
    before = reset_peak(context.device)
    with TaskLog(short.study.layout.task_log(task.name), task.name) as log:
        reporter = TaskReporter(short.study, task, Record(), log, context.device)
        with contextlib.closing(reporter), contextlib.suppress(Enough), hook:
            for _ in train(short, task, reporter):
                pass
    return watch, before, peak_memory(context.device)


def _shortened(
    context: RunContext, task: Task, batch: int, scratch: Path, watch: Stopwatch
) -> RunContext:
    """The context for a few steps: an endless epoch, little validation, files in `scratch`."""
    recipe, splits = without_pretrained(context.study.recipe), context.splits
    if isinstance(task, RowTask):
        recipe = replace(recipe, fusion=replace(recipe.fusion, batch_size=batch))
    else:
        recipe = replace(recipe, experts=replace(recipe.experts, batch_size=batch))
    images = (WARM_UP[context.device.type] + MAX_STEPS + 1) * batch
    study = replace(
        context.study,
        recipe=recipe,
        layout=Layout(scratch / "out"),
        checkpoint_dir=_experts_for(context, task, scratch),
    )
    endless = replace(
        splits,
        expert_train=tuple(np.resize(part, images) for part in splits.expert_train),
        expert_val=tuple(part[:2] for part in splits.expert_val),
        fusion_train=np.resize(splits.fusion_train, images),
        fusion_val=splits.fusion_val[:2],
    )
    return replace(context, study=study, splits=endless, stop_requested=watch)


def _experts_for(context: RunContext, task: Task, scratch: Path) -> Path:
    """Where a row finds experts: the real ones, or untrained ones, which cost as much time."""
    study = context.study
    if isinstance(task, ExpertTask) or all(
        study.expert_file(*member).exists() for member in task.row.experts
    ):
        return study.checkpoint_dir
    folder = scratch / "experts"
    for member in task.row.experts:
        path = expert_file(folder, *member)
        if not path.is_file():
            expert = study.build_expert(member.model, len(context.data.classes), k=member.k)
            save(path, expert.state_dict())
    return folder
