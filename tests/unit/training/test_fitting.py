"""Where memory runs out, a pass without gradients goes on with fewer images at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fusionrun.data.loader import Batch
from fusionrun.training.errors import ShortOfMemoryError
from fusionrun.training.fitting import Parts

SHORT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
)


def batch_of(images: int, first: int = 0) -> Batch:
    numbers = torch.arange(first, first + images)
    pixels = numbers.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).float()
    return Batch(pixels, torch.zeros(images, 2), numbers)


def takes(most: int, error: Exception, sizes: list[int]) -> Callable[[Batch], Tensor]:
    """A model that answers with what it's shown, in memory for `most` images."""

    def work(batch: Batch) -> Tensor:
        sizes.append(len(batch.labels))
        if len(batch.labels) > most:
            raise error
        return batch.images[:, 0, 0, 0]

    return work


@pytest.mark.parametrize("error", SHORT)
@pytest.mark.parametrize("most", [1, 2, 3, 5, 16, 32])
def test_every_image_is_answered_once_and_in_order(most: int, error: Exception) -> None:
    sizes: list[int] = []
    batches = [batch_of(32), batch_of(32, 32), batch_of(1, 64)]
    parts = Parts()
    answers = torch.cat(list(parts.of(batches, takes(most, error, sizes))))
    assert answers.tolist() == list(range(65))
    failed = [size for size in sizes if size > most]
    assert failed == sorted(failed, reverse=True) and len(failed) <= 5  # found once
    list(parts.of(batches, takes(most, error, sizes := [])))
    assert max(sizes) <= most  # and remembered


def test_where_nothing_fits_it_is_said_with_what_to_do() -> None:
    with pytest.raises(ShortOfMemoryError, match=r"out of memory on cpu.*fewer ranks"):
        list(Parts().of([batch_of(8)], takes(0, SHORT[0], [])))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    sizes: list[int] = []
    with pytest.raises(RuntimeError, match="device-side assert"):
        error = RuntimeError("CUDA error: device-side assert triggered")
        list(Parts().of([batch_of(8)], takes(1, error, sizes)))
    assert sizes == [8]
