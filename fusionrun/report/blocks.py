"""What a report says, before it is a page or a file: chapters of sections of blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fusionrun.report import charts
from fusionrun.tables.axis import round_ticks
from fusionrun.tables.markup import Markup
from fusionrun.tables.table import Table


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False
    note: bool = False  # to what stands above it


Outcome = Literal["ahead", "open", "behind", "unknown"]


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
    members: Mapping[str, str] = field(default_factory=dict)  # of mixed rows, by name


def named_in(block: Block, members: Mapping[str, str]) -> list[str]:
    """A line for each mixed row that a block names: its members."""
    match block:
        case Table():
            texts = [cell.text for cells in block.lines() for cell in cells]
        case Verdicts():
            texts = [verdict.row for verdict in block.each]
        case Gallery():
            texts = [*(f.title for f in block.figures), *(text for _, text in block.legend)]
        case _:
            texts = []
    return [f"{n}: {of}." for n, of in members.items() if any(n in text for text in texts)]


@dataclass(frozen=True)
class Document:
    title: str
    chapters: Sequence[Chapter]


def bar_figures(charted: Sequence[tuple[str, charts.Bars]], what: str, digits: int) -> list[Figure]:
    """Bar charts by title that share their axis."""
    values = [value for _, groups in charted for _, bars in groups for _, value in bars]
    ticks = round_ticks([0.0, *values], 4)
    return [
        Figure(name, charts.bars(f"{name}: {what}", groups, ticks, digits))
        for name, groups in charted
    ]
