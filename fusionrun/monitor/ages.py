"""How long something has stood still, judged by one process's own clock alone."""

import time
from collections.abc import Hashable


class Ages:
    """Seconds since values that only ever change were last seen to change.

    Clocks of two machines differ, and a clock can be set, so none is compared with another. Nor
    does the time count that this process slept (Ctrl-Z, a suspended job, a laptop's lid): it's told
    by a gap between two ticks, which are to come every `every_seconds`.
    """

    def __init__(self, every_seconds: float) -> None:
        self._longest_tick = 5.0 + 2 * every_seconds
        self._before = time.monotonic()
        self._awake = 0.0
        self._seen: dict[Hashable, tuple[object, float]] = {}

    def tick(self) -> None:
        """Let time go on."""
        now = time.monotonic()
        self._awake += min(now - self._before, self._longest_tick)
        self._before = now

    def of(self, name: Hashable, value: object) -> float:
        """Since what is called `name` has had this value; 0 when it's new."""
        seen, since = self._seen.get(name, (None, self._awake))
        if name not in self._seen or value != seen:
            since = self._awake
            self._seen[name] = value, since
        return self._awake - since
