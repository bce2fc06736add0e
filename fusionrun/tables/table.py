"""A table before it is drawn: what its columns are called, read from each item, and written as."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fusionrun.common.text import NOT_AVAILABLE

Value = Any  # text, a number, or None: not measured


def p_value(value: float) -> str:
    """With its sign of comparison: nobody should read p = 0.000."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# how a column writes its values; text is left-aligned, everything else right-aligned
FORMATS: dict[str, Callable[..., str]] = {
    "text": str,
    "written": str,  # numbers that are text already: a mean and its deviation, two on two lines
    "percent": "{:.2f}".format,
    "points": "{:+.2f}".format,
    "score": "{:.4f}".format,
    "cosine": "{:+.2f}".format,
    "count": "{:,.0f}".format,
    "amount": "{:,.1f}".format,
    "plain": "{:g}".format,
    "whole": "{:d}".format,
    "p": p_value,
}


@dataclass(frozen=True)
class Column:
    """One number or text of every item that a table lists."""

    heading: str
    format: str  # a key of FORMATS
    of: Callable[[Any], Value]
    contest: bool = False  # the highest of a line's contesting cells stands out
    dispensable: int = 0  # on a narrow terminal: 1 is left out first, 0 never

    @property
    def is_text(self) -> bool:
        return self.format == "text"


@dataclass(frozen=True)
class Cell:
    """Text as it is drawn; a column may read one from an item to give it a style."""

    text: str
    strong: bool = False
    style: str = ""  # on the terminal, in rich's words


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[Column]
    items: Sequence[Any]  # one a line
    note: str = ""
    folded: bool = False  # on the report's page

    def values(self, item: Any) -> list[Value]:
        return [column.of(item) for column in self.columns]

    def lines(self, columns: Sequence[Column] | None = None) -> Iterator[list[Cell]]:
        """As people read it; all `columns` or some."""
        for item in self.items:
            parts = [(column, column.of(item)) for column in columns or self.columns]
            contesting = [value for column, value in parts if column.contest and value is not None]
            best = max(contesting) if len(contesting) > 1 else None
            cells = []
            for column, value in parts:
                if value is None:
                    cells.append(Cell(NOT_AVAILABLE))
                elif isinstance(value, Cell):
                    cells.append(value)
                else:
                    strong = column.contest and value == best
                    cells.append(Cell(FORMATS[column.format](value), strong))
            yield cells
