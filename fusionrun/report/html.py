"""The report as one HTML file that needs nothing else: no network, no script.

report.css is its style for light, dark, phone and print. The colours of lines and dots are Okabe
and Ito's, which the colour-blind can tell apart ("Color universal design", 2008); shapes, dashes
and words say the same.
"""

from html import escape
from importlib import resources

from fusionrun.report.blocks import (
    Block,
    Document,
    Gallery,
    Listing,
    Outcome,
    Text,
    Verdicts,
)
from fusionrun.tables.markup import Markup, join, tag
from fusionrun.tables.table import Table

MANY = 16  # figures; a gallery of more is folded
MARKS: dict[Outcome, str] = {"ahead": "▲", "open": "●", "behind": "▼", "unknown": "○"}
LEGEND: dict[Outcome, str] = {
    "ahead": "the interval lies above zero",
    "open": "it holds zero",
    "behind": "it lies below zero",
    "unknown": "not measured",
}


def as_html(document: Document) -> str:
    chapters = [
        tag(
            "article",
            tag("h2", chapter.title),
            tag("p", chapter.subtitle, class_="note"),
            *(
                tag("section", tag("h3", s.title), *map(html_block, s.blocks), id=_anchor(i, k))
                for k, s in enumerate(chapter.sections)
            ),
        )
        for i, chapter in enumerate(document.chapters)
    ]
    style = resources.files("fusionrun.report").joinpath("report.css").read_text(encoding="utf-8")
    header = tag("header", tag("p", "fusionrun report", class_="brand"), tag("h1", document.title))
    body = tag("body", tag("main", header, _contents(document), *chapters))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(document.title)}</title>
<style>
{style}</style>
</head>
{body}
</html>
"""


def _contents(document: Document) -> Markup:
    """Links to every section."""
    chapters = [
        tag(
            "li",
            tag("b", chapter.title),
            *(
                join(" ", tag("a", section.title, href=f"#{_anchor(i, k)}"))
                for k, section in enumerate(chapter.sections)
            ),
        )
        for i, chapter in enumerate(document.chapters)
    ]
    return tag("nav", tag("ul", *chapters), aria_label="contents")


def _anchor(chapter: int, section: int) -> str:
    return f"section-{chapter}-{section}"


def html_block(block: Block) -> Markup:
    """One block of a section."""
    if isinstance(block, Text):
        if block.warning:
            return tag("p", f"⚠ {block.text}", class_="warning")
        return tag("p", block.text, class_="note" if block.note else None)
    if isinstance(block, Listing):
        listing = tag("pre", block.text)
        return tag("details", tag("summary", block.title), listing, class_="listing")
    if isinstance(block, Verdicts):
        return html_verdicts(block)
    return html_table(block) if isinstance(block, Table) else html_gallery(block)


def html_verdicts(block: Verdicts) -> Markup:
    """A line a row, its interval above an axis that all share."""
    items = [
        tag(
            "li",
            tag("span", MARKS[verdict.outcome], class_="mark", title=LEGEND[verdict.outcome]),
            tag("span", tag("b", verdict.row), f": {verdict.finding}", class_="sentence"),
            verdict.picture,
            class_=verdict.outcome,
        )
        for verdict in block.each
    ]
    used = {verdict.outcome for verdict in block.each}
    key = (
        join(tag("span", MARKS[outcome], class_=f"mark {outcome}"), f" {LEGEND[outcome]} ")
        for outcome in MARKS
        if outcome in used
    )
    axis = tag("li", tag("span", *key, class_="sentence"), block.axis, class_="axis")
    return join(tag("p", block.summary, class_="lead"), tag("ul", *items, axis, class_="verdicts"))


def html_table(block: Table) -> Markup:
    """It scrolls where the page is narrow; a folded one opens on a click."""
    classes = ["text" if column.is_text else "number" for column in block.columns]
    heads = [
        tag("th", column.heading, class_=style, scope="col")
        for column, style in zip(block.columns, classes, strict=True)
    ]
    lines = []
    for cells in block.lines():
        shown = (tag("strong", cell.text) if cell.strong else cell.text for cell in cells)
        drawn = [tag("td", c, class_=style) for c, style in zip(shown, classes, strict=True)]
        lines.append(tag("tr", *drawn))
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines))
    note = tag("p", block.note, class_="note") if block.note else ""
    # a keyboard can scroll what it can focus
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=block.title)
    if block.folded:
        title = f"{block.title} ({len(block.items):,} lines)"
        return tag("details", tag("summary", title), scroll, note)
    return join(tag("h4", block.title), scroll, note)


def html_gallery(block: Gallery) -> Markup:
    """Figures side by side below their note and legend."""
    figures = [
        tag(
            "figure",
            tag("figcaption", figure.title),
            figure.picture,
            tag("p", figure.caption, class_="note") if figure.caption else "",
        )
        for figure in block.figures
    ]
    legend = [tag("span", swatch, " ", text, class_="key") for swatch, text in block.legend]
    note = tag("p", block.note, class_="note")
    drawn = join(note, tag("p", *legend, class_="legend"), tag("div", *figures, class_="gallery"))
    if len(figures) > MANY:
        return tag("details", tag("summary", f"{len(figures)} charts"), drawn)
    return drawn


def _listing(block: Listing) -> Markup:
    return tag("details", tag("summary", block.title), tag("pre", block.text), class_="listing")
