"""What an expert's answers say against it."""

import pytest
import torch
from torch import Tensor

from fusionrun.launch.checks.doubts import doubt


def labels(classes: int, each: int = 20) -> Tensor:
    return torch.arange(classes).repeat(each)


def wrong_on(share: float, right: Tensor, classes: int) -> Tensor:
    """Answers that are wrong on a `share` of the images, spread over all classes."""
    generator = torch.Generator().manual_seed(0)
    answers = right.clone()
    chosen = torch.rand(len(right), generator=generator) < share
    shift = torch.randint(1, classes, right.shape, generator=generator)
    answers[chosen] = (right + shift)[chosen] % classes
    return answers


@pytest.mark.parametrize("classes", [2, 4, 12, 100])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_an_expert_that_has_learnt_something_is_not_doubted(classes: int, share: float) -> None:
    if classes == 2 and share > 0.5:
        return
    right = labels(classes)
    assert (
        doubt(wrong_on(share if classes > 2 else share / 2, right, classes), right, classes) == ""
    )


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_names_sorted_as_text_and_as_numbers(share: float) -> None:
    """Folders sort 0, 1, 10, 11, 2: two classes of twelve keep their numbers."""
    right = labels(12)
    order = torch.tensor(sorted(range(12), key=str))
    answers = order[wrong_on(share, right, 12)]
    assert "its class order may be another" in doubt(answers, right, 12)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_one_answer_for_everything_is_chance(classes: int) -> None:
    right = labels(classes, 40)
    assert "no better than chance" in doubt(torch.zeros_like(right), right, classes)


def test_a_handful_of_images_tells_nothing() -> None:
    assert doubt(torch.zeros(10, dtype=torch.int64), labels(10, 1), 10) == ""
