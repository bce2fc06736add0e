"""The live table's part on the GPUs that ranks use, and what the log lines say of them."""

from collections.abc import Sequence
from statistics import fmean

from rich.text import Text

from fusionrun.common.text import plural
from fusionrun.monitor.cards import Card
from fusionrun.monitor.cells import MARGIN, cell, indented, unbroken, wrapped
from fusionrun.monitor.snapshot import Snapshot
from fusionrun.monitor.words import MISSING, gib_of, number, printable_line, together

_GAP = 2  # columns between two cells
_NAME = 12  # letters of a GPU's name, or none of it


def card_lines(snapshot: Snapshot, width: int, *, folded: bool = False) -> list[Text]:
    """A line a GPU, or `folded` one for all, and what is wrong with any; none once all is over."""
    cards = snapshot.cards
    if snapshot.state != "running" or not cards:
        return []
    lines = [Text(_in_short(cards), "dim")] if folded else _aligned(snapshot, width - 2 * MARGIN)
    for line in lines:
        line.truncate(width - 2 * MARGIN, overflow="ellipsis")
    trouble = [line for text in card_notes(cards) for line in wrapped(text, width, "yellow")]
    return [*(unbroken(indented(line)) for line in lines), *trouble]


def _aligned(snapshot: Snapshot, width: int) -> list[Text]:
    """Titles and GPUs; where there's no room the names are cut, then what is last isn't there."""
    rows = [_cells(card, snapshot) for card in snapshot.cards]
    sizes = {
        title: max(len(title), *(len(row[title]) for row in rows))
        for title in rows[0]
        if any(row[title] != MISSING for row in rows)
    }

    def room() -> int:
        return width - sum(sizes.values()) - _GAP * (len(sizes) - 1)

    if "name" in sizes and room() < 0:
        sizes["name"] += room()
        if sizes["name"] < _NAME:
            del sizes["name"]
    while room() < 0 and len(sizes) > 1:
        sizes.popitem()
    lines: list[Text] = []
    for row in [{title: title for title in rows[0]}, *rows]:
        line = Text("", "" if lines else "dim")
        for title, size in sizes.items():
            each = cell(row[title])
            each.truncate(size, overflow="ellipsis")
            pad = " " * (size - each.cell_len)
            line.append(" " * _GAP if line else "")
            line.append_text(Text.assemble(each, pad) if title == "name" else Text(pad) + each)
        lines.append(line)
    return lines


def card_summary(snapshot: Snapshot) -> list[str]:
    """The same for a log, a line a GPU."""
    if snapshot.state != "running":
        return []
    rows = [_cells(card, snapshot) for card in snapshot.cards]
    size = max((len(row["GPU"]) for row in rows), default=0)
    lines = [
        f"GPU {row['GPU']:>{size}}  {row['busy %']:>3} % busy  {row['°C']:>3} °C  {row['W']} W  "
        f"{row['memory in use']}  {row['img/s']} images/s  {together('rank', card.ranks)}"
        for row, card in zip(rows, snapshot.cards, strict=True)
    ]
    return lines + card_notes(snapshot.cards)


def card_notes(cards: Sequence[Card]) -> list[str]:
    """What is wrong with any of the GPUs."""
    notes = []
    for card in cards:
        gpu = card.gpu
        who = f"! GPU {_name(card, cards)} ({together('rank', card.ranks)})"
        if gpu.throttle:
            heat = "" if gpu.temperature is None else f", {gpu.temperature:.0f} °C"
            notes.append(f"{who} is slower than it could be: {gpu.throttle}{heat}")
        if gpu.ecc_errors:
            errors = plural(gpu.ecc_errors, "uncorrected memory error")
            notes.append(f"{who} had {errors} since its driver was loaded")
    return notes


def _cells(card: Card, snapshot: Snapshot) -> dict[str, str]:
    gpu = card.gpu
    kinds = {each.gpu.name for each in snapshot.cards}  # of one the table's head tells
    power = number(gpu.power, 0)
    if gpu.power is not None and gpu.power_limit is not None:
        power += f" of {gpu.power_limit:.0f}"
    each = [str(rank) for rank in card.ranks]
    speeds = [
        task.images_per_second or 0.0
        for task in snapshot.tasks
        if task.state == "running" and task.rank in card.ranks
    ]
    return {
        "GPU": _name(card, snapshot.cards),
        "name": printable_line(gpu.name) if len(kinds) > 1 else MISSING,
        "ranks": ", ".join(each if len(each) <= 4 else [*each[:2], "…", each[-1]]),
        "busy %": number(gpu.utilisation, 0),
        "°C": number(gpu.temperature, 0),
        "W": power,
        "memory in use": gib_of(gpu.memory_used, gpu.memory_total),
        "img/s": f"{sum(speeds):,.0f}" if any(speeds) else MISSING,
    }


def _name(card: Card, cards: Sequence[Card]) -> str:
    """As its machine counts it; with the machine where there are several."""
    several = len({each.host for each in cards}) > 1
    return f"{printable_line(card.host)}:{card.gpu.index}" if several else str(card.gpu.index)


def _in_short(cards: Sequence[Card]) -> str:
    """4 GPUs: 91 % busy, GPU 2 least with 64 %, up to 74 °C, 1,940 W."""
    words = []
    busy = [(each.gpu.utilisation, each) for each in cards if each.gpu.utilisation is not None]
    if busy:
        words.append(f"{fmean(value for value, _ in busy):.0f} % busy")
        least, card = min(busy, key=lambda pair: pair[0])
        if len(busy) > 1:
            words.append(f"GPU {_name(card, cards)} least with {least:.0f} %")
    degrees = [each.gpu.temperature for each in cards if each.gpu.temperature is not None]
    if degrees:
        words.append(f"up to {max(degrees):.0f} °C")
    watts = [each.gpu.power for each in cards if each.gpu.power is not None]
    if watts:
        words.append(f"{sum(watts):,.0f} W")
    return f"{plural(len(cards), 'GPU')}: {', '.join(words) or MISSING}"
