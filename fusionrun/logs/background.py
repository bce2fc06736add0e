"""A log that training neither waits for nor depends on: whatever it fails to do is a warning."""

import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, Protocol

from torch import Tensor


class RunLog(Protocol):
    """Where a task's numbers are charted: TensorBoard, Weights & Biases."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None: ...

    def image(self, tag: str, pixels: Tensor) -> None: ...

    def outcome(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class BackgroundLog(threading.Thread):
    """What `open_log` opens, fed by a thread of its own, in order.

    A disk that is full, a folder that has gone, a service that is away or raises what it likes:
    `warn` is told once, and what comes later is left out.
    """

    def __init__(
        self, name: str, open_log: Callable[[], RunLog], warn: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"{name} log", daemon=True)
        self._what = name
        self._open_log = open_log
        self._warn = warn
        self._jobs = SimpleQueue[Callable[[RunLog], None] | None]()
        self._is_left = False
        self.start()

    def put(self, job: Callable[[RunLog], None]) -> None:
        """Have `job` done with the log, some time."""
        if self.is_alive():
            self._jobs.put(job)

    def close(self, patience: float) -> None:
        """Have the log closed; after `patience` seconds it's left to itself."""
        self._jobs.put(None)
        self.join(patience)
        if self.is_alive():
            self._is_left = True
            self._warn(f"{self._what} wasn't done after {patience:.0f} s and was left behind")

    def run(self) -> None:
        try:
            log = self._open_log()
            while (job := self._jobs.get()) is not None:
                job(log)
            log.close()
        except BaseException as error:  # other people's packages raise SystemExit, too
            if not self._is_left:
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                self._warn(f"{self._what} failed ({reason}); the training goes on without it")
