"""A table as LaTeX with the packages booktabs and longtable, and text that LaTeX shows as it is."""

import unicodedata

from fusionrun.tables.table import Table


def latex_table(table: Table) -> str:
    """Title and note are its caption; headings stand a word a line, for numbers are narrow."""
    headings = []
    for column in table.columns:
        words = r" \\ ".join(map(latex, column.heading.split()))
        headings.append(rf"\begin{{tabular}}[b]{{@{{}}c@{{}}}}{words}\end{{tabular}}")
    lines = []
    for cells in table.lines():
        texts = []
        for cell, column in zip(cells, table.columns, strict=True):
            text = latex(cell.text if column.is_text else cell.text.replace("-", MINUS))
            # in braces: one that began with [ would be a length to the \\ before it
            texts.append(f"{{\\bfseries {text}}}" if cell.strong else f"{{{text}}}")
        lines.append(f"{' & '.join(texts)} \\\\")
    head = f"\\toprule\n{' & '.join(headings)} \\\\\n\\midrule"
    align = "".join("l" if column.is_text else "r" for column in table.columns)
    return "\n".join(
        [
            f"\\begin{{longtable}}{{{align}}}",
            f"\\caption{{{latex(f'{table.title}. {table.note}'.strip())}}} \\\\",
            f"{head}\n\\endfirsthead\n{head}\n\\endhead\n\\bottomrule\n\\endfoot",
            *lines,
            "\\end{longtable}\n",
        ]
    )


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
    shown = []
    for letter in " ".join(text.split()):
        accented = "À" <= letter <= "ÿ" and unicodedata.category(letter)[0] == "L"
        known = letter if " " <= letter <= "~" or accented else f"{{[}}U+{ord(letter):04X}{{]}}"
        shown.append(LATEX_SPECIAL.get(letter, known))
    return "".join(shown)
