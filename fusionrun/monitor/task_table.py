"""The live table's part on rows and experts at work: the columns that fit, a block for each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.text import Text

from fusionrun.monitor.cells import (
    BAR,
    MARGIN,
    accuracies,
    bar,
    cell,
    indented,
    name_parts,
    task_cells,
    unbroken,
    wrapped,
)
from fusionrun.monitor.side_by_side import by_rank
from fusionrun.monitor.snapshot import AT_WORK, Snapshot
from fusionrun.monitor.words import (
    LOOK,
    MISSING,
    failures,
    gib_of,
    printable_line,
    short_reason,
    silence,
    together,
    what_it_needs,
)
from fusionrun.tables.headline import GAIN

_NOTE_INDENT = 5
_ROOMY = 100  # from this width on there are units in the titles and two spaces between columns
# what goes first when the terminal is too low for all rows
_LEAST_WANTED = ("done", "waiting", "queued", "stopped", "saving", "testing", "running", "failed")


@dataclass(frozen=True)
class Column:
    """What is fixed of a column; its cells are `task_cells`'s."""

    title: str
    wanted: int  # 0: always there; the higher, the earlier it goes
    left: bool = False
    optional: bool = False  # only there once a task has a value
    unit: str = ""
    above: str = ""  # the title's first line


_PROGRESS = Column("progress", 3, left=True)
_EXPERTS = Column("experts", 7, unit=" %", above="val.")
_MEMORY = Column("memory", 11, optional=True)
_COLUMNS = (
    Column("#", 0),
    Column("row", 0, left=True),
    Column("rank", 8),
    Column("state", 0, left=True),
    _PROGRESS,
    Column("epoch", 1),
    Column("loss", 6, optional=True),
    Column("fused", 0, unit=" %", above="val."),
    Column(GAIN.rpartition(" ")[2], 2, above=GAIN.rpartition(" ")[0]),
    _EXPERTS,
    Column("best", 9, unit=" @epoch", above="val."),
    Column("img/s", 10, optional=True),
    _MEMORY,
    Column("ETA", 4, optional=True),
)
_TOOK = Column("took", 12, optional=True)
_TOOK_AT_END = Column("took", 4, optional=True)  # an ended launch has no ETAs
_EXPERT_COLUMNS = (
    Column("expert", 0, left=True),
    Column("rank", 0),
    Column("state", 0, left=True),
    _PROGRESS,
    Column("epoch", 1),
    Column("loss", 0),
    Column("val. %", 5),
    Column("best", 9, unit=" @epoch"),
    Column("img/s", 2),
    _MEMORY,
    Column("ETA", 4),
)


class TaskTable:
    """Rows and networks of full ensembles, or experts at work, in lines of `width` columns."""

    def __init__(self, snapshot: Snapshot, width: int, kind: Literal["expert", "row"]) -> None:
        self._snapshot = snapshot
        self._width = width
        self._gap = 2 if width >= _ROOMY else 1
        tasks = [task for task in snapshot.tasks if (task.kind == "expert") == (kind == "expert")]
        if kind == "expert":
            columns: tuple[Column, ...] = _EXPERT_COLUMNS
            tasks = by_rank([task for task in tasks if task.state in AT_WORK])
        else:
            columns = (*_COLUMNS, _TOOK if snapshot.state == "running" else _TOOK_AT_END)
        if all(task.state in ("waiting", "queued") for task in tasks):
            columns = tuple(column for column in columns if column.title in ("#", "row", "state"))
        self._tasks, self._columns = tasks, columns
        self._ranks = {n: rank for rank in snapshot.ranks for n in (rank.task, *rank.tasks) if n}
        for task in tasks:  # of which several are one
            if task.together > 1 and task.rank is not None and task.state in AT_WORK:
                self._ranks[task.name] = snapshot.ranks[task.rank]
        self._failures = failures(tasks)
        each = [task_cells(task, self._ranks.get(task.name)) for task in tasks]
        digits = len(str(len(each) - 1))
        for index, cells in enumerate(each):
            cells["#"] = Text(f"{index:>{digits}}", "dim")
        self._cells: dict[str, list[Text]] = {}
        self._sizes: dict[str, int] = {}  # of columns, in columns of the terminal
        for column in self._columns:
            self._fill(column, [cells[column.title] for cells in each])
        if tasks:
            self._columns = self._fit()
        self._widths = [self._sizes[column.title] for column in self._columns]
        self._blocks = [self._block(index) for index in range(len(tasks))]

    def lines(self, room: int | None = None) -> list[Text]:
        """Titles, rule and tasks; with `room` lines at most, leaving the least interesting out."""
        if not self._tasks:
            return []
        titles = [self._line([Text(self._title(column), "dim") for column in self._columns])]
        above = [Text(column.above, "dim") for column in self._columns]
        if any(column.above.count(" ") for column in self._columns):
            titles.insert(0, self._line(above))
        line_width = sum(self._widths) + self._gap * (len(self._columns) - 1)
        rule = indented(Text("─" * min(line_width, self._width - 2 * MARGIN), "dim"))
        head, blocks = [*titles, rule], self._blocks
        if room is None or len(head) + sum(map(len, blocks)) <= room:
            return [*head, *(line for block in blocks for line in block)]
        if room <= len(head):
            return []
        kept = list(range(len(blocks)))
        left_out: Counter[str] = Counter()
        for index in sorted(kept, key=lambda i: (_LEAST_WANTED.index(self._tasks[i].state), -i)):
            if sum(len(blocks[i]) for i in kept) <= room - len(head) - 1:
                break
            kept.remove(index)
            left_out[self._tasks[index].state] += 1
        states = ", ".join(f"{n} {state}" for state, n in left_out.items())
        more = indented(Text(f"… and {states}: the terminal is too low to show them", "dim"))
        return [*head, *(line for i in kept for line in blocks[i]), unbroken(more)]

    def _fit(self) -> tuple[Column, ...]:
        """The columns in order: as many as fit, the roomier cells where there's room left."""
        tasks, cells = self._tasks, self._cells
        names = next(column for column in self._columns if column.title in ("row", "expert"))
        chosen = [column for column in self._columns if column.wanted == 0]
        room = self._room(chosen) + self._sizes[names.title]
        if self._sizes[names.title] > room:
            for i, (model, which) in enumerate(map(name_parts, tasks)):
                if cells[names.title][i].cell_len > room:  # rows differ in their ends
                    model = model[: max(room - len(which) - 2, 4)]
                    cells[names.title][i] = Text(f"{model}… {which}"[: max(room, 1)])
            self._fill(names, cells[names.title])
        for column in sorted(self._columns, key=lambda column: column.wanted):
            empty = column.optional and all(each.plain == MISSING for each in cells[column.title])
            if column not in chosen and not empty and self._room([*chosen, column]) >= 0:
                chosen.append(column)
        ranks = [self._ranks.get(task.name) for task in tasks]
        of_device = [rank and gib_of(rank.memory_bytes, rank.memory_total) for rank in ranks]
        widest = max(len(task.model) for task in tasks)
        parts = map(name_parts, tasks)
        for column, roomier in (
            (_MEMORY, [cell(text or MISSING) for text in of_device]),
            (_EXPERTS, [accuracies(task) for task in tasks]),
            (names, [Text(f"{model:{widest}}  {which}") for model, which in parts]),
        ):
            if column in chosen:
                more = max(each.cell_len for each in roomier) - self._sizes[column.title]
                if self._room(chosen) >= more:
                    self._fill(column, roomier)
        if _PROGRESS in chosen:
            wide = min(BAR[1], self._sizes["progress"] + self._room(chosen))
            self._fill(_PROGRESS, [bar(t.progress, wide, LOOK[t.state][1]) for t in tasks])
        return tuple(column for column in self._columns if column in chosen)

    def _title(self, column: Column) -> str:
        return column.title + (column.unit if self._width >= _ROOMY else "")

    def _fill(self, column: Column, cells: list[Text]) -> None:
        self._cells[column.title] = cells
        titles = cell_len(self._title(column)), cell_len(column.above)
        self._sizes[column.title] = max(*titles, *(each.cell_len for each in cells))

    def _room(self, columns: Sequence[Column]) -> int:
        """What `columns` leave free; negative when they don't fit."""
        used = sum(self._sizes[each.title] for each in columns) + self._gap * (len(columns) - 1)
        return self._width - 2 * MARGIN - used

    def _block(self, index: int) -> list[Text]:
        """The row's line and what there is to say about it, below."""
        task = self._tasks[index]
        cells = [self._cells[column.title][index] for column in self._columns]
        notes = []
        if task.state in ("waiting", "queued"):
            # nothing measured yet: words instead of a line of dashes
            end = [column.title for column in self._columns].index("state") + 1
            cells = [*cells[:end], Text(what_it_needs(task, self._snapshot), "dim")]
        elif task.state == "failed":
            reason = short_reason(task.note)
            sharing = self._failures[reason]
            if sharing[0] is task:  # once, at the first of those that failed for it
                rows = [self._tasks.index(other) for other in sharing]
                notes.append((f"{together('row', rows)}: " * (len(rows) > 1) + reason, "red"))
        elif task.note:
            notes.append((printable_line(task.note), "yellow"))
        rank = self._ranks.get(task.name)
        if rank and (silent := silence(rank)):
            notes.append((f"rank {rank.rank}: {silent}", "yellow"))
        lines = [self._line(cells)]
        for text, style in notes:
            lines += wrapped(f"└ {text}", self._width, style, indent=_NOTE_INDENT)
        return lines

    def _line(self, cells: Sequence[Text]) -> Text:
        """Cells side by side; one more than there are columns to its left may be any length."""
        line = Text(" " * MARGIN)
        columns = [*zip(self._columns, self._widths, strict=True), (Column("", 0, left=True), 0)]
        for i, (each, (column, width)) in enumerate(zip(cells, columns, strict=False)):
            pad = " " * max(width - each.cell_len, 0)
            is_left = column.left or each.cell_len > width
            line.append_text(Text.assemble(each, pad) if is_left else Text.assemble(pad, each))
            line.append(" " * self._gap if i + 1 < len(cells) else "")
        line.rstrip()
        line.truncate(self._width - MARGIN, overflow="ellipsis")
        return unbroken(line)
