"""The tables of a report as Markdown, CSV and LaTeX."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.report.blocks import Cell, Column, Document, Table, Text, Verdicts


def as_markdown(document: Document) -> str:
    parts = [f"# {document.title}"]
    for chapter in document.chapters:
        parts += [f"## {_markdown(chapter.title)}", _markdown(chapter.subtitle)]
        for section in chapter.sections:
            blocks = [b for b in section.blocks if isinstance(b, (Table, Text, Verdicts))]
            parts += [f"### {section.title}"] if blocks else []
            for block in blocks:
                if isinstance(block, Text):
                    parts.append(f"{'⚠ ' * block.warning}{_markdown(block.text)}")
                elif isinstance(block, Verdicts):
                    parts.append(_markdown(block.summary))
                    parts.append("\n".join(f"- {_markdown(v.sentence)}" for v in block.each))
                else:
                    parts += _markdown_table(block)
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> list[str]:
    lines = [[_markdown(column.heading) for column in table.columns]]
    lines.append(["---" if is_text(column) else "--:" for column in table.columns])
    for cells in table.lines():
        texts = [_markdown(cell.text) for cell in cells]
        lines.append([f"**{t}**" if c.strong else t for t, c in zip(texts, cells, strict=True)])
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return [f"**{_markdown(table.title)}**", drawn, *([_markdown(table.note)] * bool(table.note))]


def _markdown(text: str) -> str:
    """Underscores inside words mean nothing in Markdown, those around them do."""
    escaped = re.sub(r"([\\|*`<&\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)


def as_csv(document: Document) -> str:
    """All tables under one header; a cell that its table doesn't have is empty. Full precision."""
    lines = [
        {"study": study, "table": table.title}
        | {
            column.heading: NOT_AVAILABLE if value is None else value
            for column, value in zip(table.columns, table.values(item), strict=True)
        }
        for study, table in _tables(document)
        for item in table.items
    ]
    buffer = io.StringIO()
    header = dict.fromkeys(heading for line in lines for heading in line)
    writer = csv.DictWriter(buffer, list(header), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _tables(document: Document) -> Iterator[tuple[str, Table]]:
    for chapter in document.chapters:
        for section in chapter.sections:
            for block in section.blocks:
                if isinstance(block, Table):
                    yield chapter.title, block


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
        if chapter != previous:
            parts.append(f"\\section*{{{latex(chapter)}}}\n")
            previous = chapter
        parts.append(_latex_table(table))
    return "\n".join([*parts, "\\end{document}\n"])


def _latex_table(table: Table) -> str:
    header = " & ".join(_stacked(column.heading) for column in table.columns)
    head = f"\\toprule\n{header} \\\\\n\\midrule"
    align = "".join("l" if is_text(column) else "r" for column in table.columns)
    lines = [
        " & ".join(_latex_cell(*of) for of in zip(cells, table.columns, strict=True))
        for cells in table.lines()
    ]
    return "\n".join(
        [
            f"\\begin{{longtable}}{{{align}}}",
            f"\\caption{{{latex(f'{table.title}. {table.note}'.strip())}}} \\\\",
            f"{head}\n\\endfirsthead\n{head}\n\\endhead\n\\bottomrule\n\\endfoot",
            *(f"{line} \\\\" for line in lines),
            "\\end{longtable}\n",
        ]
    )


def _latex_cell(cell: Cell, column: Column) -> str:
    """In braces: one that began with [ would be a length to the \\\\ before it."""
    text = latex(cell.text if is_text(column) else cell.text.replace("-", MINUS))
    return f"{{\\bfseries {text}}}" if cell.strong else f"{{{text}}}"


def _stacked(heading: str) -> str:
    """A heading as a column of words, for numbers are narrow."""
    words = r" \\ ".join(latex(word) for word in heading.split())
    return rf"\begin{{tabular}}[b]{{@{{}}c@{{}}}}{words}\end{{tabular}}"


MINUS = "\u2212"
LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    '"': r"\textquotedbl{}",
    "-": "-{}",  # -- would become a dash
    "`": r"\textasciigrave{}",
    MINUS: "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\to$",
    "–": "--",
    "…": r"\dots{}",
}


def latex(text: str) -> str:
    """Text that LaTeX shows as it is; letters that pdflatex has no glyph for as [U+4E2D]."""
    return "".join(_latex_letter(letter) for letter in " ".join(text.split()))


def _latex_letter(letter: str) -> str:
    if letter in LATEX_SPECIAL:
        return LATEX_SPECIAL[letter]
    if " " <= letter <= "~" or ("À" <= letter <= "ÿ" and unicodedata.category(letter)[0] == "L"):
        return letter
    return f"{{[}}U+{ord(letter):04X}{{]}}"


def is_text(column: Column) -> bool:
    return column.format == "text"
