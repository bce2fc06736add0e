"""Lines of a table as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence


def csv_text(lines: Sequence[Mapping[str, object]], header: Sequence[str] | None = None) -> str:
    """One header for all `lines`, by default every key in the order in which they came.

    A cell that a line doesn't have is empty. Raises ValueError for a key that has no column.
    """
    buffer = io.StringIO()
    columns = dict.fromkeys(key for line in lines for key in line) if header is None else header
    writer = csv.DictWriter(buffer, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
