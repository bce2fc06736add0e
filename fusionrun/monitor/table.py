"""The live table: a Snapshot drawn for a terminal, or as plain lines for a log. Pure, no I/O."""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from fusionrun.monitor.record import ENDED, RankState
from fusionrun.monitor.snapshot import RankStatus, Snapshot, TaskStatus

STOP_HINT = "Ctrl-C once: stop at the next step with a checkpoint; same command continues"
SILENT_SECONDS = 10.0  # heartbeats come every second or so; younger ones are not worth a word

_MISSING = "–"
_MARGIN = 1
_NOTE_INDENT = 5
_BAR = (6, 28)  # narrowest and widest progress bar of a row, in columns
_EXPERT_CELL = (7, 20)
_MANY_EXPERTS = 16  # from here on models whose experts are all done share a line
_LOOK = {  # state: symbol, style
    "running": ("●", "cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "stopped": ("■", "yellow"),
    "queued": ("○", "dim"),
    "waiting": ("○", "dim"),
}
# what goes first when the terminal is too low for all rows
_LEAST_WANTED = ("done", "waiting", "queued", "stopped", "running", "failed")
# character by character, so that no width changes
_ASCII = str.maketrans("●✓✗■○━╸─–·×…└", ">+x#.==--|x~+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def table(
    snapshot: Snapshot,
    width: int,
    *,
    height: int | None = None,
    notices: Sequence[str] = (),
    hint: str = STOP_HINT,
    ascii_only: bool = False,
) -> RenderableType:
    """The whole picture, no line wider than `width` nor, where given, more lines than `height`.

    `notices` are warnings of whoever draws (a full disk, a stale file), `hint` the last line
    while the launch runs. `ascii_only` is for consoles that can't show anything else.
    """
    lines = _fit(snapshot, width, height, notices, hint)
    for line in lines if ascii_only else []:
        line.plain = printable(line.plain, ascii_only=True)
    return Group(*lines)


def summary_lines(snapshot: Snapshot) -> list[str]:
    """The same for a log: a line of totals, then one for each thing that isn't simply done."""
    totals = [
        f"{_plain(snapshot.study)}: {snapshot.state}, {_percent(snapshot.progress)}",
        f"elapsed {_duration(snapshot.elapsed)}",
        f"ETA {_duration(snapshot.eta_seconds)}",
        *_counts(snapshot),
    ]
    lines = [", ".join(totals)]
    shown = [
        task
        for task in snapshot.tasks
        if task.state == "failed" or (task.kind == "row" and task.state not in ("done", "queued"))
    ]
    name_width = max((len(task.name) for task in shown), default=0)
    lines += [f"  {task.name:{name_width}}  {_summary(snapshot, task)}" for task in shown]
    return lines + [f"  {text}" for text, _ in _rank_notes(snapshot, tuple(snapshot.ranks))]


def milestone(task: TaskStatus) -> str:
    """One line that says how a task ended."""
    if task.state == "failed":
        return f"✗ {task.name} failed: {_plain(task.note)}"
    best = task.val_accuracy if task.best is None else task.best
    parts = [f"✓ {task.name} done: val accuracy {_number(best, 2)} %"]
    if task.best_epoch is not None:
        parts[0] += f" at epoch {task.best_epoch}"
    if task.gain is not None:
        parts.append(f"gain {_gain(task.gain)}")
    if task.seconds is not None:
        parts.append(f"took {_duration(task.seconds)}")
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
        f"work {_duration(work)}, makespan {_duration(snapshot.elapsed)}: speed-up "
        f"{work / snapshot.elapsed:.2f} over one task after another at the same pace",
        f"idle (start-up included): {', '.join(idle)}",
    ]


def printable(text: str, *, ascii_only: bool = False) -> str:
    """`text` with nothing that moves a cursor, changes a colour or can't be encoded; as long."""
    text = _CONTROL.sub(" ", text).encode(errors="replace").decode()
    return text.translate(_ASCII).encode("ascii", "replace").decode() if ascii_only else text


# -- the whole: what to leave out until it fits ------------------------------------------------


def _fit(
    snapshot: Snapshot, width: int, height: int | None, notices: Sequence[str], hint: str
) -> list[Text]:
    head = _head(snapshot, width)
    foot = _foot(snapshot, width, notices, hint)
    rows = _Rows(snapshot, width)
    for gap, fold in ((1, False), (0, False), (0, True)):
        experts = _folded_experts(snapshot, width) if fold else _experts(snapshot, width)
        parts = [part for part in (head, rows.lines(), experts, foot) if part]
        total = sum(map(len, parts)) + gap * (len(parts) - 1)
        if height is None or total <= height:
            return _join(parts, gap)
    assert height is not None  # everything fits where there's no limit
    room = height - len(head) - len(experts) - len(foot)
    return _join([head, rows.lines(room), experts, foot], gap=0)[:height]


def _join(parts: Sequence[list[Text]], gap: int) -> list[Text]:
    lines: list[Text] = []
    for part in parts:
        lines += [Text()] * (gap if lines else 0) + part
    return lines


# -- above and below ---------------------------------------------------------------------------


def _head(snapshot: Snapshot, width: int) -> list[Text]:
    title = [
        Text(_plain(snapshot.study), "bold"),
        _state(snapshot.state),
        *(Text(count) for count in _counts(snapshot)),
    ]
    about = [
        Text(_plain(text), "dim")
        for text in (
            snapshot.output_dir,
            snapshot.device,
            f"{_plural(snapshot.world_size, 'rank')} × {_plural(snapshot.threads, 'thread')}",
            _plural(snapshot.nodes, "node") if snapshot.nodes > 1 else "",
            f"Slurm job {snapshot.job_id}" if snapshot.job_id else "",
            _plural(snapshot.restarts, "restart") if snapshot.restarts else "",
        )
        if text
    ]
    bar = _bar(snapshot.progress, min(40, width // 3), _LOOK[snapshot.state][1])
    progress = [
        bar.append(f" {_percent(snapshot.progress)}", "bold"),
        Text(f"elapsed {_duration(snapshot.elapsed)}"),
    ]
    if snapshot.state == "running":
        progress.append(Text(f"ETA {_duration(snapshot.eta_seconds)}"))
    return [
        *_flow(title, width, "   "),
        *_flow(about, width, " · "),
        *_flow(progress, width, "   "),
    ]


def _foot(snapshot: Snapshot, width: int, notices: Sequence[str], hint: str) -> list[Text]:
    lines = []
    if snapshot.channel:
        text = f"the ranks' channel is broken, heartbeat files stand in: {snapshot.channel}"
        lines += _wrapped(f"! {_plain(text)}", width, _MARGIN, "yellow")
    for notice in notices:
        lines += _wrapped(f"! {_plain(notice)}", width, _MARGIN, "yellow")
    with_row = {task.name for task in snapshot.tasks if task.kind == "row"}
    others = tuple(rank for rank in snapshot.ranks if rank.task not in with_row)
    for text, style in _rank_notes(snapshot, others):
        lines += _wrapped(text, width, _MARGIN, style)
    last = {
        "running": hint,
        "done": f"All rows are done; their results are in {snapshot.output_dir}.",
        "failed": f"What failed is said above; tracebacks are in {snapshot.output_dir}/logs.",
        "stopped": "Stopped before the end; the same command continues.",
    }[snapshot.state]
    return lines + _wrapped(_plain(last), width, _MARGIN, "dim")


def _counts(snapshot: Snapshot) -> list[str]:
    """How many rows are in which state, and how far the experts are."""
    rows = Counter[str](task.state for task in snapshot.tasks if task.kind == "row")
    states = ", ".join(f"{rows[state]} {state}" for state in _LOOK if rows[state])
    counts = [f"rows: {states}"] if states else []
    experts = Counter(task.state for task in snapshot.tasks if task.kind == "expert")
    if experts:
        failed = f", {experts['failed']} failed" if experts["failed"] else ""
        counts.append(f"experts: {experts['done']} of {experts.total()} done{failed}")
    return counts


def _rank_notes(snapshot: Snapshot, ranks: Sequence[RankStatus]) -> list[tuple[str, str]]:
    """(text, style) for what there is to say about `ranks`."""
    told = {task.note for task in snapshot.tasks}
    notes = []
    starting = [rank for rank in ranks if rank.state == "starting"]
    if starting and snapshot.state == "running":
        notes.append((f"{len(starting)} of {_plural(snapshot.world_size, 'rank')} starting", "dim"))
    if snapshot.state == "running":
        notes += _unoccupied(ranks)
    for rank in ranks:
        doing = f" ({rank.task})" if rank.task else ""
        if silence := _silence(rank):
            notes.append((f"! rank {rank.rank}{doing}: {silence}", "yellow"))
        if rank.note and rank.note not in told:
            style = "red" if rank.state == "failed" else "yellow"
            notes.append((f"! rank {rank.rank}{doing}: {_plain(rank.note)}", style))
    return notes


def _unoccupied(ranks: Sequence[RankStatus]) -> list[tuple[str, str]]:
    """Which ranks have nothing to do, and why."""
    reasons: tuple[tuple[RankState, str], ...] = (
        ("idle", "idle: no task can start yet"),
        ("finished", "finished: all tasks are taken"),
    )
    notes = []
    for state, reason in reasons:
        numbers = [str(rank.rank) for rank in ranks if rank.state == state]
        if numbers:
            notes.append(
                (f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(numbers)} {reason}", "dim")
            )
    return notes


def _silence(rank: RankStatus) -> str:
    if rank.state in ENDED or rank.heartbeat_age is None or rank.heartbeat_age <= SILENT_SECONDS:
        return ""
    return f"no heartbeat {rank.heartbeat_age:.0f} s"


# -- the rows ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    title: str
    cells: list[Text]
    wanted: int  # 0: always there; the higher, the earlier it goes
    left: bool = False
    optional: bool = False  # only there once a row has a value

    @property
    def width(self) -> int:
        return max(cell_len(self.title), *(cell.cell_len for cell in self.cells))


class _Rows:
    """The table of rows: picks the columns that fit, then makes a block of lines of every row."""

    def __init__(self, snapshot: Snapshot, width: int) -> None:
        self._snapshot = snapshot
        self._width = width
        self._gap = 2 if width >= 100 else 1
        self._tasks = [task for task in snapshot.tasks if task.kind == "row"]
        self._ranks = {rank.task: rank for rank in snapshot.ranks if rank.task}

    def lines(self, room: int | None = None) -> list[Text]:
        """Title, rule and rows; with `room` lines at most, leaving the least interesting out."""
        if not self._tasks:
            return []
        columns = self._chosen()
        # once: each looks at the cells of all rows
        widths = [column.width for column in columns]
        line_width = sum(widths) + self._gap * (len(columns) - 1)
        title = self._line([Text(column.title, "dim") for column in columns], columns, widths)
        rule = _indented(Text("─" * min(line_width, self._width - 2 * _MARGIN), "dim"))
        blocks = [self._block(index, columns, widths) for index in range(len(self._tasks))]
        if room is None or 2 + sum(map(len, blocks)) <= room:
            return [title, rule, *(line for block in blocks for line in block)]
        kept, left_out = self._cut(blocks, room - 3)
        states = ", ".join(f"{n} {state}" for state, n in left_out.items())
        more = _indented(Text(f"… and {states}: the terminal is too low to show them", "dim"))
        return [title, rule, *(line for i in kept for line in blocks[i]), _one_line(more)]

    def _cut(self, blocks: Sequence[list[Text]], room: int) -> tuple[list[int], Counter[str]]:
        """The rows that still fit, in order, and how many of which state don't."""
        kept = list(range(len(blocks)))
        left_out: Counter[str] = Counter()
        by_interest = sorted(kept, key=lambda i: (_LEAST_WANTED.index(self._tasks[i].state), -i))
        for index in by_interest:
            if sum(len(blocks[i]) for i in kept) <= room:
                break
            kept.remove(index)
            left_out[self._tasks[index].state] += 1
        return kept, left_out

    def _chosen(self) -> list[_Column]:
        """The columns in order: as many as fit, the roomier forms where there's room left."""
        columns = self._columns()
        names, bars, experts = columns["row"], columns["progress"], columns["experts"]
        fixed = [column for column in columns.values() if column.wanted == 0]
        names.cells[:] = self._names(self._room(fixed) + names.width)
        chosen = fixed
        for column in sorted(columns.values(), key=lambda column: column.wanted):
            empty = column.optional and all(cell.plain == _MISSING for cell in column.cells)
            if column not in chosen and not empty and self._room([*chosen, column]) >= 0:
                chosen = [*chosen, column]
        for column, roomier in ((experts, self._all_experts()), (names, self._aligned_names())):
            spare = self._room(chosen) - max(cell.cell_len for cell in roomier) + column.width
            if column in chosen and spare >= 0:
                column.cells[:] = roomier
        if bars in chosen:
            size = min(_BAR[1], bars.width + self._room(chosen))
            bars.cells[:] = [_task_bar(task, size) for task in self._tasks]
        return [column for column in columns.values() if column in chosen]

    def _room(self, columns: Sequence[_Column]) -> int:
        used = sum(column.width for column in columns) + self._gap * (len(columns) - 1)
        return self._width - 2 * _MARGIN - used

    def _columns(self) -> dict[str, _Column]:
        """Every column in the order of the screen, each in its narrowest form."""
        tasks, dim = self._tasks, "dim"
        unit, at = (" %", " @epoch") if self._width >= 100 else ("", "")
        memory = [self._memory(task) for task in tasks]
        times = [Text(_duration(task.seconds), dim) for task in tasks]
        took = 12 if self._snapshot.state == "running" else 4  # an ended launch has no ETAs
        speeds = [_cell(",.0f", task.images_per_second) for task in tasks]
        ends = len(str(len(tasks) - 1))
        columns = [
            _Column("#", [Text(f"{i:>{ends}}", dim) for i in range(len(tasks))], 0),
            _Column("row", self._names(10_000), 0, left=True),
            _Column("rank", [_cell("", task.rank) for task in tasks], 8),
            _Column("state", [_state(task.state) for task in tasks], 0, left=True),
            _Column("progress", [_task_bar(task, _BAR[0]) for task in tasks], 3, left=True),
            _Column("epoch", [Text(_epoch(task)) for task in tasks], 1),
            _Column("loss", [_cell(".4f", task.train_loss) for task in tasks], 6, optional=True),
            _Column(f"fused{unit}", [_cell(".2f", t.val_accuracy, "bold") for t in tasks], 0),
            _Column("gain", [_gain_cell(task.gain) for task in tasks], 2),
            _Column(f"experts{unit}", [_expert_range(task) for task in tasks], 7),
            _Column(f"best{at}", [_best(task) for task in tasks], 9),
            _Column("img/s", speeds, 10, optional=True),
            _Column("memory", memory, 11, optional=True),
            _Column("ETA", [_dimmed(_duration(t.eta_seconds)) for t in tasks], 4, optional=True),
            _Column("took", times, took, optional=True),
        ]
        return {column.title.removesuffix(unit): column for column in columns}

    def _names(self, room: int) -> list[Text]:
        return [Text(_name(task, room)) for task in self._tasks]

    def _aligned_names(self) -> list[Text]:
        widest = max(len(task.model) for task in self._tasks)
        return [Text(f"{task.model:{widest}}  {task.fusion}") for task in self._tasks]

    def _all_experts(self) -> list[Text]:
        return [_expert_numbers(task) for task in self._tasks]

    def _memory(self, task: TaskStatus) -> Text:
        rank = self._ranks.get(task.name)
        return _dimmed(_bytes(rank.memory_bytes if rank else None))

    def _block(self, index: int, columns: Sequence[_Column], widths: Sequence[int]) -> list[Text]:
        """The row's line and what there is to say about it, below."""
        task = self._tasks[index]
        cells = [column.cells[index] for column in columns]
        lines = [self._line(cells, columns, widths)]
        if task.state in ("waiting", "queued"):
            # nothing measured yet: words instead of a line of dashes
            titles = [column.title for column in columns]
            end = titles.index("state") + 1
            cells = [*cells[:end], Text(_wait(self._snapshot, task), "dim")]
            lines = [self._line(cells, columns, widths)]
        elif task.note:
            style = "red" if task.state == "failed" else "yellow"
            lines += _wrapped(f"└ {_plain(task.note)}", self._width, _NOTE_INDENT, style)
        rank = self._ranks.get(task.name)
        if rank and (silence := _silence(rank)):
            text = f"└ rank {rank.rank}: {silence}"
            lines += _wrapped(text, self._width, _NOTE_INDENT, "yellow")
        return lines

    def _line(
        self, cells: Sequence[Text], columns: Sequence[_Column], widths: Sequence[int]
    ) -> Text:
        """Cells side by side; one more than there are columns to its left may be any length."""
        line = Text(" " * _MARGIN)
        for i, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=False)):
            pad = " " * max(width - cell.cell_len, 0)
            is_left = column.left or cell.cell_len > width
            line.append_text(Text.assemble(cell, pad) if is_left else Text.assemble(pad, cell))
            line.append(" " * self._gap if i + 1 < len(cells) else "")
        line.rstrip()
        line.truncate(self._width - _MARGIN, overflow="ellipsis")
        return _one_line(line)


def _wait(snapshot: Snapshot, task: TaskStatus) -> str:
    """What a row that hasn't begun needs."""
    if task.state == "queued":
        return "for a free rank"
    missing = sum(
        other.kind == "expert"
        and other.model == task.model
        and other.state not in ("done", "failed")
        for other in snapshot.tasks
    )
    return f"for {_plural(missing, 'expert')}" if missing else _plain(task.note)


def _name(task: TaskStatus, room: int) -> str:
    """Model and fusion; where both don't fit, the model is cut: fusions differ in their ends."""
    name = f"{task.model} {task.fusion}"
    if len(name) <= room:
        return name
    model = max(room - len(task.fusion) - 2, 4)
    return f"{task.model[:model]}… {task.fusion}"[: max(room, 1)]


def _epoch(task: TaskStatus) -> str:
    """Completed epochs with the part of the current one, of all: 41.3/100."""
    if task.state not in ("running", "stopped"):
        return f"{task.epoch}/{task.epochs}"
    part = min(int(10 * task.step / task.steps), 9) if task.steps else 0
    return f"{task.epoch}.{part}/{task.epochs}"


def _best(task: TaskStatus) -> Text:
    if task.best is None:
        return Text(_MISSING, "dim")
    at = "" if task.best_epoch is None else f" @{task.best_epoch}"
    return Text(_number(task.best, 2)).append(at, "dim")


def _gain_cell(gain: float | None) -> Text:
    if gain is None:
        return Text(_MISSING, "dim")
    text = _gain(gain)
    return Text(text, "" if text == "+0.00" else "green" if text[0] == "+" else "red")


def _expert_range(task: TaskStatus) -> Text:
    """The worst and the best expert's accuracy: 78.5–80.1."""
    values = [value for value in task.experts if value is not None]
    if not values:
        return Text(_MISSING, "dim")
    return Text(f"{min(values):.1f}–{max(values):.1f}")


def _expert_numbers(task: TaskStatus) -> Text:
    """Every expert's accuracy, the best one bold."""
    best = max((value for value in task.experts if value is not None), default=None)
    cells = [
        Text(_number(value, 1).rjust(4), "bold" if value == best else "") for value in task.experts
    ]
    return Text(" ").join(cells) if best is not None else Text(_MISSING, "dim")


# -- the experts -------------------------------------------------------------------------------


def _experts(snapshot: Snapshot, width: int) -> list[Text]:
    """One line a model with a cell an expert; then why any failed."""
    by_model = _experts_by_model(snapshot)
    if not by_model or all(_all_done(tasks) for tasks in by_model.values()):
        return _folded_experts(snapshot, width)
    total = sum(map(len, by_model.values()))
    shown = {
        model: tasks
        for model, tasks in by_model.items()
        if total < _MANY_EXPERTS or not _all_done(tasks)
    }
    name_width = max(map(len, [*shown, "experts"]))
    count = max(map(len, shown.values()))
    cell = (width - 2 * _MARGIN - name_width - 16) // count - 2
    cell = min(cell, _EXPERT_CELL[1])
    if cell < _EXPERT_CELL[0]:
        return _folded_experts(snapshot, width)
    titles = "".join(f"  {k:<{cell}}" for k in range(count)).rstrip()
    lines = [_indented(Text(f"{'experts':{name_width}}   done     ETA{titles}", "dim"))]
    lines += [_expert_line(model, tasks, name_width, cell) for model, tasks in shown.items()]
    folded = {model: tasks for model, tasks in by_model.items() if model not in shown}
    return lines + _done_models(folded, width) + _expert_failures(snapshot, width)


def _expert_line(model: str, tasks: Sequence[TaskStatus], name_width: int, cell: int) -> Text:
    done = f"{sum(task.state == 'done' for task in tasks)}/{len(tasks)}"
    etas = [task.eta_seconds for task in tasks if task.eta_seconds is not None]
    line = Text(f"{model:{name_width}}  {done:>5}  {_duration(max(etas, default=None)):>6}")
    for task in tasks:
        text = _expert_cell(task, cell)
        line.append("  ").append_text(text).append(" " * (cell - text.cell_len))
    line.rstrip()
    return _one_line(_indented(line))


def _expert_cell(task: TaskStatus, width: int) -> Text:
    """Symbol, bar while there's room and something to show, accuracy."""
    symbol, style = _LOOK[task.state]
    cell = Text.assemble((f"{symbol} ", style))
    accuracy = _number(task.val_accuracy, 1)
    if task.state in ("queued", "waiting", "failed"):
        return cell.append(task.state, style)
    if task.state == "done":
        return cell.append(accuracy)
    size = width - 2 - 5
    if size < 3:
        return cell.append(_percent(task.progress).replace(" ", ""))
    return cell.append_text(_bar(task.progress, size, style)).append(f" {accuracy:>4}")


def _folded_experts(snapshot: Snapshot, width: int) -> list[Text]:
    """One line for all experts."""
    by_model = _experts_by_model(snapshot)
    done = {model: tasks for model, tasks in by_model.items() if _all_done(tasks)}
    lines = _done_models(done, width)
    states = Counter[str](
        task.state for m, tasks in by_model.items() if m not in done for task in tasks
    )
    if states:
        parts = [Text("experts", "dim")]
        parts += [_state(state).append(f" {states[state]}") for state in _LOOK if states[state]]
        lines = _flow(parts, width, "  ") + lines
    return lines + _expert_failures(snapshot, width)


def _done_models(by_model: dict[str, list[TaskStatus]], width: int) -> list[Text]:
    """How many experts of each model are done, and their mean accuracy."""
    if not by_model:
        return []
    parts = [Text("experts done, mean %:", "dim")]
    for model, tasks in by_model.items():
        values = [task.val_accuracy for task in tasks if task.val_accuracy is not None]
        mean = f" {sum(values) / len(values):.1f}" if values else ""
        parts.append(Text.assemble(("✓ ", "green")).append(f"{len(tasks)} {model}{mean}"))
    return _flow(parts, width, "  ")


def _expert_failures(snapshot: Snapshot, width: int) -> list[Text]:
    lines = []
    for task in snapshot.tasks:
        if task.kind == "expert" and task.state == "failed":
            text = f"✗ {task.name}: {_plain(task.note)}"
            lines += _wrapped(text, width, _MARGIN, "red")
    return lines


def _experts_by_model(snapshot: Snapshot) -> dict[str, list[TaskStatus]]:
    by_model: dict[str, list[TaskStatus]] = {}
    for task in snapshot.tasks:
        if task.kind == "expert":
            by_model.setdefault(task.model, []).append(task)
    return by_model


def _all_done(tasks: Iterable[TaskStatus]) -> bool:
    return all(task.state == "done" for task in tasks)


# -- plain lines -------------------------------------------------------------------------------


def _summary(snapshot: Snapshot, task: TaskStatus) -> str:
    """One task's fields at fixed widths, then its note."""
    if task.state == "waiting":
        return f"{task.state:7}  {_wait(snapshot, task)}".rstrip()
    rank = _MISSING if task.rank is None else str(task.rank)
    fields = [
        f"{task.state:7}",
        f"rank {rank:>3}",
        f"epoch {_epoch(task):>9}",
        f"loss {_number(task.train_loss, 4):>7}",
        f"val {_number(task.val_accuracy, 2):>6}",
        f"gain {_gain(task.gain):>6}",
        f"ETA {_duration(task.eta_seconds):>6}",
    ]
    return "  ".join([*fields, _plain(task.note)]).rstrip()


# -- pieces ------------------------------------------------------------------------------------


def _state(state: str) -> Text:
    symbol, style = _LOOK[state]
    return Text(f"{symbol} {state}", style)


def _task_bar(task: TaskStatus, width: int) -> Text:
    return _bar(task.progress, width, _LOOK[task.state][1])


def _bar(part: float, width: int, style: str) -> Text:
    """A bar in steps of half a column; only what is complete looks complete."""
    halves = int(min(max(part, 0.0), 1.0) * 2 * width)
    full, half = divmod(halves, 2)
    done = "━" * full + "╸" * half
    return Text.assemble((done, style), ("─" * (width - len(done)), "dim"))


def _cell(spec: str, value: float | None, style: str = "") -> Text:
    if value is None or not math.isfinite(value):
        return Text(_MISSING, "dim")
    return Text(format(value, spec), style)


def _dimmed(text: str) -> Text:
    return Text(text, "dim" if text == _MISSING else "")


def _flow(parts: Sequence[Text], width: int, separator: str) -> list[Text]:
    """Parts side by side, on the next line when they don't fit; only a longer part is divided."""
    room = max(width - 2 * _MARGIN, 1)
    lines: list[Text] = []
    for part in (piece for whole in parts for piece in whole.divide(range(room, len(whole), room))):
        joined = Text.assemble(lines[-1], (separator, "dim"), part) if lines else part
        if lines and joined.cell_len <= room:
            lines[-1] = joined
        else:
            lines.append(part)
    return [_indented(line) for line in lines]


def _wrapped(text: str, width: int, indent: int, style: str) -> list[Text]:
    """All of `text`, on as many lines as it takes, the later ones two columns further in."""
    pieces = textwrap.wrap(
        text, max(width - indent - _MARGIN, 10), subsequent_indent="  ", break_on_hyphens=False
    )
    return [Text(" " * indent + piece, style) for piece in pieces]


def _indented(text: Text) -> Text:
    return Text(" " * _MARGIN).append_text(text)


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _plain(text: str) -> str:
    return " ".join(printable(text).split())


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _percent(part: float) -> str:
    return f"{math.floor(100 * part)} %"  # 100 only when all is done


def _number(value: float | None, digits: int) -> str:
    return _MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _gain(value: float | None) -> str:
    text = _MISSING if value is None or not math.isfinite(value) else f"{value:+.2f}"
    return "+0.00" if text == "-0.00" else text


def _duration(seconds: float | None) -> str:
    """At most six characters: 45s, 12m30s, 1h02m, 3d04h."""
    if seconds is None or not math.isfinite(seconds):
        return _MISSING
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02}h"


def _bytes(count: float | None) -> str:
    if count is None or not math.isfinite(count):
        return _MISSING
    mib = count / 2**20
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"
