"""The cores that ranks without work leave to those of their machine that still train a row."""

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import nn

from fusionrun.common.distributed import RankInfo, usable_cpus
from fusionrun.fusions.branches import in_threads
from fusionrun.study.queue import Queue

LOOK_SECONDS = 1.0  # between two looks at what the others do


class SpareCores:
    """What the others leave to this rank; each has `threads` cores, if the machine has so many."""

    def __init__(
        self,
        queue: Queue,
        rank_info: RankInfo,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        first, count = rank_info.rank - rank_info.local_rank, rank_info.local_world_size
        self._queue = queue
        self._ranks = range(first, first + count)  # of this machine
        self._shares = min(count, usable_cpus() // threads)
        self._clock = clock
        self._looked = -LOOK_SECONDS
        self._at_once = 1
        self._say: Callable[[str], None] = lambda text: None

    def side_by_side(
        self, row: nn.Module, say: Callable[[str], None]
    ) -> AbstractContextManager[None]:
        """In here the experts of `row` use them, as `in_threads` does; who gets how many is said"""
        self._say, self._at_once = say, 1
        self._looked = -LOOK_SECONDS
        return in_threads(row, self.at_once)

    def at_once(self) -> int:
        """Experts of this rank's row that have cores, 1 or more; looks once a second at most.

        Where the others can't be asked, nobody gets more than what is theirs.
        """
        now = self._clock()
        if now - self._looked < LOOK_SECONDS or self._shares < 2:
            return self._at_once
        self._looked, before, self._at_once = now, self._at_once, 1
        with contextlib.suppress(RuntimeError):  # of a peer that died
            self._at_once = self._share()
        if self._at_once != before:
            whose = "its own cores alone" if self._at_once == 1 else "cores of ranks without work"
            self._say(f"computes {self._at_once} of its experts at a time, with {whose}")
        return self._at_once

    def _share(self) -> int:
        works = {rank: self._queue.work_of(rank) for rank in self._ranks}
        rows = [rank for rank, work in works.items() if work == "row"]
        spare = self._shares - sum(work != "idle" for work in works.values())
        if self._queue.rank not in rows or spare <= 0:
            return 1
        return 1 + spare // len(rows) + (rows.index(self._queue.rank) < spare % len(rows))
