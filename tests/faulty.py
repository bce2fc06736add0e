"""fusionrun with a fault: `python -m tests.faulty exception train RECIPE ...`.

The fault strikes the resnet row in its second epoch, wherever that row is trained. `unexamined`
is no fault: the launch only skips looking at the disk before it starts. Nor is `slow_disk`: files
that last take long.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

import torch

from fusionrun.cli import main
from fusionrun.data.loader import Batch
from fusionrun.launch import opening
from fusionrun.training import saving
from fusionrun.training import trainer as loop


def _exception(trainer: loop.Trainer, batch: Batch) -> Batch:
    raise ZeroDivisionError("a bug in somebody's fusion")


def _nan(trainer: loop.Trainer, batch: Batch) -> Batch:
    images = torch.full_like(batch.images, float("nan")) if trainer._step == 2 else batch.images
    return Batch(images, batch.targets, batch.labels)


def _hang(trainer: loop.Trainer, batch: Batch) -> Batch:
    while True:  # deaf to polite signals: their handlers only set a flag
        time.sleep(1)


def _crash(trainer: loop.Trainer, batch: Batch) -> Batch:
    os.kill(os.getpid(), signal.SIGKILL)
    return batch


FAULTS: dict[str, Callable[[loop.Trainer, Batch], Batch]] = {
    "exception": _exception,
    "nan": _nan,
    "hang": _hang,
    "crash": _crash,
}


def inject(fault: Callable[[loop.Trainer, Batch], Batch]) -> None:
    healthy = loop.Trainer.train_step

    def step(self: loop.Trainer, batch: Batch) -> torch.Tensor:
        fields = self.checkpointing.identity.fields
        if fields["model"] == "resnet" and "fusion" in fields and len(self.history) == 1:
            batch = fault(self, batch)
        return healthy(self, batch)

    loop.Trainer.train_step = step  # type: ignore[method-assign]


def slow_down() -> None:
    """A resume state takes about a second to be written, whatever lasts as long to be flushed."""
    flush, write = os.fsync, saving._Reading.write

    def slow_flush(descriptor: int) -> None:
        time.sleep(0.3)
        flush(descriptor)

    def slow_write(self: saving._Reading, data: memoryview) -> None:
        time.sleep(0.001)
        write(self, data)

    os.fsync = slow_flush  # type: ignore[assignment]
    saving._Reading.write = slow_write  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[1] == "unexamined":
        opening.require_startable = lambda *_: None
    elif sys.argv[1] == "slow_disk":
        slow_down()
    else:
        inject(FAULTS[sys.argv[1]])
    code = main(sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
