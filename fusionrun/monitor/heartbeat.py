"""A rank's sign of life: its record in a small file, written again at every tick."""

import os
import threading
from pathlib import Path

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.monitor.record import Record


class Heartbeat(threading.Thread):
    """Writes this rank's record to its file at every tick: alive, whatever peers do."""

    def __init__(self, record: Record, path: Path, every_seconds: float) -> None:
        super().__init__(name="heartbeat", daemon=True)
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


def read_heartbeat(path: Path) -> Record | None:
    """A rank's record from its file, or None where there is none yet."""
    try:
        return read_json(path, Record)
    except (FileNotFoundError, ValueError):
        return None
