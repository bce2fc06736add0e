"""What the live table is made of: bars, cells, and text that stays inside a width."""

import textwrap
from collections.abc import Sequence

from rich.text import Text

from fusionrun.common.text import size
from fusionrun.monitor.snapshot import RankStatus, TaskStatus
from fusionrun.monitor.words import (
    LOOK,
    MISSING,
    accuracy,
    clock,
    epoch_of,
    number,
    signed,
)

BAR = (6, 28)  # narrowest and widest progress bar, in columns
MARGIN = 1  # columns that stay free on either side


def state_cell(state: str) -> Text:
    symbol, style = LOOK[state]
    return Text(f"{symbol} {state}", style)


def bar(part: float, width: int, style: str) -> Text:
    """A bar in steps of half a column; only what is complete looks complete."""
    halves = int(min(max(part, 0.0), 1.0) * 2 * width)
    full, half = divmod(halves, 2)
    done = "━" * full + "╸" * half
    return Text.assemble((done, style), ("─" * (width - len(done)), "dim"))


def cell(text: str, style: str = "") -> Text:
    """`text` in `style`, dim where it says that there is nothing."""
    return Text(text, "dim" if text == MISSING else style)


def accuracies(task: TaskStatus) -> Text:
    """Each of a row's experts' accuracies in percent, the best one bold."""
    best = max((value for value in task.experts if value is not None), default=None)
    if best is None:
        return cell(MISSING)
    written = [accuracy(value, task, at_most=1) for value in task.experts]
    width = max(map(len, written))
    return Text(" ").join(
        Text(text.rjust(width), "bold" if value == best else "")
        for text, value in zip(written, task.experts, strict=True)
    )


def name_parts(task: TaskStatus) -> tuple[str, str]:
    """(architecture, which of its rows or experts)."""
    return task.model, task.fusion or task.name.rpartition("-")[2]


def task_cells(task: TaskStatus, rank: RankStatus | None) -> dict[str, Text]:
    """{column: the task's cell in its narrowest form}."""
    gain = signed(task.gain, task)
    best = cell(accuracy(task.best, task))
    if task.best is not None and task.best_epoch is not None:
        best.append(f" @{task.best_epoch}", "dim")
    experts = [value for value in task.experts if value is not None]
    span = [accuracy(of(experts), task, at_most=1) for of in (min, max)] if experts else [MISSING]
    memory = rank.memory_bytes if rank else None
    speed = task.images_per_second
    validation = accuracy(task.val_accuracy, task)
    return {
        "row": Text(" ".join(name_parts(task))),
        "expert": Text(" ".join(name_parts(task))),
        "rank": cell(MISSING if task.rank is None else str(task.rank)),
        "state": state_cell(task.state),
        "progress": bar(task.progress, BAR[0], LOOK[task.state][1]),
        "epoch": Text(epoch_of(task)),
        "loss": cell(number(task.train_loss, 4)),
        "fused": cell(validation, "bold"),
        "val. %": cell(validation),
        "averaging": cell(
            gain, {"+": "green", "-": "red"}[gain[0]] if task.gain and float(gain) else ""
        ),
        "experts": cell("–".join(span)),
        "best": best,
        "img/s": cell(MISSING if speed is None else f"{speed:,.0f}"),
        "memory": cell(MISSING if memory is None else size(memory)),
        "ETA": cell(clock(task.eta_seconds)),
        "took": Text(clock(task.seconds), "dim"),
    }


def flow(parts: Sequence[Text], width: int, separator: str) -> list[Text]:
    """Parts side by side, on the next line when they don't fit; only a longer part is divided."""
    room = max(width - 2 * MARGIN, 1)
    lines: list[Text] = []
    for part in (piece for whole in parts for piece in whole.divide(range(room, len(whole), room))):
        joined = Text.assemble(lines[-1], (separator, "dim"), part) if lines else part
        if lines and joined.cell_len <= room:
            lines[-1] = joined
        else:
            lines.append(part)
    return [indented(line) for line in lines]


def wrapped(text: str, width: int, style: str, *, indent: int = MARGIN) -> list[Text]:
    """All of `text`, on as many lines as it takes, the later ones two columns further in."""
    pieces = textwrap.wrap(
        text, max(width - indent - MARGIN, 10), subsequent_indent="  ", break_on_hyphens=False
    )
    return [Text(" " * indent + piece, style) for piece in pieces]


def indented(text: Text) -> Text:
    return Text(" " * MARGIN).append_text(text)


def unbroken(text: Text) -> Text:
    """A line that a narrower console cuts instead of folding it."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
