"""Where numbers lie on a chart."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

Ticks = tuple[float, ...]


def round_ticks(values: Iterable[float], count: int = 5) -> Ticks:
    """About `count` multiples of 1, 2 or 5 times a power of ten, enclosing all `values`."""
    found = list(values)
    low, high = min(found), max(found)
    if low == high:
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * count >= (high - low) * 0.999)
    return tuple(i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1))


@dataclass(frozen=True)
class Scale:
    """Values onto pixels: the first tick at `start`, the last at `end`."""

    ticks: Ticks
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)
