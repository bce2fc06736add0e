"""A table on the terminal."""

import re
from collections.abc import Sequence
from itertools import takewhile

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.tables.table import Column, Table

LONGEST = 32  # letters of a name that stays on one line,
FOLDED = 24  # and of the lines of one that doesn't
STYLES = {NOT_AVAILABLE: "dim"}


def terminal_table(table: Table, width: int | None = None) -> Group:
    """`table` as rich prints it; with `width` as much of it as fits.

    Where it's too wide, the names that begin its lines stand one below the other, then what it can
    do without goes. What still doesn't fit stands in further tables below, which begin with the
    same names, so that no word is broken. Numbers are narrow, so their headings stand a word a
    line; title and note are as wide as the terminal.
    """
    columns = list(table.columns)
    if not _fits(table, columns, width):
        columns = _stacked(columns)
    dispensable = sorted((c for c in columns if c.dispensable), key=lambda c: -c.dispensable)
    while dispensable and not _fits(table, columns, width):
        columns.remove(dispensable.pop())
    names = list(takewhile(lambda column: column.is_text, columns[:-1])) or columns[:1]
    others = columns[len(names) :]
    if any(not _fits(table, [*names, other], width) for other in others):
        names, others = columns[:1], columns[1:]
    drawn: list[RichTable] = []
    while others or not drawn:
        count = len(others)
        while count > 1 and not _fits(table, [*names, *others[:count]], width):
            count -= 1
        drawn.append(_draw(table, [*names, *others[:count]]))
        others = others[count:]
    note = [Text(table.note, "dim")] if table.note else []
    return Group(Text(f"\n{table.title}", "bold"), *drawn, *note)


def _stacked(columns: Sequence[Column]) -> list[Column]:
    """The names that `columns` begin with as one of them."""
    names = list(takewhile(lambda column: column.format == "name", columns))
    if len(names) < 2:
        return list(columns)
    heading = "\n".join(column.heading for column in names)
    whole = Column(heading, "name", lambda item: "\n".join(c.of(item) for c in names))
    return [whole, *columns[len(names) :]]


def _fits(table: Table, columns: Sequence[Column], width: int | None) -> bool:
    unlimited = Console(width=10_000)
    return width is None or unlimited.measure(_draw(table, columns)).maximum <= width


def _draw(table: Table, columns: Sequence[Column]) -> RichTable:
    drawn = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        if column.is_text:
            drawn.add_column(Text(column.heading), overflow="fold")
        else:
            stacked = Text(column.heading.replace(" ", "\n"))
            drawn.add_column(stacked, justify="right", overflow="fold")
    for cells in table.lines(columns):
        shown = []
        for cell, column in zip(cells, columns, strict=True):
            text = folded(cell.text) if column.format == "name" else cell.text
            style = cell.style or STYLES.get(cell.text, "bold" if cell.strong else "")
            shown.append(Text(text, style))
        drawn.add_row(*shown)
    return drawn


def folded(name: str) -> str:
    """A long name on several lines, e.g. of timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k."""
    lines = []
    for line in name.split("\n"):
        lines.append("")
        for part in re.split(r"(?<=[._:-])", line) if len(line) > LONGEST else [line]:
            if lines[-1] and len(lines[-1] + part) > FOLDED:
                lines.append("")
            lines[-1] += part
    return "\n".join(lines)
