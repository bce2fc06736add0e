"""What a report says, before it is a page or a file: chapters of sections of blocks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.report.markup import Markup

Value = Any  # text, a number, or None: not measured


def p_value(value: float) -> str:
    """With its sign of comparison: nobody should read p = 0.000."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# how a column writes its numbers; text is left-aligned, everything else right-aligned
FORMATS: dict[str, Callable[..., str]] = {
    "text": str,
    "percent": "{:.2f}".format,
    "points": "{:+.2f}".format,
    "score": "{:.4f}".format,
    "cosine": "{:+.2f}".format,
    "count": "{:,.0f}".format,
    "amount": "{:,.1f}".format,
    "plain": "{:g}".format,
    "p": p_value,
    "spread": str,  # a mean and its deviation
}


@dataclass(frozen=True)
class Column:
    """One number or text of every item that a table lists."""

    heading: str
    format: str
    of: Callable[[Any], Value]
    contest: bool = False  # the highest of a line's contesting cells stands out


@dataclass(frozen=True)
class Cell:
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[Column]
    items: Sequence[Any]  # one a line
    note: str = ""
    folded: bool = False  # on the page

    def values(self, item: Any) -> list[Value]:
        return [column.of(item) for column in self.columns]

    def lines(self) -> Iterator[list[Cell]]:
        """As people read it."""
        for item in self.items:
            parts = list(zip(self.columns, self.values(item), strict=True))
            rivals = [value for column, value in parts if column.contest and value is not None]
            yield [
                Cell(
                    NOT_AVAILABLE if value is None else FORMATS[column.format](value),
                    strong=column.contest and len(rivals) > 1 and value == max(rivals),
                )
                for column, value in parts
            ]


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False


Outcome = Literal["beats", "open", "loses", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """One row's answer."""

    outcome: Outcome
    row: str
    finding: str
    picture: Markup  # none where nothing was measured

    @property
    def sentence(self) -> str:
        return f"{self.row}: {self.finding}"


@dataclass(frozen=True)
class Verdicts:
    summary: str
    each: Sequence[Verdict]
    axis: Markup  # below their pictures


@dataclass(frozen=True)
class Figure:
    title: str
    picture: Markup
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Figures side by side; on the page only."""

    figures: Sequence[Figure]
    legend: Sequence[tuple[Markup, str]] = ()  # swatch, what it stands for
    note: str = ""


@dataclass(frozen=True)
class Listing:
    """A file word for word; on the page only."""

    title: str
    text: str


Block = Table | Text | Verdicts | Gallery | Listing


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Chapter:
    title: str
    subtitle: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Document:
    title: str
    chapters: Sequence[Chapter]
