"""Where cuDNN may try its algorithms out."""

from collections.abc import Iterator

import pytest
import torch

from fusionrun.data.loader import Batch
from fusionrun.training.tuning import STEPS_WORTH_TUNING, tuned

FEW, MANY = STEPS_WORTH_TUNING - 1, STEPS_WORTH_TUNING


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


def batches() -> Iterator[Batch]:
    for size in (4, 4, 2):
        yield Batch(torch.zeros(size, 3, 8, 8), torch.zeros(size, 2), torch.zeros(size).long())


def seen(steps: int) -> list[bool]:
    return [torch.backends.cudnn.benchmark for _ in tuned(batches(), 4, steps)]


def test_only_what_comes_often_is_tuned() -> None:
    torch.backends.cudnn.benchmark = True  # whatever it was
    assert seen(MANY) == [True, True, False]
    assert not torch.backends.cudnn.benchmark  # validation
    assert seen(FEW) == [False] * 3


def test_a_stop_leaves_nothing_behind() -> None:
    for _ in tuned(batches(), 4, MANY):
        assert torch.backends.cudnn.benchmark
        break
    assert not torch.backends.cudnn.benchmark


def test_reproducible_runs_choose_by_rule() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert seen(MANY) == [False] * 3
    finally:
        torch.use_deterministic_algorithms(False)
