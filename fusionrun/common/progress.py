"""How far long work is, and about how long the rest of it takes."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fusionrun.common.text import duration

T = TypeVar("T")
Say = Callable[[str], None]

EVERY_SECONDS = 5.0


class Progress:
    """A line for every step that is done."""

    def __init__(self, steps: int, say: Say) -> None:
        self._started, self._done, self._steps, self._say = time.monotonic(), 0, steps, say

    def done_with(self, what: str) -> None:
        self._done += 1
        left = (time.monotonic() - self._started) / self._done * (self._steps - self._done)
        ending = f"; about {duration(left, ticking=True)} left" if self._done < self._steps else ""
        self._say(f"[{self._done}/{self._steps}] {what}{ending}")


def told(items: Sequence[T], what: str, say: Say) -> Iterator[T]:
    """The items; while they are worked on, a line every EVERY_SECONDS."""
    started = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= EVERY_SECONDS:
            left = (now - started) / done * (len(items) - done)
            rest = duration(left, ticking=True)
            say(f"{100 * done // len(items)} % of {what}; about {rest} left")
            last = now
        yield item
