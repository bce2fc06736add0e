"""All ranks' records on rank 0: one small gather a tick, on a thread and a group of its own."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.distributed as dist

from fusionrun.common.distributed import PEER_TIMEOUT, RankInfo
from fusionrun.monitor.record import Record


class Stop(Protocol):
    """What says whether this rank was told to stop, and can be told so."""

    def requested(self) -> bool: ...

    def request(self) -> None: ...


NO_CODE, STOP = -1, -2  # what rank 0 spreads instead of an exit code
AMONG_ENDED = 0.05  # seconds between ticks where no rank is left that says how often


class StatusGather(threading.Thread):
    """The gather of all records to rank 0, at every tick.

    It's served until rank 0 ends it, spreading the launch's exit code: `decide(records)` returns
    it once every rank has ended, and None before. One rank that is told to `stop` stops all, as
    long as all live: where one has died, torchrun tells the others, to start them again. A broken
    gather (a peer died) never disturbs training: `broken` says why, and the rank works on alone.
    """

    def __init__(
        self,
        rank_info: RankInfo,
        record: Record,
        *,
        shape: tuple[int, int],
        every_seconds: float,
        decide: Callable[[Sequence[Record]], int | None],
        stop: Stop,
    ) -> None:
        super().__init__(name="gather", daemon=True)
        self._rank_info = rank_info
        self._record = record
        self._shape = shape  # a row's experts, and a rank's tasks at once, at most
        self._every = every_seconds
        self._decide = decide
        self._stop_signals = stop
        self._group: dist.ProcessGroup | None = None
        if rank_info.is_distributed:
            group = dist.new_group(backend="gloo", timeout=PEER_TIMEOUT)
            self._group = cast(dist.ProcessGroup, group)
        self.records: list[Record] = []  # rank 0: the latest of every rank
        self.exit_code: int | None = None
        self.broken = ""
        self._hurried = threading.Event()

    def wait(self, timeout: float | None = None) -> int | None:
        """The launch's exit code, or None when the gather broke or `timeout` seconds passed."""
        self.join(timeout)
        return self.exit_code

    def hurry(self) -> None:
        """This rank has ended: its next tick comes as soon as the others have theirs.

        So a launch ends with the last of its ranks, not at the tick after it.
        """
        self._hurried.set()

    def run(self) -> None:
        try:
            while self.exit_code is None:
                started = time.monotonic()
                self._tick()
                if self.exit_code is None:
                    self._hurried.wait(max(0.0, self._every - (time.monotonic() - started)))
                    if self._hurried.is_set():
                        time.sleep(AMONG_ENDED)
        except RuntimeError as error:
            self.broken = str(error).splitlines()[0]

    def _tick(self) -> None:
        self._record.stopping = float(self._stop_signals.requested())
        table = self._record.to_table(*self._shape)
        if self._group is None:
            self.records = [Record.from_table(table)]
            self.exit_code = self._decide(self.records)
            return
        spread = torch.tensor([NO_CODE])
        if self._rank_info.rank == 0:
            tables = [torch.empty_like(table) for _ in range(self._rank_info.world_size)]
            dist.gather(table, tables, dst=0, group=self._group)
            self.records = [Record.from_table(each) for each in tables]
            code = self._decide(self.records)
            if code is not None:
                spread.fill_(code)
            elif any(record.stopping for record in self.records):
                spread.fill_(STOP)
        else:
            dist.gather(table, dst=0, group=self._group)
        dist.broadcast(spread, src=0, group=self._group)
        if spread.item() == STOP:
            self._stop_signals.request()
        elif spread.item() != NO_CODE:
            self.exit_code = int(spread.item())
