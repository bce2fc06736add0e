"""Words for people: the one home of what messages and tables share."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

NOT_AVAILABLE = "n/a"  # what was not measured, wherever people read it


def plural(count: int, word: str) -> str:
    """1 row, 2,000 rows."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes: 12.5 MiB, 1.2 GiB."""
    mib = count / 2**20
    return f"{mib:.3g} MiB" if mib < 999.5 else f"{mib / 1024:,.1f} GiB"


def duration(seconds: float, *, ticking: bool = False) -> str:
    """Two digits and more, in six characters: 0.25s, 8.1s, 45s, 8m30s, 45m, 1h02m, 3d04h, 12d.

    A `ticking` clock shows whole seconds up to the hour and counts what is full: 8s, 12m30s.
    """
    if seconds < 9.95 and not ticking:
        return f"{seconds:.2f}s" if seconds < 0.995 else f"{seconds:.1f}s"
    whole = max(round(seconds), 0)
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if ticking:
        minutes, hours = whole // 60, whole // 3600
    if whole < 60:
        return f"{whole}s"
    if whole < (3600 if ticking else 600):
        return f"{whole // 60}m{whole % 60:02}s"
    if minutes < 60:
        return f"{minutes}m"
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    if hours < 240:
        return f"{hours // 24}d{hours % 24:02}h"
    return f"{hours // 24 if ticking else round(hours / 24)}d"


def nearest(name: object, valid: Iterable[str]) -> str:
    """What to tell a person who wrote `name` where one of `valid` was expected."""
    names = sorted(valid)
    by_folded_name = {each.casefold(): each for each in names}
    close = difflib.get_close_matches(str(name).casefold(), by_folded_name, n=1, cutoff=0.5)
    hint = f"did you mean {by_folded_name[close[0]]!r}? " if close else ""
    return f"{hint}expected one of: {', '.join(names)}"


def shown(value: object) -> str:
    """`value` as an error message shows it, never more than a line of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def utf8_name(path: str | Path) -> str:
    """A file's name as text: bytes that aren't UTF-8 become \\xNN, as no UTF-8 file holds them."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def printable_path(path: str | Path) -> str:
    """The same for a message: one line, in which nothing moves a cursor or turns the direction."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in utf8_name(path)
    )


def problem_of(error: BaseException) -> str:
    """What an exception says to people; one of the system names its file, not its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or repr(error)


def one_line(error: object) -> str:
    """A message of many lines as one."""
    return clipped(" ".join(str(error).split()))


def clipped(message: str) -> str:
    """The beginning of a message that quotes without end what stands in a file."""
    return message if len(message) <= 1500 else f"{message[:1500]}..."
