"""Which rows fit on which GPUs, those that people have and those that are here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fusionrun.common.memory import total_memory
from fusionrun.common.text import size
from fusionrun.doctor.estimate import CONTEXT_BYTES, Estimate
from fusionrun.doctor.step_timing import Timing
from fusionrun.launch.checks.finding import Finding
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row

GIB = 2**30
# {card: bytes of its memory that programs can have}
CARDS: dict[str, float] = {
    "T4 16GB": 14.6 * GIB,
    "V100 16GB": 15.7 * GIB,
    "RTX 3090, 4090": 23.5 * GIB,
    "V100 32GB": 31.7 * GIB,
    "A100 40GB": 39.4 * GIB,
    "A100, H100 80GB": 79.1 * GIB,
}
LEAST = 2  # images at a time, which batch norm needs
# What autograd keeps in half precision, of what it keeps in float32: with it the four full-size
# rows need 10.4, 1.9, 9.1 and 21.0 GiB, and took 10.4, 2.0, 7.3 and 18.5 on an H100 (a CPU keeps
# more of a dropout than a GPU, so rows that have one need less there).
HALF_SHARE = 0.52
RESERVED = 1.1  # of what tensors take, for torch's allocator: 5 to 15 % more were seen


@dataclass(frozen=True)
class RowOnCards:
    """A row's need of memory, and what fits."""

    row: Row
    batch: int
    need: float  # bytes of a GPU, for the whole batch at once
    fits: Mapping[str, int]  # {card: images at a time, a half, a quarter ... of the batch; or 0}
    twice: frozenset[str]  # cards on which its experts must be computed twice for that


@dataclass(frozen=True)
class Cards:
    """Of which rows it's known, and what they compute in there."""

    rows: Sequence[RowOnCards]
    is_half: bool

    @property
    def all_fit(self) -> bool:
        return not any(row.twice for row in self.rows) and all(
            images == row.batch for row in self.rows for images in row.fits.values()
        )

    @property
    def finding(self) -> Finding:
        """In a line, where that says it all."""
        largest = max(row.need for row in self.rows)
        found = f"every row fits on a GPU of 16 GB, the largest needs about {size(largest)}"
        return Finding("cards", "pass", found)


def rows_on_cards(
    context: RunContext, estimate: Estimate, devices: Sequence[torch.device]
) -> Cards:
    """By what was measured here: on a GPU what torch reserved, on a CPU what autograd keeps."""
    runtime = context.study.recipe.runtime
    is_half, recompute = runtime.amp != "off", runtime.recompute
    cards = dict(CARDS)
    for device in devices:
        if (memory := total_memory(device)) is not None:
            cards[f"{torch.cuda.get_device_name(device).removeprefix('NVIDIA ')} here"] = memory
    share, reserved = 1.0, 1.0 if context.device.type == "cuda" else RESERVED
    if is_half and not estimate.precision.is_half:
        share = HALF_SHARE
    data = context.data
    images = data.train_images.nbytes + data.test_images.nbytes  # which each rank has there
    rows: dict[tuple[str, str], RowOnCards] = {}
    for row, timing in ((each.row, each.timing) for each in estimate.rows):
        # where experts were computed twice, what one needs meanwhile wasn't seen
        if timing is not None and timing.activations is not None and recompute is not True:
            grows = reserved * share * timing.activations / timing.full_batch
            still = CONTEXT_BYTES + images + reserved * timing.fixed
            need = still + grows * timing.full_batch
            short = [name for name, memory in cards.items() if need > memory]
            twice = frozenset(short if recompute and len(row.experts) > 1 else ())
            fits = {}
            for name, memory in cards.items():  # computed twice, one expert's at a time are kept
                each = grows / len(row.experts) if name in twice else grows
                fits[name] = _at_once(memory - still, each, timing)
            rows[row.model, row.method] = RowOnCards(row, timing.full_batch, need, fits, twice)
    return Cards(list(rows.values()), is_half)


def _at_once(room: float, grows: float, timing: Timing) -> int:
    """The largest part of the batch that fits, halved as training does it; 0: none does."""
    images = timing.full_batch
    while images >= LEAST and images * grows > room:
        images //= 2
    return images if images >= LEAST else 0
