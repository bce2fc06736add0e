"""When cuDNN tries its algorithms out: where the fastest of them is used often enough."""

import threading
from collections.abc import Iterator

import torch

from fusionrun.data.loader import Batch

SECONDS = 5.0  # of a task at most; an H100 would have spent 25 on a row of DenseNets
STEPS_WORTH_TUNING = 1000  # a tenth of a GPU-bound step of 50 ms takes as many to earn them


class Tuning:
    """A task's: for so long cuDNN may choose by trying out instead of by rule.

    It tries for every new shape, and keeps what it found for the process; what it hadn't come to
    is chosen by rule.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_possible, self._has_begun = device.type == "cuda", False

    def over(self, batches: Iterator[Batch], size: int, steps_left: int) -> Iterator[Batch]:
        """The same batches; those of `size` images are worked on so, if that pays back.

        Neither what validates nor a smaller last batch is worth it, nor a task of few steps. Never
        where results shall be reproducible.
        """
        pays = steps_left >= STEPS_WORTH_TUNING and not torch.are_deterministic_algorithms_enabled()
        try:
            for batch in batches:
                tries = pays and self._is_possible and len(batch.labels) == size
                if tries and not self._has_begun:
                    self._has_begun = True
                    timer = threading.Timer(SECONDS, self._end)  # in the middle of a step
                    timer.daemon = True
                    timer.start()
                torch.backends.cudnn.benchmark = tries
                yield batch
        finally:
            torch.backends.cudnn.benchmark = False

    def _end(self) -> None:
        self._is_possible = False
        torch.backends.cudnn.benchmark = False
