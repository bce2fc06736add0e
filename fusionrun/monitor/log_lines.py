"""The state of a launch as lines of a log, for wherever no table can be drawn."""

from fusionrun.monitor.snapshot import Snapshot, TaskStatus
from fusionrun.monitor.words import (
    MISSING,
    clock,
    counts,
    epoch_of,
    number,
    percent,
    printable_line,
    rank_notes,
    signed,
    what_it_needs,
)


def summary_lines(snapshot: Snapshot) -> list[str]:
    """A line of totals, then one for each thing that isn't simply done, its fields aligned."""
    totals = [
        f"{printable_line(snapshot.study)}: {snapshot.state}, {percent(snapshot.progress)}",
        f"elapsed {clock(snapshot.elapsed)}",
        f"ETA {clock(snapshot.eta_seconds)}",
        *counts(snapshot),
    ]
    lines = [", ".join(totals)]
    shown = [
        task
        for task in snapshot.tasks
        if task.state == "failed" or (task.kind == "row" and task.state not in ("done", "queued"))
    ]
    name_width = max((len(task.name) for task in shown), default=0)
    for task in shown:
        fields = [f"  {task.name:{name_width}}", f"{task.state:7}"]
        if task.state == "waiting":
            fields.append(what_it_needs(task, snapshot))
        else:
            fields += [
                f"rank {MISSING if task.rank is None else task.rank:>3}",
                f"epoch {epoch_of(task):>9}",
                f"loss {number(task.train_loss, 4):>7}",
                f"val {number(task.val_accuracy, 2):>6}",
                f"gain {signed(task.gain):>6}",
                f"ETA {clock(task.eta_seconds):>6}",
                printable_line(task.note),
            ]
        lines.append("  ".join(fields).rstrip())
    return lines + [f"  {text}" for text, _ in rank_notes(snapshot, snapshot.ranks)]


def milestone(task: TaskStatus) -> str:
    """One line that says how a task ended."""
    if task.state == "failed":
        return f"✗ {task.name} failed: {printable_line(task.note)}"
    best = task.val_accuracy if task.best is None else task.best
    parts = [f"✓ {task.name} done: val accuracy {number(best, 2)} %"]
    if task.best_epoch is not None:
        parts[0] += f" at epoch {task.best_epoch}"
    if task.gain is not None:
        parts.append(f"gain {signed(task.gain)}")
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
        f"work {clock(work)}, makespan {clock(snapshot.elapsed)}: speed-up "
        f"{work / snapshot.elapsed:.2f} over one task after another at the same pace",
        f"idle (start-up included): {', '.join(idle)}",
    ]
