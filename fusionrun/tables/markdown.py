"""A table as Markdown, and text that Markdown shows as it is."""

import re

from fusionrun.tables.table import Table


def markdown_table(table: Table) -> str:
    """Its lines, each with its end; title and note are the caller's."""
    lines = [[escape(column.heading) for column in table.columns]]
    lines.append(["---" if column.is_text else "--:" for column in table.columns])
    for cells in table.lines():
        texts = [escape(cell.text) for cell in cells]
        lines.append([f"**{t}**" if c.strong else t for t, c in zip(texts, cells, strict=True)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escape(text: str) -> str:
    """Underscores inside words mean nothing in Markdown, those around them do.

    What would move a cursor, where the file is shown on a terminal, is shown as a code.
    """
    text = re.sub(r"[\x00-\x08\x0e-\x1b\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
    escaped = re.sub(r"([\\|*`&\[\]]|<(?! ))", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)
