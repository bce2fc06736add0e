"""The live table's part on the rows: the columns that fit, then a block of lines for each row."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from fusionrun.common.text import size
from fusionrun.monitor.cells import (
    MARGIN,
    accuracies,
    bar,
    cell,
    indented,
    state_cell,
    unbroken,
    wrapped,
)
from fusionrun.monitor.snapshot import RankStatus, Snapshot, TaskStatus
from fusionrun.monitor.words import (
    LOOK,
    MISSING,
    clock,
    epoch_of,
    number,
    printable_line,
    signed,
    silence,
    what_it_needs,
)

_NOTE_INDENT = 5
_BAR = (6, 28)  # narrowest and widest progress bar, in columns
_ROOMY = 100  # from this width on there are units in the titles and two spaces between columns
# what goes first when the terminal is too low for all rows
_LEAST_WANTED = ("done", "waiting", "queued", "stopped", "running", "failed")


@dataclass(frozen=True)
class Column:
    """What is fixed of a column; its cells are `_row_cells`'s."""

    title: str
    wanted: int  # 0: always there; the higher, the earlier it goes
    left: bool = False
    optional: bool = False  # only there once a row has a value
    unit: str = ""


_COLUMNS = (
    Column("#", 0),
    Column("row", 0, left=True),
    Column("rank", 8),
    Column("state", 0, left=True),
    Column("progress", 3, left=True),
    Column("epoch", 1),
    Column("loss", 6, optional=True),
    Column("fused", 0, unit=" %"),
    Column("gain", 2),
    Column("experts", 7, unit=" %"),
    Column("best", 9, unit=" @epoch"),
    Column("img/s", 10, optional=True),
    Column("memory", 11, optional=True),
    Column("ETA", 4, optional=True),
)
_TOOK = Column("took", 12, optional=True)
_TOOK_AT_END = Column("took", 4, optional=True)  # an ended launch has no ETAs


class RowTable:
    """The rows of a snapshot as lines of at most `width` columns."""

    def __init__(self, snapshot: Snapshot, width: int) -> None:
        self._snapshot = snapshot
        self._width = width
        self._gap = 2 if width >= _ROOMY else 1
        self._tasks = [task for task in snapshot.tasks if task.kind == "row"]
        self._ranks = {rank.task: rank for rank in snapshot.ranks if rank.task}
        each = [_row_cells(task, self._ranks.get(task.name)) for task in self._tasks]
        digits = len(str(len(each) - 1))
        for index, cells in enumerate(each):
            cells["#"] = Text(f"{index:>{digits}}", "dim")
        took = _TOOK if snapshot.state == "running" else _TOOK_AT_END
        self._columns: tuple[Column, ...] = (*_COLUMNS, took)
        self._cells = {c.title: [cells[c.title] for cells in each] for c in self._columns}
        if self._tasks:
            self._columns = self._fit()
        # once: each looks at the cells of all rows
        self._widths = [self._width_of(column) for column in self._columns]

    def lines(self, room: int | None = None) -> list[Text]:
        """Title, rule and rows; with `room` lines at most, leaving the least interesting out."""
        if not self._tasks:
            return []
        title = self._line([Text(self._title(column), "dim") for column in self._columns])
        line_width = sum(self._widths) + self._gap * (len(self._columns) - 1)
        rule = indented(Text("─" * min(line_width, self._width - 2 * MARGIN), "dim"))
        blocks = [self._block(index) for index in range(len(self._tasks))]
        if room is None or 2 + sum(map(len, blocks)) <= room:
            return [title, rule, *(line for block in blocks for line in block)]
        kept = list(range(len(blocks)))
        left_out: Counter[str] = Counter()
        for index in sorted(kept, key=lambda i: (_LEAST_WANTED.index(self._tasks[i].state), -i)):
            if sum(len(blocks[i]) for i in kept) <= room - 3:
                break
            kept.remove(index)
            left_out[self._tasks[index].state] += 1
        states = ", ".join(f"{n} {state}" for state, n in left_out.items())
        more = indented(Text(f"… and {states}: the terminal is too low to show them", "dim"))
        return [title, rule, *(line for i in kept for line in blocks[i]), unbroken(more)]

    def _fit(self) -> tuple[Column, ...]:
        """The columns in order: as many as fit, the roomier cells where there's room left."""
        tasks, cells = self._tasks, self._cells
        names, bars, experts = (
            next(column for column in self._columns if column.title == title)
            for title in ("row", "progress", "experts")
        )
        chosen = [column for column in self._columns if column.wanted == 0]
        room = self._room(chosen) + self._width_of(names)
        for i, task in enumerate(tasks):
            if cells["row"][i].cell_len > room:  # the model is cut: fusions differ in their ends
                model = task.model[: max(room - len(task.fusion) - 2, 4)]
                cells["row"][i] = Text(f"{model}… {task.fusion}"[: max(room, 1)])
        for column in sorted(self._columns, key=lambda column: column.wanted):
            empty = column.optional and all(each.plain == MISSING for each in cells[column.title])
            if column not in chosen and not empty and self._room([*chosen, column]) >= 0:
                chosen.append(column)
        widest = max(len(task.model) for task in tasks)
        for column, roomier in (
            (experts, [accuracies(task.experts) for task in tasks]),
            (names, [Text(f"{task.model:{widest}}  {task.fusion}") for task in tasks]),
        ):
            more = max(each.cell_len for each in roomier) - self._width_of(column)
            if column in chosen and self._room(chosen) >= more:
                cells[column.title] = roomier
        if bars in chosen:
            wide = min(_BAR[1], self._width_of(bars) + self._room(chosen))
            cells["progress"] = [bar(t.progress, wide, LOOK[t.state][1]) for t in tasks]
        return tuple(column for column in self._columns if column in chosen)

    def _title(self, column: Column) -> str:
        return column.title + (column.unit if self._width >= _ROOMY else "")

    def _width_of(self, column: Column) -> int:
        cells = self._cells[column.title]
        return max(cell_len(self._title(column)), *(each.cell_len for each in cells), 0)

    def _room(self, columns: Sequence[Column]) -> int:
        """What `columns` leave free; negative when they don't fit."""
        used = sum(map(self._width_of, columns)) + self._gap * (len(columns) - 1)
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
        elif task.note:
            style = "red" if task.state == "failed" else "yellow"
            notes.append((printable_line(task.note), style))
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
        for i, (each, column, width) in enumerate(
            zip(cells, self._columns, self._widths, strict=False)
        ):
            pad = " " * max(width - each.cell_len, 0)
            is_left = column.left or each.cell_len > width
            line.append_text(Text.assemble(each, pad) if is_left else Text.assemble(pad, each))
            line.append(" " * self._gap if i + 1 < len(cells) else "")
        line.rstrip()
        line.truncate(self._width - MARGIN, overflow="ellipsis")
        return unbroken(line)


def _row_cells(task: TaskStatus, rank: RankStatus | None) -> dict[str, Text]:
    """{column: the row's cell in its narrowest form}."""
    gain = signed(task.gain)
    best = cell(number(task.best, 2))
    if task.best is not None and task.best_epoch is not None:
        best.append(f" @{task.best_epoch}", "dim")
    experts = [value for value in task.experts if value is not None]
    memory = rank.memory_bytes if rank else None
    speed = task.images_per_second
    return {
        "row": Text(f"{task.model} {task.fusion}"),
        "rank": cell(MISSING if task.rank is None else str(task.rank)),
        "state": state_cell(task.state),
        "progress": bar(task.progress, _BAR[0], LOOK[task.state][1]),
        "epoch": Text(epoch_of(task)),
        "loss": cell(number(task.train_loss, 4)),
        "fused": cell(number(task.val_accuracy, 2), "bold"),
        "gain": cell(gain, "" if gain == "+0.00" else "green" if gain[0] == "+" else "red"),
        "experts": cell(f"{min(experts):.1f}–{max(experts):.1f}" if experts else MISSING),
        "best": best,
        "img/s": cell(MISSING if speed is None else f"{speed:,.0f}"),
        "memory": cell(MISSING if memory is None else size(memory)),
        "ETA": cell(clock(task.eta_seconds)),
        "took": Text(clock(task.seconds), "dim"),
    }
