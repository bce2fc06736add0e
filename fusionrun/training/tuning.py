"""When cuDNN tries its algorithms out: where the fastest of them is used often enough."""

from collections.abc import Iterator

import torch

from fusionrun.data.loader import Batch

# Of one shape. An H100 spent 25 s on a row of DenseNets; a tenth of a GPU-bound step of 50 ms
# takes as many to earn them.
STEPS_WORTH_TUNING = 5000


def tuned(batches: Iterator[Batch], size: int, steps_left: int) -> Iterator[Batch]:
    """The same batches; while one of `size` images is worked on, cuDNN may choose by trying out.

    It tries for every new shape, so neither what validates nor a smaller last batch is worth it,
    nor a task of few steps. It keeps what it found for the process. Never where results shall be
    reproducible.
    """
    pays = steps_left >= STEPS_WORTH_TUNING and not torch.are_deterministic_algorithms_enabled()
    try:
        for batch in batches:
            torch.backends.cudnn.benchmark = pays and len(batch.labels) == size
            yield batch
    finally:
        torch.backends.cudnn.benchmark = False
