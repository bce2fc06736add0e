"""All ranks' records on rank 0: one small gather a tick, on a thread and a group of its own."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.distributed as dist

from fusionrun.common.distributed import PEER_TIMEOUT, RankInfo
from fusionrun.monitor.record import Record


class StatusGather(threading.Thread):
    """The gather of all records to rank 0, at every tick.

    It's served until rank 0 ends it, spreading the launch's exit code: `decide(records)` returns
    it once every rank has ended, and None before. A broken gather (a peer died) never disturbs
    training: `broken` says why, and the rank works on alone.
    """

    def __init__(
        self,
        rank_info: RankInfo,
        record: Record,
        *,
        num_experts: int,
        every_seconds: float,
        decide: Callable[[Sequence[Record]], int | None],
    ) -> None:
        super().__init__(name="gather", daemon=True)
        self._rank_info = rank_info
        self._record = record
        self._num_experts = num_experts
        self._every = every_seconds
        self._decide = decide
        self._group: dist.ProcessGroup | None = None
        if rank_info.is_distributed:
            group = dist.new_group(backend="gloo", timeout=PEER_TIMEOUT)
            self._group = cast(dist.ProcessGroup, group)
        self.records: list[Record] = []  # rank 0: the latest of every rank
        self.exit_code: int | None = None
        self.broken = ""

    def wait(self, timeout: float | None = None) -> int | None:
        """The launch's exit code, or None when the gather broke or `timeout` seconds passed."""
        self.join(timeout)
        return self.exit_code

    def run(self) -> None:
        try:
            while self.exit_code is None:
                started = time.monotonic()
                self._tick()
                if self.exit_code is None:
                    time.sleep(max(0.0, self._every - (time.monotonic() - started)))
        except RuntimeError as error:
            self.broken = str(error).splitlines()[0]

    def _tick(self) -> None:
        vector = self._record.to_vector(self._num_experts)
        if self._group is None:
            self.records = [Record.from_vector(vector)]
            self.exit_code = self._decide(self.records)
            return
        exit_code = torch.tensor([-1])
        if self._rank_info.rank == 0:
            vectors = [torch.empty_like(vector) for _ in range(self._rank_info.world_size)]
            dist.gather(vector, vectors, dst=0, group=self._group)
            self.records = [Record.from_vector(item) for item in vectors]
            code = self._decide(self.records)
            exit_code.fill_(-1 if code is None else code)
        else:
            dist.gather(vector, dst=0, group=self._group)
        dist.broadcast(exit_code, src=0, group=self._group)
        if exit_code.item() >= 0:
            self.exit_code = int(exit_code.item())
