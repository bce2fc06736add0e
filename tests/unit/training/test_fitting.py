"""Where memory runs out, a pass without gradients goes on with fewer images at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fusionrun.data.loader import Batch
from fusionrun.experts import build_expert
from fusionrun.training.errors import ShortOfMemoryError
from fusionrun.training.fitting import IN_CACHES, Parts
from tests.bench.fusionrun_side import TINY_MODELS

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


@pytest.mark.parametrize("images", [1, 31, 32, 33, 64, 65, 97, 130])
def test_a_cpu_gets_parts_that_its_caches_hold(images: int) -> None:
    sizes: list[int] = []
    batches = [batch_of(images)]
    answers = list(Parts().of(batches, takes(images, SHORT[0], sizes), in_caches=True))
    assert torch.cat(answers).tolist() == list(range(images))
    assert all(size == IN_CACHES for size in sizes[:-1])
    assert min(images, IN_CACHES) <= sizes[-1] < 2 * IN_CACHES
    list(Parts().of(batches, takes(images, SHORT[0], sizes := [])))
    assert sizes == [images]  # unless it's asked for


@pytest.mark.parametrize("model", TINY_MODELS)
def test_those_parts_answer_bit_for_bit_what_all_at_once_do(model: str) -> None:
    torch.manual_seed(0)
    expert = build_expert(model, 10, **TINY_MODELS[model]).eval()
    expert.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(67, 3, 32, 32).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.zeros(67, 10), torch.zeros(67, dtype=torch.int64))
    with torch.no_grad():
        asked = Parts().of([batch], lambda part: expert(part.images)[1], in_caches=True)
        assert torch.equal(torch.cat(list(asked)), expert(images)[1])
