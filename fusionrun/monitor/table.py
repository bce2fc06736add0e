"""The live table: a Snapshot as lines for a terminal. Pure, no I/O."""

from collections.abc import Sequence

from rich.text import Text

from fusionrun.common.text import plural
from fusionrun.monitor.card_lines import card_lines
from fusionrun.monitor.cells import bar, flow, state_cell, wrapped
from fusionrun.monitor.expert_lines import expert_lines
from fusionrun.monitor.snapshot import AT_WORK, Snapshot
from fusionrun.monitor.task_table import TaskTable
from fusionrun.monitor.words import (
    LOOK,
    clock,
    counts,
    members,
    percent,
    printable,
    printable_line,
    rank_notes,
)

STOP_HINT = "Ctrl-C once: stop at the next step with a checkpoint; same command continues"


def table(
    snapshot: Snapshot,
    width: int,
    *,
    height: int | None = None,
    notices: Sequence[str] = (),
    hint: str = STOP_HINT,
    ascii_only: bool = False,
) -> list[Text]:
    """The whole picture, no line wider than `width` nor, where given, more lines than `height`.

    `notices` are warnings of whoever draws (a full disk, a stale file), `hint` the last line
    while the launch runs. `ascii_only` is for consoles that can't show anything else.
    """
    head, foot = _head(snapshot, width), _foot(snapshot, width, notices, hint)
    rows = TaskTable(snapshot, width, "row")
    at_work = TaskTable(snapshot, width, "expert")
    working = at_work.lines()
    mixed = [line for text in members(snapshot.tasks) for line in wrapped(text, width, "dim")]
    # what is left out until it fits: air, then details of experts, GPUs, members, then tasks
    for gap, folded in ((1, False), (0, False), (0, True)):
        shown = rows.lines() if folded else [*rows.lines(), *mixed]
        experts = expert_lines(snapshot, width, folded=folded)
        cards = card_lines(snapshot, width, folded=folded)
        lines = _joined([head, shown, working, experts, cards, foot], gap)
        if height is None or len(lines) <= height:
            break
    if height is not None and len(lines) > height:
        room = height - len(head) - len(experts) - len(cards) - len(foot)
        states = [task.state for task in snapshot.tasks if task.kind != "expert"]
        urgent = sum(state in ("failed", *AT_WORK) for state in states)
        least = urgent + 4 if urgent else 0  # lines, with titles and what is left out
        working = at_work.lines(max(room - len(shown), min(room - least, len(working)), 0))
        shown = rows.lines(room - len(working))
        lines = _joined([head, shown, working, experts, cards, foot], gap=0)[:height]
    for line in lines if ascii_only else []:
        line.plain = printable(line.plain, ascii_only=True)
    return lines


def _joined(parts: Sequence[list[Text]], gap: int) -> list[Text]:
    lines: list[Text] = []
    for part in filter(None, parts):
        lines += [Text()] * (gap if lines else 0) + part
    return lines


def _head(snapshot: Snapshot, width: int) -> list[Text]:
    title = [
        Text(printable_line(snapshot.study), "bold"),
        state_cell(snapshot.state),
        *(Text(count) for count in counts(snapshot)),
    ]
    where = [
        Text(printable_line(text), "dim")
        for text in (
            snapshot.output_dir,
            snapshot.device,
            f"{plural(snapshot.world_size, 'rank')} × {plural(snapshot.threads, 'thread')}",
            plural(snapshot.nodes, "node") if snapshot.nodes > 1 else "",
            f"Slurm job {snapshot.job_id}" if snapshot.job_id else "",
            plural(snapshot.restarts, "restart") if snapshot.restarts else "",
        )
        if text
    ]
    done = bar(snapshot.progress, min(40, width // 3), LOOK[snapshot.state][1])
    progress = [
        done.append(f" {percent(snapshot.progress)}", "bold"),
        Text(f"elapsed {clock(snapshot.elapsed)}"),
    ]
    if snapshot.state == "running":
        progress.append(Text(f"ETA {clock(snapshot.eta_seconds)}"))
    return [*flow(title, width, "   "), *flow(where, width, " · "), *flow(progress, width, "   ")]


def _foot(snapshot: Snapshot, width: int, notices: Sequence[str], hint: str) -> list[Text]:
    lines = []
    if snapshot.channel:
        broken = f"the ranks' channel is broken, heartbeat files stand in: {snapshot.channel}"
        notices = [broken, *notices]
    for notice in notices:
        lines += wrapped(f"! {printable_line(notice)}", width, "yellow")
    with_row = {task.name for task in snapshot.tasks if task.kind != "expert"}
    others = [rank for rank in snapshot.ranks if rank.task not in with_row]
    for text, style in rank_notes(snapshot, others):
        lines += wrapped(text, width, style)
    last = {
        "running": hint,
        "done": f"All rows are done; their results are in {snapshot.output_dir}.",
        "failed": f"What failed is said above; tracebacks are in {snapshot.output_dir}/logs.",
        "stopped": "Stopped before the end; the same command continues.",
    }[snapshot.state]
    return lines + wrapped(printable_line(last), width, "dim")
