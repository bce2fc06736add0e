"""What the live table and the log lines both say of a launch, as plain text."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from fusionrun.common.text import duration, one_line, plural, size
from fusionrun.monitor.record import ENDED, RankState
from fusionrun.monitor.snapshot import RankStatus, Snapshot, TaskStatus
from fusionrun.tables import headline

# a table full of what isn't measured yet wants something lighter than the results' n/a
MISSING = "–"
SILENT_SECONDS = 10.0  # heartbeats come every second or so; younger ones are not worth a word
LOOK = {  # a task's or the launch's state: symbol, style
    "running": ("●", "cyan"),
    "testing": ("●", "blue"),
    "saving": ("●", "blue"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "stopped": ("■", "yellow"),
    "queued": ("○", "dim"),
    "waiting": ("○", "dim"),
}
# character by character, so that no width changes
_ASCII = str.maketrans("●✓✗■○━╸─–·×…└°", ">+x#.==--|x~+ ")
REASON = 480  # letters of a failure's reason that the table shows
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


def number(value: float | None, places: int) -> str:
    return MISSING if value is None else f"{value:.{places}f}"


def accuracy(value: float | None, task: TaskStatus, *, at_most: int = 2) -> str:
    """In percent, with as many digits as the validation images carry."""
    return number(value, min(at_most, headline.digits(task.val_images)))


def signed(gain: float | None, task: TaskStatus) -> str:
    """Points, with as many digits as its accuracies."""
    return MISSING if gain is None else headline.signed(gain, headline.digits(task.val_images))


def gib_of(used: float | None, total: float | None) -> str:
    """18.5 of 79.6 GiB; of a device that doesn't tell how much it has, just what is used."""
    if used is None:
        return MISSING
    if total is None:
        return size(used)
    return f"{used / 2**30:.1f} of {total / 2**30:,.1f} GiB"


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
    if snapshot.state != "running":
        return "and not begun"
    if task.state == "queued":
        return "for a free rank"
    needed = task.note.removeprefix("for ").split(", ")  # of a mixed row, of any model
    named = [other for other in snapshot.tasks if other.name in needed]
    experts = [each for each in snapshot.tasks if (each.kind, each.model) == ("expert", task.model)]
    missing = [other for other in named or experts if other.state not in ("done", "failed")]
    word = "expert" if all(other.kind == "expert" for other in missing) else "network"
    return f"for {plural(len(missing), word)}" if missing else printable_line(task.note)


def counts(snapshot: Snapshot) -> list[str]:
    """How many rows are in which state, and how far the experts are."""
    rows = Counter[str](task.state for task in snapshot.tasks if task.kind == "row")
    states = ", ".join(f"{rows[state]} {state}" for state in LOOK if rows[state])
    texts = [f"rows: {states}"] if states else []
    for kind in ("network", "expert"):
        found = Counter(task.state for task in snapshot.tasks if task.kind == kind)
        if found:
            failed = f", {found['failed']} failed" if found["failed"] else ""
            texts.append(f"{kind}s: {found['done']} of {found.total()} done{failed}")
    return texts


def silence(rank: RankStatus) -> str:
    """For how long a living rank has not been heard of, where that's worth a word."""
    if rank.state in ENDED or rank.heartbeat_age is None or rank.heartbeat_age <= SILENT_SECONDS:
        return ""
    return f"no heartbeat {rank.heartbeat_age:.0f} s"


def short_reason(note: str) -> str:
    """Why a task failed, in a few lines at most; all of it stands in the task's log."""
    text = printable_line(note)
    if len(text) <= REASON:
        return text
    return f"{text[:REASON].rsplit(' ', 1)[0]} … (the rest is in its log)"


def failures(tasks: Sequence[TaskStatus]) -> dict[str, list[TaskStatus]]:
    """{reason: those that failed for it}, as several often do."""
    found: dict[str, list[TaskStatus]] = {}
    for task in tasks:
        if task.state == "failed":
            found.setdefault(short_reason(task.note), []).append(task)
    return found


def together(word: str, numbers: Sequence[int]) -> str:
    """row 3; rows 0, 2, 5."""
    return f"{word}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def members(tasks: Iterable[TaskStatus]) -> list[str]:
    """Of what rows of different experts consist, each once."""
    return list(dict.fromkeys(f"{t.model}: {t.members}" for t in tasks if t.members))


def rank_notes(snapshot: Snapshot, ranks: Sequence[RankStatus]) -> list[tuple[str, str]]:
    """(text, style) for what there is to say about `ranks`; what several share is said once."""
    notes = []
    if snapshot.state == "running":
        if starting := sum(rank.state == "starting" for rank in ranks):
            notes.append((f"{starting} of {plural(snapshot.world_size, 'rank')} starting", "dim"))
        for state, reason in (
            ("idle", "no task can start yet"),
            ("finished", "all tasks are taken"),
        ):
            if numbers := [rank.rank for rank in ranks if rank.state == state]:
                notes.append((f"{together('rank', numbers)} {state}: {reason}", "dim"))
    told = {task.note for task in snapshot.tasks}
    sharing: dict[tuple[str, RankState], list[RankStatus]] = {}
    for rank in ranks:
        if silent := silence(rank):
            notes.append((f"! rank {rank.rank}{_doing(rank)}: {silent}", "yellow"))
        if rank.note and rank.note not in told:
            sharing.setdefault((printable_line(rank.note), rank.state), []).append(rank)
    for (note, state), each in sharing.items():
        who = together("rank", [rank.rank for rank in each])
        who += _doing(each[0]) if len(each) == 1 else ""
        if state == "starting":  # what it does, nothing to worry about
            notes.append((f"{who}: {note}", "dim"))
        else:
            notes.append((f"! {who}: {note}", "red" if state == "failed" else "yellow"))
    return notes


def _doing(rank: RankStatus) -> str:
    more = f" and {len(rank.tasks) - 1} more" if len(rank.tasks) > 1 else ""
    return f" ({rank.task}{more})" if rank.task else ""
