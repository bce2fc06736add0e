"""The tables of a report as Markdown, CSV and LaTeX."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.report.blocks import Chapter, Document, Text, Verdicts, named_in
from fusionrun.tables.csv import csv_text
from fusionrun.tables.headline import Margin
from fusionrun.tables.latex import latex, latex_table
from fusionrun.tables.markdown import escape, markdown_table
from fusionrun.tables.table import Table


def as_markdown(document: Document) -> str:
    parts = [f"# {document.title}"]
    for chapter in document.chapters:
        parts += [f"## {escape(chapter.title)}", escape(chapter.subtitle)]
        for section in chapter.sections:
            blocks = [b for b in section.blocks if isinstance(b, (Table, Text, Verdicts))]
            parts += [f"### {section.title}"] if blocks else []
            for block in blocks:
                if isinstance(block, Text):
                    parts.append(f"{'⚠ ' * block.warning}{escape(block.text)}")
                elif isinstance(block, Verdicts):
                    parts.append(escape(block.summary))
                    parts.append("\n".join(f"- {escape(v.sentence)}" for v in block.each))
                else:
                    parts += [f"**{escape(block.title)}**", markdown_table(block).rstrip("\n")]
                    parts += [escape(block.note)] if block.note else []
    return "\n\n".join(parts) + "\n"


def as_csv(document: Document) -> str:
    """All tables under one header; a cell that its table doesn't have is empty. Full precision.

    Of a margin the points alone: intervals have columns of their own in other tables.
    """
    lines = [
        {"study": chapter.title, "table": table.title}
        | {
            column.heading: NOT_AVAILABLE if (shown := plain_number(value)) is None else shown
            for column, value in zip(table.columns, table.values(item), strict=True)
        }
        for chapter, table in _tables(document)
        for item in table.items
    ]
    return csv_text(lines)


def plain_number(value: Any) -> Any:
    return value.points if isinstance(value, Margin) else value


def _tables(document: Document) -> Iterator[tuple[Chapter, Table]]:
    for chapter in document.chapters:
        for section in chapter.sections:
            for block in section.blocks:
                if isinstance(block, Table):
                    yield chapter, block


LATEX = r"""% Each table stands alone: copy it with the packages booktabs and longtable.
\documentclass[a4paper,landscape]{article}
\usepackage[margin=12mm]{geometry}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage{longtable}
\setlength{\tabcolsep}{4pt}
\setlength{\LTcapwidth}{\linewidth}
\begin{document}
\footnotesize
"""


def as_latex(document: Document) -> str:
    """A document of long tables that pdflatex compiles as it is."""
    parts = [LATEX]
    previous = None
    for chapter, table in _tables(document):
        if chapter is not previous:
            parts.append(f"\\section*{{{latex(chapter.title)}}}\n")
            previous = chapter
        note = " ".join([table.note, *named_in(table, chapter.members)])
        parts.append(latex_table(replace(table, note=note)))
    return "\n".join([*parts, "\\end{document}\n"])
