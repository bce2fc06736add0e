"""The state of a launch as lines of a log, for wherever no table can be drawn."""

from collections.abc import Mapping, Sequence

from fusionrun.common.text import plural
from fusionrun.monitor.card_lines import card_summary
from fusionrun.monitor.side_by_side import by_rank
from fusionrun.monitor.snapshot import AT_WORK, Snapshot, TaskStatus
from fusionrun.monitor.words import (
    MISSING,
    accuracy,
    clock,
    counts,
    epoch_of,
    failures,
    members,
    number,
    percent,
    printable_line,
    rank_notes,
    short_reason,
    signed,
    what_it_needs,
)
from fusionrun.tables.headline import GAIN


def summary_lines(snapshot: Snapshot) -> list[str]:
    """A line of totals, then one for each thing that isn't simply done, its fields aligned."""
    totals = [
        f"{printable_line(snapshot.study)}: {snapshot.state}, {percent(snapshot.progress)}",
        f"elapsed {clock(snapshot.elapsed)}",
        *([f"ETA {clock(snapshot.eta_seconds)}"] if snapshot.state == "running" else []),
        *counts(snapshot),
    ]
    lines = [", ".join(totals)]
    shown = [
        task
        for task in by_rank(snapshot.tasks)
        if task.state in ("failed", "stopped", *AT_WORK)
        or (task.kind == "row" and task.state == "waiting")
    ]
    reasons = failures(snapshot.tasks)
    name_width = max((len(task.name) for task in shown), default=0)
    for task in shown:
        fields = [f"  {task.name:{name_width}}", f"{task.state:7}"]
        if task.state == "waiting":
            fields.append(what_it_needs(task, snapshot))
        else:
            speed = task.images_per_second
            fields += [
                f"rank {MISSING if task.rank is None else task.rank:>3}",
                f"epoch {epoch_of(task):>9}",
                f"loss {number(task.train_loss, 4):>7}",
                f"val {accuracy(task.val_accuracy, task):>6}",
                f"{GAIN} {signed(task.gain, task):>6}" if task.kind == "row" else "",
                f"{MISSING if speed is None else f'{speed:,.0f}':>7} images/s",
                f"ETA {clock(task.eta_seconds):>6}",
                _note(task, reasons),
            ]
        lines.append("  ".join(fields).rstrip())
    more = [*members(snapshot.tasks), *(text for text, _ in rank_notes(snapshot, snapshot.ranks))]
    return lines + [f"  {text}" for text in [*more, *card_summary(snapshot)]]


def _note(task: TaskStatus, reasons: Mapping[str, Sequence[TaskStatus]]) -> str:
    """Why it failed, once for all that share the reason, or what it notes."""
    if task.state != "failed":
        return printable_line(task.note)
    reason = short_reason(task.note)
    first = reasons[reason][0]
    return reason if first is task else f"as {first.name}"


def milestone(task: TaskStatus, told: dict[str, str]) -> str:
    """One line that says how a task ended.

    `told` are reasons of failures by the task that they were told of; this one's is added.
    """
    if task.state == "failed":
        reason = short_reason(task.note)
        first = told.setdefault(reason, task.name)
        return f"✗ {task.name} failed{f': {reason}' if first == task.name else f' as {first}'}"
    parts = [f"✓ {task.name} done: val accuracy {accuracy(task.val_accuracy, task)} %"]
    if task.best_epoch is not None:
        parts[0] += f" at epoch {task.best_epoch}"
    if task.gain is not None:
        parts.append(f"{GAIN} {signed(task.gain, task)}")
    if task.seconds is not None:
        parts.append(f"took {clock(task.seconds)}")
    return ", ".join(parts)


def closing_lines(snapshot: Snapshot) -> list[str]:
    """What the launch's ranks got done side by side, and how long each had nothing to do."""
    work = sum(rank.busy_seconds for rank in snapshot.ranks)
    if work == 0 or snapshot.elapsed <= 0:
        return []
    idle = (
        f"rank {rank.rank} {100 * max(1 - rank.busy_seconds / snapshot.elapsed, 0):.0f} %"
        for rank in snapshot.ranks
    )
    return [
        f"{clock(work)} of work in {clock(snapshot.elapsed)}: "
        f"{work / snapshot.elapsed:.1f} of {plural(snapshot.world_size, 'rank')} busy on average",
        f"idle (start-up included): {', '.join(idle)}",
    ]
