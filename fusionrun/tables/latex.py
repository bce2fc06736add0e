"""A table as LaTeX with the packages booktabs and longtable, and text that LaTeX shows as it is."""

import unicodedata

from fusionrun.tables.table import Cell, Column, Table


def latex_table(table: Table) -> str:
    header = " & ".join(_stacked(column.heading) for column in table.columns)
    head = f"\\toprule\n{header} \\\\\n\\midrule"
    align = "".join("l" if column.is_text else "r" for column in table.columns)
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
    text = latex(cell.text if column.is_text else cell.text.replace("-", MINUS))
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
