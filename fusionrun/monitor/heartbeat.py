"""A rank's sign of life: its record in a small file, written again at every tick."""

import os
import threading
from pathlib import Path

from fusionrun.common.atomic_files import write_json
from fusionrun.common.gpus import read_gpus
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.monitor.record import Record

GPU_SECONDS = 10.0  # between two looks at the machine's GPUs, and for each at most
SICK_SECONDS = 300.0  # where nothing was told: what hangs in a sick driver may stay for ever


class Heartbeat(threading.Thread):
    """Writes this rank's record to its file at every tick: alive, whatever peers do.

    The first rank of a machine with GPUs looks at them for all: on a thread of its own, for a sick
    driver can keep its tools for ever.
    """

    def __init__(
        self, record: Record, path: Path, every_seconds: float, local_rank: int = 0
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._looks_at_gpus = bool(record.gpu_uuid) and local_rank == 0
        self._record = record
        self._path = path
        self._every = every_seconds
        self._done = threading.Event()
        record.pid = os.getpid()

    def stop(self) -> None:
        """Write the last state and end."""
        self._done.set()
        self.join()

    def run(self) -> None:
        if self._looks_at_gpus:
            threading.Thread(target=self._look, name="gpus", daemon=True).start()
        while True:
            last = self._done.is_set()
            self._record.heartbeat_count += 1
            try:
                write_json(self._path, plain(self._record), durable=False)
            except OSError as error:
                # a full disk must not end the thread; the table shows the age instead
                self._record.note = f"heartbeat file: {error.strerror}"
            if last:
                return
            self._done.wait(self._every)

    def _look(self) -> None:
        while not self._done.is_set():
            self._record.gpus = read_gpus(GPU_SECONDS)
            self._done.wait(GPU_SECONDS if self._record.gpus else SICK_SECONDS)


def read_heartbeat(path: Path) -> Record | None:
    """A rank's record from its file, or None where there is none yet."""
    try:
        return read_json(path, Record)
    except (FileNotFoundError, ValueError):
        return None
