"""A table before it is drawn: what its columns are called, read from each item, and written as."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.tables.headline import Margin, digits, signed

Value = Any  # text, a number, or None: not measured


def p_value(value: float) -> str:
    """With its sign of comparison: nobody should read p = 0.000."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def short_count(value: float) -> str:
    """45,000, 4.50M, 1.25G: three digits from a million on."""
    for unit, name in ((1e9, "G"), (1e6, "M")):
        if value >= 0.9995 * unit:
            digits = max(0, 2 - int(math.log10(max(value / unit, 1) * 1.0005)))
            return f"{value / unit:,.{digits}f}{name}"
    return f"{value:,.0f}"


# how a column writes its values; text is left-aligned, everything else right-aligned
FORMATS: dict[str, Callable[..., str]] = {
    "text": str,
    "name": str,  # text that a terminal folds behind its punctuation where it's long
    "written": str,  # numbers that are text already: a mean and its deviation, two on two lines
    "percent": "{:.2f}".format,
    "score": "{:.4f}".format,
    "cosine": "{:+.2f}".format,
    "count": "{:,.0f}".format,
    "amount": "{:,.1f}".format,
    "plain": "{:g}".format,
    "whole": "{:d}".format,
    "p": p_value,
}
# likewise, with the digits that the images carry
COUNTED: dict[str, Callable[[Any, int], str]] = {
    "accuracy": "{:.{}f}".format,  # on the test set
    "validation": "{:.{}f}".format,
    "points": signed,
    "margin": Margin.text,
}


class Images(NamedTuple):
    """On how many of them a table's accuracies were measured; None: not known."""

    test: int | None = None
    validation: int | None = None


NOT_KNOWN = Images()


@dataclass(frozen=True)
class Column:
    """One number or text of every item that a table lists."""

    heading: str
    format: str  # a key of FORMATS or COUNTED
    of: Callable[[Any], Value]
    contest: bool = False  # the highest of a line's contesting cells stands out
    dispensable: int = 0  # on a narrow terminal: 1 is left out first, 0 never

    @property
    def is_text(self) -> bool:
        return self.format in ("text", "name")


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
    images: Images = NOT_KNOWN

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
                    cells.append(Cell(self.written(column, value), strong))
            yield cells

    def written(self, column: Column, value: Any) -> str:
        """A value of `column` as people read it."""
        if column.format not in COUNTED:
            return FORMATS[column.format](value)
        counted = self.images.validation if column.format == "validation" else self.images.test
        return COUNTED[column.format](value, digits(counted))
