"""Batches made on the device that holds the data set; the step never waits for the host."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusionrun.common.device_errors import is_out_of_memory
from fusionrun.common.memory import give_back
from fusionrun.common.progress import told
from fusionrun.common.seeds import derive_seed
from fusionrun.data.augmentation.batch import augment, check_images, one_hot
from fusionrun.data.augmentation.image_ops import EXACT_PIXELS
from fusionrun.data.augmentation.policies import Augmentation
from fusionrun.data.datasets.request import say_nothing

# Steps whose batches are augmented at once: a GPU's host, and a CPU where batches are small, spend
# their time on calling operations and not in them. Of large images as many as these bytes hold;
# what augmentation needs beside them is up to fifteen times as much.
STEPS_AHEAD, BYTES_AHEAD = 16, 8 << 20


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (N, 3, H, W) float32, normalised
    targets: Tensor  # (N, C) float32, soft where the batch was mixed, each row sums to 1
    labels: Tensor  # (N,) int64, of the images before mixing

    def split(self, most: int | None, *, least: int = 2) -> Iterator["Batch"]:
        """Even parts of at most `most` images, None: all; but `least` at least.

        Two, since the statistics of batch normalisation can't be had of one.
        """
        images = len(self.labels)
        parts = max(1, min(math.ceil(images / (most or images)), images // least))
        columns = (self.images, self.targets, self.labels)
        for part in zip(*(column.tensor_split(parts) for column in columns), strict=True):
            yield Batch(*part)


def batch_starts(images: int, batch_size: int) -> list[int]:
    """Where the batches of an epoch begin; a last one of a single image joins the one before."""
    starts = list(range(0, images, batch_size))
    if len(starts) > 1 and images - starts[-1] == 1:
        starts.pop()
    return starts


class ResidentLoader:
    """Batches of some samples of a data set that lies on the training device.

    images (N, 3, H, W) uint8 and labels (N,) int64 stay where they are, and several loaders may
    share them; batches are made on `images.device`. `indices` picks the samples. Order and
    augmentation follow from the seed given to an epoch alone, so an epoch can be entered at any
    step; batches of several steps are made ahead, each the same bytes as if it were made alone. A
    last batch of a single sample joins the one before it: batch normalisation cannot train on one.
    `progress` is told how far a pass without augmentation is.

    Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: npt.NDArray[np.integer],
        *,
        num_classes: int,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation,
        channels_last: bool = False,
        progress: Callable[[str], None] = say_nothing,
    ) -> None:
        check_images(images, labels)
        if labels.device != images.device:
            raise ValueError(f"images are on {images.device}, labels on {labels.device}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
            found = f"{indices.shape} {indices.dtype}"
            raise ValueError(f"indices are {found}; expected one or more integers")
        if indices.min() < 0 or indices.max() >= len(images):
            limits = f"{indices.min()}..{indices.max()}"
            raise ValueError(f"indices cover {limits}; expected 0..{len(images) - 1}")
        # waits for the device, once
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels cover {low}..{high}; expected 0..{num_classes - 1}")
        self.num_images = len(indices)
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.augmentation = augmentation
        self._progress = progress
        self._images, self._labels = images, labels
        self._indices: npt.NDArray[np.int64] = np.ascontiguousarray(indices, dtype=np.int64)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        # (pixel / 255 - mean) / std as one multiplication and one addition
        scale = [1 / (255 * s) for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self._scale = torch.tensor(scale, device=images.device).view(1, 3, 1, 1)
        self._shift = torch.tensor(shift, device=images.device).view(1, 3, 1, 1)
        # erased rectangles get the mean colour, which is 0 (+-0.01) once normalised
        self._mean_colour = tuple(round(255 * m) for m in mean)
        starts = batch_starts(self.num_images, batch_size)
        self._bounds = list(zip(starts, [*starts[1:], self.num_images], strict=True))
        a_batch = batch_size * images[0].numel()
        is_exact = images[0, 0].numel() <= EXACT_PIXELS
        self._ahead = max(1, min(STEPS_AHEAD, BYTES_AHEAD // a_batch)) if is_exact else 1

    @property
    def device(self) -> torch.device:
        return self._images.device

    def __len__(self) -> int:
        """Steps per epoch; the last one may be smaller."""
        return len(self._bounds)

    def training_batches(self, seed: int, start_step: int = 0) -> Iterator[Batch]:
        """One epoch in an order of its own, augmented; from `start_step` on, if it is given.

        Step s is the same batch wherever the epoch is entered. Raises ValueError for a
        `start_step` outside 0..len(self).
        """
        if not 0 <= start_step <= len(self):
            raise ValueError(f"start_step is {start_step}; expected 0 to {len(self)}")

        def batches() -> Iterator[Batch]:
            order, step = self._order(seed), start_step
            while step < len(self):
                for images, targets, labels in self._made_ahead(order, seed, step):
                    # in memory of their own: its address decides how some kernels add up
                    yield Batch(self._normalised(images), targets.clone(), labels.clone())
                    step += 1

        return batches()  # a wrong start is said here, not when the first batch is asked for

    def sample(self, seed: int, count: int) -> Tensor:
        """The first images of this seed's epoch, augmented: (count or less, 3, H, W) uint8."""
        images, *_ = self._augmented(self._order(seed), seed, 0, 1)[0]
        return images[:count].round().to(torch.uint8)  # mixup makes numbers between the levels

    def evaluation_batches(self) -> Iterator[Batch]:
        """Every sample once, in the order of `indices`, as it is; targets are one-hot."""
        order = self._to_device(self._indices)
        for first, end in told(self._bounds, f"{self.num_images} images", self._progress):
            yield from self._evaluated(order[first:end])

    def _made_ahead(self, order: Tensor, seed: int, step: int) -> list[tuple[Tensor, ...]]:
        """Images, targets and labels of the next steps; of fewer where memory runs out."""
        while True:
            try:
                return self._augmented(order, seed, step, self._ahead)
            except Exception as error:  # whose traceback holds what was made so far
                if self._ahead == 1 or not is_out_of_memory(error):
                    raise
            self._ahead //= 2
            give_back(self.device)

    def _augmented(
        self, order: Tensor, seed: int, step: int, steps: int
    ) -> list[tuple[Tensor, ...]]:
        bounds = self._bounds[step : step + steps]
        sizes = [end - first for first, end in bounds]
        chosen = order[bounds[0][0] : bounds[-1][1]]
        labels = self._labels.index_select(0, chosen)
        images, targets = augment(
            self._images.index_select(0, chosen),
            labels,
            augmentation=self.augmentation,
            num_classes=self.num_classes,
            steps=[(derive_seed(seed, step + ahead), size) for ahead, size in enumerate(sizes)],
            erase_value=self._mean_colour,
        )
        return list(
            zip(*(torch.split(each, sizes) for each in (images, targets, labels)), strict=True)
        )

    def _evaluated(self, chosen: Tensor) -> Iterator[Batch]:
        """A batch, or smaller ones where memory runs out."""
        try:
            labels = self._labels.index_select(0, chosen)
            images = self._normalised(self._images.index_select(0, chosen))
            batch = Batch(images, one_hot(labels, self.num_classes), labels)
        except Exception as error:
            if len(chosen) == 1 or not is_out_of_memory(error):
                raise
        else:
            yield batch
            return
        give_back(self._images.device)
        for half in chosen.tensor_split(2):
            yield from self._evaluated(half)

    def _order(self, seed: int) -> Tensor:
        """The samples as this seed's epoch has them."""
        return self._to_device(np.random.default_rng(seed).permutation(self._indices))

    def _to_device(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Once per epoch, and without waiting."""
        host = torch.from_numpy(indices)
        if self._images.device.type == "cuda":
            return host.pin_memory().to(self._images.device, non_blocking=True)
        return host.to(self._images.device)

    def _normalised(self, images: Tensor) -> Tensor:
        # a copy also of what mixup hands over, which is float32 already
        output = images.to(torch.float32, memory_format=self._layout, copy=True)
        return output.mul_(self._scale).add_(self._shift)
