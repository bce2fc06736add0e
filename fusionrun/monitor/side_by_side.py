"""Experts that a rank trains side by side, as one line of the table or of a log."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from fusionrun.monitor.snapshot import AT_WORK, TaskStatus


def by_rank(tasks: Sequence[TaskStatus]) -> list[TaskStatus]:
    """The same tasks, but those experts as one: mean numbers, their speeds added up."""
    groups: dict[object, list[TaskStatus]] = {}
    for task in tasks:
        is_shared = task.together > 1 and task.state in AT_WORK
        groups.setdefault((task.rank, task.model) if is_shared else task.name, []).append(task)
    return [_as_one(group) if len(group) > 1 else group[0] for group in groups.values()]


def _as_one(tasks: Sequence[TaskStatus]) -> TaskStatus:
    first = tasks[0]
    label, _, _ = first.name.rpartition("-")
    numbers = [int(task.name.rpartition("-")[2]) for task in tasks]
    which = ", ".join(map(str, numbers))
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        which = f"{numbers[0]}–{numbers[-1]}"
    epochs, part = divmod(
        fmean(task.epoch + (task.step / task.steps if task.steps else 0.0) for task in tasks), 1
    )

    def mean(*values: float | None) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    return replace(
        first,
        name=f"{label}-{which}",
        state="running" if any(task.state == "running" for task in tasks) else first.state,
        epoch=int(epochs),
        step=int(1000 * part),
        steps=1000,
        train_loss=mean(*(task.train_loss for task in tasks)),
        val_accuracy=mean(*(task.val_accuracy for task in tasks)),
        best=mean(*(task.best for task in tasks)),
        best_epoch=None,
        images_per_second=sum(task.images_per_second or 0.0 for task in tasks) or None,
        eta_seconds=max((task.eta_seconds or 0.0 for task in tasks), default=0.0) or None,
        note=next((task.note for task in tasks if task.note), ""),
    )
