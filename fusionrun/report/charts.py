"""Charts as inline SVG, drawn so small that a phone shows them at full size.

Colours are classes of the page's style sheet, which knows light, dark and print.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fusionrun.tables.axis import Scale, Ticks
from fusionrun.tables.headline import signed
from fusionrun.tables.markup import Markup, join, tag

WIDTH, HEIGHT = 280.0, 200.0  # pixels: four beside each other, or one on a phone
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 8.0, 36.0  # margins of a plot
STRIP = 260.0  # width of an interval and of the axis below it
LONGEST_LABEL = 14  # characters beside a bar
LONGEST_LINE = 24  # characters beside a heat map's line
MOST_HIGH_LINES = 10  # of a heat map; of more they are lower
FUSED, ALTERNATIVE = "fused", "alternative"  # styles
SHAPES = ("circle", "square", "triangle", "diamond", "nabla", "cross")


@dataclass(frozen=True)
class Axis:
    label: str
    ticks: Ticks


@dataclass(frozen=True)
class Line:
    style: str  # classes
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    style: str
    x: float
    y: float
    tooltip: str
    radius: float = 4.0
    shape: str = "circle"


def plot(
    label: str, x: Axis, y: Axis, lines: Sequence[Line] = (), dots: Sequence[Dot] = ()
) -> Markup:
    """Lines below dots on two axes; `label` is for those who can't see it."""
    across = Scale(x.ticks, LEFT, WIDTH - RIGHT)
    up = Scale(y.ticks, HEIGHT - BOTTOM, TOP)
    drawn = [_horizontal_axis(across, TOP, HEIGHT - BOTTOM)]
    for tick in up.ticks:
        drawn.append(_rule(LEFT, up(tick), WIDTH - RIGHT, up(tick)))
        drawn.append(_text(f"{tick:g}", LEFT - 6, up(tick) + 4, "tick y end"))
    drawn.append(_text(x.label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "label middle"))
    turned = f"rotate(-90) translate({-(TOP + HEIGHT - BOTTOM) / 2:g} 11)"
    drawn.append(tag("text", y.label, class_="label middle", transform=turned))
    for line in lines:
        points = " ".join(f"{across(a):.2f},{up(b):.2f}" for a, b in line.points)
        drawn.append(tag("polyline", points=points, class_=f"line {line.style}"))
    drawn += [
        shape(dot.shape, dot.radius, across(dot.x), up(dot.y), dot.style, dot.tooltip)
        for dot in dots
    ]
    return _picture(label, WIDTH, HEIGHT, drawn)


Bars = Sequence[tuple[str, Sequence[tuple[str, float]]]]  # (name, [(style, value), ...])


def bars(label: str, groups: Bars, ticks: Ticks, digits: int) -> Markup:
    """Horizontal bars from zero, top to bottom."""
    thick = 16.0 if all(len(values) == 1 for _, values in groups) else 13.0
    count = sum(len(values) for _, values in groups)
    bottom = TOP + thick * count + 5 * len(groups)
    across = Scale(ticks, 96, WIDTH - 48)
    drawn = [_horizontal_axis(across, TOP, bottom)]
    top = TOP + 2.5
    for name, values in groups:
        middle = top + thick * len(values) / 2
        drawn.append(_text(_short(name, LONGEST_LABEL), 90, middle + 4, "tick end", name))
        for style, value in values:
            start, end = sorted((across(0), across(value)))
            box = {"x": start, "y": top + 1, "width": max(end - start, 0.5), "height": thick - 2}
            note = tag("title", f"{name}: {signed(value, digits)}")
            drawn.append(tag("rect", note, class_=f"bar {style}", **box))
            place = WIDTH - 2, top + thick / 2 + 4
            drawn.append(_text(signed(value, digits), *place, "tick end"))
            top += thick
        top += 5
    drawn.append(_rule(across(0), TOP, across(0), bottom, "zero"))
    return _picture(label, WIDTH, bottom + 22, drawn)


@dataclass(frozen=True)
class Grid:
    """Numbers by line and column."""

    corner: str  # what lines and columns are
    lines: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]  # of each line


def heat_map(label: str, grid: Grid, least: float, most: float, digits: int) -> Markup:
    """The numbers with a digit at most, palest at `least` and darkest at `most`."""
    shown = [_short(name, LONGEST_LINE) for name in grid.lines]
    start = max(54.0, 14 + 5.9 * max(map(len, shown)))
    side = min(54.0, (WIDTH - start - 4) / len(grid.columns))
    high = min(side, 36.0 if len(grid.lines) <= MOST_HIGH_LINES else 22.0)
    drawn = [_text(grid.corner, 4, 14, "label")]
    for k, name in enumerate(grid.columns):
        drawn.append(_text(name, start + (k + 0.5) * side, 14, "tick middle"))
    for i, name in enumerate(shown):
        place = start - 10, 22 + (i + 0.5) * high + 4
        drawn.append(_text(name, *place, "tick end", grid.lines[i]))
    for i, k in itertools.product(range(len(grid.lines)), range(len(grid.columns))):
        value = grid.values[i][k]
        text = f"{value:.{min(digits, 1)}f}"
        left, top = start + k * side, 22 + i * high
        box = {"x": left + 1, "y": top + 1, "width": side - 2, "height": high - 2, "rx": 3.0}
        depth = 0.65 * (value - least) / (most - least) if most > least else 0.0
        note = tag("title", f"{grid.lines[i]}, {grid.columns[k]}: {text}")
        drawn.append(tag("rect", note, class_="heat", fill_opacity=0.06 + depth, **box))
        if side >= 30:
            drawn.append(_text(text, left + side / 2, top + high / 2 + 4, "cell middle"))
    return _picture(label, WIDTH, 26 + high * len(grid.lines), drawn)


def interval(
    ticks: Ticks, style: str, low: float, point: float, high: float, tooltip: str
) -> Markup:
    """A point in its interval on a strip; `interval_axis` of the same ticks belongs below."""
    across = Scale(ticks, 12, STRIP - 12)
    drawn = [
        *(_rule(across(tick), 0, across(tick), 24) for tick in ticks),
        _rule(across(0), 0, across(0), 24, "zero"),
        _rule(across(low), 12, across(high), 12, f"whisker {style}"),
        shape("circle", 4.5, across(point), 12, style, tooltip),
    ]
    return _picture(tooltip, STRIP, 24, drawn)


def interval_axis(ticks: Ticks) -> Markup:
    across = Scale(ticks, 12, STRIP - 12)
    drawn = [
        _text(f"{tick:+g}" if tick else "0", across(tick), 12, "tick middle") for tick in ticks
    ]
    return _picture("points", STRIP, 16, drawn)


def swatch(style: str, kind: str = "circle") -> Markup:
    """For a legend; kind: a shape, "line" or "bar"."""
    if kind == "line":
        mark = tag("polyline", points="1,7 21,7", class_=f"line {style}")
    elif kind == "bar":
        mark = tag("rect", x=4.0, y=1.0, width=12.0, height=12.0, class_=f"bar {style}")
    else:
        mark = shape(kind, 5, 11, 7, style)
    return tag("svg", mark, viewBox="0 0 22 14", width="22", height="14", aria_hidden="true")


def shape(kind: str, r: float, x: float, y: float, style: str, tooltip: str = "") -> Markup:
    """A mark with its middle at (x, y), all kinds of about the same size."""
    s, t = r * 0.88, r * 1.15
    path = {
        "circle": f"M{-r:g} 0a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z",
        "square": f"M{-s:g} {-s:g}h{2 * s:g}v{2 * s:g}h{-2 * s:g}z",
        "triangle": f"M0 {-t:g}L{t:g} {s:g}H{-t:g}z",
        "diamond": f"M0 {-1.2 * t:g}L{t:g} 0L0 {1.2 * t:g}L{-t:g} 0z",
        "nabla": f"M0 {t:g}L{t:g} {-s:g}H{-t:g}z",
        "cross": f"M{-s:g} {-s:g}L{s:g} {s:g}M{-s:g} {s:g}L{s:g} {-s:g}",
    }[kind]
    note = [tag("title", tooltip)] if tooltip else []
    place = f"translate({x:.2f} {y:.2f})"
    return tag("path", *note, d=path, transform=place, class_=f"dot {style}")


def _horizontal_axis(across: Scale, top: float, bottom: float) -> Markup:
    return join(
        *(
            join(
                _rule(across(tick), top, across(tick), bottom),
                _text(f"{tick:g}", across(tick), bottom + 15, "tick x middle"),
            )
            for tick in across.ticks
        )
    )


def _rule(x1: float, y1: float, x2: float, y2: float, style: str = "grid") -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def _short(name: str, most: int) -> str:
    """With its last letters: resnet 0 and resnet 1 differ there."""
    return name if len(name) <= most else f"{name[: most - 3]}…{name[-2:]}"


def _text(text: str, x: float, y: float, style: str, tooltip: str = "") -> Markup:
    content = [text, tag("title", tooltip)] if tooltip not in ("", text) else [text]
    return tag("text", *content, x=x, y=y, class_=style)


def _picture(label: str, width: float, height: float, drawn: Sequence[Markup]) -> Markup:
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", *drawn, viewBox=box, role="img", aria_label=label)
