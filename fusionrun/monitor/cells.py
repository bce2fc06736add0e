"""What the live table is made of: bars, cells, and text that stays inside a width."""

import textwrap
from collections.abc import Sequence

from rich.text import Text

from fusionrun.monitor.words import LOOK, MISSING, number

MARGIN = 1  # columns that stay free on either side


def state_cell(state: str) -> Text:
    symbol, style = LOOK[state]
    return Text(f"{symbol} {state}", style)


def bar(part: float, width: int, style: str) -> Text:
    """A bar in steps of half a column; only what is complete looks complete."""
    halves = int(min(max(part, 0.0), 1.0) * 2 * width)
    full, half = divmod(halves, 2)
    done = "━" * full + "╸" * half
    return Text.assemble((done, style), ("─" * (width - len(done)), "dim"))


def cell(text: str, style: str = "") -> Text:
    """`text` in `style`, dim where it says that there is nothing."""
    return Text(text, "dim" if text == MISSING else style)


def accuracies(values: Sequence[float | None]) -> Text:
    """Each of several experts' accuracies in percent, the best one bold."""
    best = max((value for value in values if value is not None), default=None)
    if best is None:
        return cell(MISSING)
    return Text(" ").join(
        Text(number(value, 1).rjust(4), "bold" if value == best else "") for value in values
    )


def flow(parts: Sequence[Text], width: int, separator: str) -> list[Text]:
    """Parts side by side, on the next line when they don't fit; only a longer part is divided."""
    room = max(width - 2 * MARGIN, 1)
    lines: list[Text] = []
    for part in (piece for whole in parts for piece in whole.divide(range(room, len(whole), room))):
        joined = Text.assemble(lines[-1], (separator, "dim"), part) if lines else part
        if lines and joined.cell_len <= room:
            lines[-1] = joined
        else:
            lines.append(part)
    return [indented(line) for line in lines]


def wrapped(text: str, width: int, style: str, *, indent: int = MARGIN) -> list[Text]:
    """All of `text`, on as many lines as it takes, the later ones two columns further in."""
    pieces = textwrap.wrap(
        text, max(width - indent - MARGIN, 10), subsequent_indent="  ", break_on_hyphens=False
    )
    return [Text(" " * indent + piece, style) for piece in pieces]


def indented(text: Text) -> Text:
    return Text(" " * MARGIN).append_text(text)


def unbroken(text: Text) -> Text:
    """A line that a narrower console cuts instead of folding it."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
