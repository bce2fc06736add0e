"""What the live table and the log lines both say of a launch, as plain text."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from fusionrun.common.text import duration, one_line, plural
from fusionrun.monitor.record import ENDED
from fusionrun.monitor.snapshot import RankStatus, Snapshot, TaskStatus

# a table full of what isn't measured yet wants something lighter than the results' n/a
MISSING = "–"
SILENT_SECONDS = 10.0  # heartbeats come every second or so; younger ones are not worth a word
LOOK = {  # a task's or the launch's state: symbol, style
    "running": ("●", "cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "stopped": ("■", "yellow"),
    "queued": ("○", "dim"),
    "waiting": ("○", "dim"),
}
# character by character, so that no width changes
_ASCII = str.maketrans("●✓✗■○━╸─–·×…└", ">+x#.==--|x~+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str, *, ascii_only: bool = False) -> str:
    """`text` with nothing that moves a cursor, changes a colour or can't be encoded; as long."""
    text = _CONTROL.sub(" ", text).encode(errors="replace").decode()
    return text.translate(_ASCII).encode("ascii", "replace").decode() if ascii_only else text


def printable_line(text: str) -> str:
    """A message of many lines as one, printable."""
    return one_line(printable(text))


def percent(part: float) -> str:
    return f"{math.floor(100 * part)} %"  # 100 only when all is done


def number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(gain: float | None) -> str:
    text = MISSING if gain is None else f"{gain:+.2f}"
    return "+0.00" if text == "-0.00" else text


def clock(seconds: float | None) -> str:
    return MISSING if seconds is None else duration(seconds, ticking=True)


def epoch_of(task: TaskStatus) -> str:
    """Completed epochs with the part of the current one, of all: 41.3/100."""
    if task.state not in ("running", "stopped"):
        return f"{task.epoch}/{task.epochs}"
    part = min(int(10 * task.step / task.steps), 9) if task.steps else 0
    return f"{task.epoch}.{part}/{task.epochs}"


def what_it_needs(task: TaskStatus, snapshot: Snapshot) -> str:
    """What a row that hasn't begun waits for."""
    if task.state == "queued":
        return "for a free rank"
    missing = sum(
        other.kind == "expert"
        and other.model == task.model
        and other.state not in ("done", "failed")
        for other in snapshot.tasks
    )
    return f"for {plural(missing, 'expert')}" if missing else printable_line(task.note)


def counts(snapshot: Snapshot) -> list[str]:
    """How many rows are in which state, and how far the experts are."""
    rows = Counter[str](task.state for task in snapshot.tasks if task.kind == "row")
    states = ", ".join(f"{rows[state]} {state}" for state in LOOK if rows[state])
    texts = [f"rows: {states}"] if states else []
    experts = Counter(task.state for task in snapshot.tasks if task.kind == "expert")
    if experts:
        failed = f", {experts['failed']} failed" if experts["failed"] else ""
        texts.append(f"experts: {experts['done']} of {experts.total()} done{failed}")
    return texts


def silence(rank: RankStatus) -> str:
    """For how long a living rank has not been heard of, where that's worth a word."""
    if rank.state in ENDED or rank.heartbeat_age is None or rank.heartbeat_age <= SILENT_SECONDS:
        return ""
    return f"no heartbeat {rank.heartbeat_age:.0f} s"


def rank_notes(snapshot: Snapshot, ranks: Sequence[RankStatus]) -> list[tuple[str, str]]:
    """(text, style) for what there is to say about `ranks`."""
    notes = []
    if snapshot.state == "running":
        if starting := sum(rank.state == "starting" for rank in ranks):
            notes.append((f"{starting} of {plural(snapshot.world_size, 'rank')} starting", "dim"))
        for state, reason in (
            ("idle", "no task can start yet"),
            ("finished", "all tasks are taken"),
        ):
            numbers = [str(rank.rank) for rank in ranks if rank.state == state]
            if numbers:
                who = "rank" if len(numbers) == 1 else "ranks"
                notes.append((f"{who} {', '.join(numbers)} {state}: {reason}", "dim"))
    told = {task.note for task in snapshot.tasks}
    for rank in ranks:
        doing = f" ({rank.task})" if rank.task else ""
        if silent := silence(rank):
            notes.append((f"! rank {rank.rank}{doing}: {silent}", "yellow"))
        if rank.note and rank.note not in told:
            style = "red" if rank.state == "failed" else "yellow"
            notes.append((f"! rank {rank.rank}{doing}: {printable_line(rank.note)}", style))
    return notes
