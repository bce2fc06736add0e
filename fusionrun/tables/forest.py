"""Gains with their intervals, a row below the other, as one SVG file that needs nothing else.

So narrow that a phone shows it at full size, and with colours of its own for light and dark.
"""

import textwrap
from collections.abc import Sequence

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.tables.axis import Scale, round_ticks
from fusionrun.tables.headline import GAIN, Margin, verdict
from fusionrun.tables.markup import Markup, tag

WIDTH = 390.0  # pixels
MARGIN, STRIP = 12.0, 202.0  # left edge, and where the strip of intervals ends
LINE, ROW = 16.0, 44.0  # heights
LETTERS = 58  # of a line
LONGEST = 44  # letters of a name; a longer one is drawn narrower
STYLE = """
svg { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  --paper: #fff; --ink: #1a1f26; --muted: #5a6572; --rule: #e1e5ea;
  --ahead: #0072b2; --behind: #d55e00; max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { svg {
  --paper: #12161b; --ink: #e8ecf1; --muted: #9aa6b3; --rule: #313a44;
  --ahead: #56b4e9; --behind: #f28c3c; } }
.paper { fill: var(--paper); } text { fill: var(--ink); }
.strong { font-weight: 600; } .muted { fill: var(--muted); } .small { font-size: 11px; }
.number { text-anchor: end; font-variant-numeric: tabular-nums; } .middle { text-anchor: middle; }
.grid { stroke: var(--rule); } .zero { stroke: var(--ink); stroke-width: 1.2; }
.whisker { stroke-width: 3; stroke-linecap: round; stroke: currentColor; opacity: 0.6; }
.dot { fill: currentColor; }
.hollow { fill: var(--paper); stroke: currentColor; stroke-width: 1.6; }
.ahead { color: var(--ahead); } .behind { color: var(--behind); } .open { color: var(--muted); }
"""


def forest(rows: Sequence[tuple[str, Margin | None]], digits: int, note: str) -> str:
    """Each named row's gain over averaging in points; None: it has none yet.

    Above them what they come to, below them `note`.
    """
    gains = [gain for _, gain in rows if gain is not None]
    edges = [edge for gain in gains for edge in gain if edge is not None]
    across = Scale(round_ticks([0.0, *edges], 4), MARGIN + 4, STRIP)
    summary = verdict(gains, digits)
    drawn: list[Markup] = []
    top = MARGIN + LINE
    for i, line in enumerate([f"{GAIN}, points", *textwrap.wrap(summary, LETTERS)]):
        drawn.append(_text(line, MARGIN, top, "small muted" if i else "strong"))
        top += LINE
    first, last = top, top + ROW * len(rows)
    for tick in across.ticks:
        style = "zero" if tick == 0 else "grid"
        drawn.append(_rule(across(tick), first, across(tick), last, style))
        label = f"{tick:+g}" if tick else "0"
        drawn.append(_text(label, across(tick), last + LINE, "small muted middle"))
    for i, (name, gain) in enumerate(rows):
        drawn += _row(name, gain, first + ROW * i, across, digits)
    top = last + 2.4 * LINE
    for line in textwrap.wrap(note, LETTERS):
        drawn.append(_text(line, MARGIN, top, "small muted"))
        top += LINE
    height = top - LINE / 2
    return tag(
        "svg",
        tag("title", f"{GAIN}: {summary}"),
        tag("style", Markup(STYLE)),
        tag("rect", width="100%", height="100%", class_="paper"),
        *drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=1.5 * WIDTH,
        role="img",
    )


def _row(name: str, gain: Margin | None, top: float, across: Scale, digits: int) -> list[Markup]:
    """Its name, below it the interval and the numbers."""
    room = WIDTH - 2 * MARGIN if len(name) > LONGEST else None
    adjust = room and "spacingAndGlyphs"
    place = {"x": MARGIN, "y": top + LINE, "textLength": room, "lengthAdjust": adjust}
    drawn = [
        _rule(MARGIN, top, WIDTH - MARGIN, top),
        tag("text", name, class_="strong small", **place),
    ]
    middle = top + 1.9 * LINE
    if gain is None:
        return [*drawn, _text(NOT_AVAILABLE, WIDTH - MARGIN, middle + 4, "number muted")]
    if gain.low is not None and gain.high is not None:
        ends = across(gain.low), middle, across(gain.high), middle
        drawn.append(_rule(*ends, f"whisker {gain.outcome}"))
    dot = f"hollow {gain.outcome}" if gain.low is None else f"dot {gain.outcome}"
    text = gain.text(digits).replace("\n", " ")
    return [
        *drawn,
        tag("circle", cx=across(gain.points), cy=middle, r=4.5, class_=dot),
        _text(text, WIDTH - MARGIN, middle + 4, "number small"),
    ]


def _rule(x1: float, y1: float, x2: float, y2: float, style: str = "grid") -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def _text(text: str, x: float, y: float, style: str) -> Markup:
    return tag("text", text, x=x, y=y, class_=style)
