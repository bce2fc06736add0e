"""The accuracy of averaged probabilities while a row trains."""

import pytest
import torch

from fusionrun.training import scores
from fusionrun.training.scores import averaged_accuracy


def test_it_is_that_of_the_mean_of_the_softmaxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "AT_ONCE", 7)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 3, 5, generator=generator)
    labels = torch.randint(5, (50,), generator=generator)
    answers = logits.softmax(dim=-1).mean(dim=1).argmax(dim=-1)
    assert averaged_accuracy(logits, labels) == 2 * int((answers == labels).sum())


def test_without_experts_or_with_bad_numbers_there_is_none() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    assert averaged_accuracy(torch.zeros(4, 0, 5), labels) is None
    assert averaged_accuracy(torch.full((4, 2, 5), torch.nan), labels) is None
