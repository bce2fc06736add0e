"""Stacking: its minimum checked with numpy, what it may see, and what little data does to it."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fusionrun.common.image_classifier import NO_OUTPUT
from fusionrun.evaluation.statistics import stacking
from fusionrun.evaluation.statistics.metrics import accuracy, fit_temperature
from fusionrun.evaluation.statistics.stacking import FLOOR, fit_stacking, is_too_large
from fusionrun.training.scores import mean_logits

Floats = npt.NDArray[np.float64]


def make(images: int, experts: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, E, C) of experts that mistake classes for others by habit, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=generator)
    noise = torch.randn(images, experts, classes, generator=generator)
    habits = torch.randn(classes, experts, classes, generator=torch.Generator().manual_seed(99))
    return noise + torch.eye(classes)[labels].unsqueeze(1) + habits[labels], labels


def inputs_of(logits: Tensor) -> Floats:
    """Log-probabilities from FLOOR on, centred over the classes; the last column: ones."""
    each = logits.double().numpy()
    each = each - np.log(np.exp(each).sum(axis=-1, keepdims=True))
    each = np.maximum(each, FLOOR)
    each = (each - each.mean(axis=-1, keepdims=True)).reshape(len(each), -1)
    return np.concatenate([each, np.ones((len(each), 1))], axis=1)


def softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def test_the_weights_are_the_minimum_of_the_loss_as_written() -> None:
    logits, labels = make(120, 3, 4)
    fitted = fit_stacking(logits, labels)
    inputs, weights = inputs_of(logits), fitted.weights.numpy()
    mean = np.concatenate([*[np.eye(4) / 3] * 3, np.zeros((1, 4))])
    average = mean / fit_temperature(torch.from_numpy(inputs @ mean), labels)
    error = softmax(inputs @ weights) - np.eye(4)[labels]
    gradient = inputs.T @ error + fitted.strength * (weights - average)
    assert np.abs(gradient).max() < 2e-4 * fitted.strength < 1e-2 * np.abs(inputs.T @ error).max()
    other, _ = make(50, 3, 4, seed=1)
    np.testing.assert_allclose(fitted.scores(other).numpy(), inputs_of(other) @ weights)
    np.testing.assert_allclose(fitted.held_out.exp().sum(dim=1).numpy(), 1)


def test_it_learns_the_experts_habits_from_validation() -> None:
    fitted = fit_stacking(*make(1000, 3, 8))
    logits, labels = make(2000, 3, 8, seed=1)
    assert accuracy(fitted.scores(logits), labels) > accuracy(mean_logits(logits), labels) + 10
    assert fitted.strength in stacking.STRENGTHS[1:-1]
    # what it says of itself on validation is what it does on new images
    honest = accuracy(fitted.held_out, make(1000, 3, 8)[1])
    assert honest == pytest.approx(accuracy(fitted.scores(logits), labels), abs=4)


def test_no_image_is_answered_by_what_was_fitted_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels without any reason can be learned by heart, and by nobody be guessed."""
    monkeypatch.setattr(stacking, "STRENGTHS", (0.1,))
    logits, _ = make(150, 4, 10)
    labels = torch.randint(0, 10, (150,), generator=torch.Generator().manual_seed(5))
    fitted = fit_stacking(logits, labels)
    assert accuracy(fitted.scores(logits), labels) > 70
    assert accuracy(fitted.held_out, labels) < 25
    # and the strength is chosen by that: by heart says nothing
    monkeypatch.undo()
    assert fit_stacking(logits, labels).strength >= 300


def test_nothing_is_drawn_and_nothing_is_left_in_torchs_generator() -> None:
    logits, labels = make(90, 2, 5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit_stacking(logits, labels)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    with torch.no_grad():
        second = fit_stacking(logits, labels)
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.held_out, second.held_out) and first.strength == second.strength


def test_classes_that_validation_lacks_are_answered_all_the_same() -> None:
    """Where the experts are sure of them; one image of a class is no reason to shout it."""
    logits, labels = make(300, 3, 6)
    known = (labels != 5) & ((labels != 4) | (torch.arange(300) == labels.tolist().index(4)))
    fitted = fit_stacking(logits[known], labels[known])
    assert (labels[known] == 4).sum() == 1 and not (labels[known] == 5).any()
    sure = torch.zeros(2, 3, 6) + 8 * torch.eye(6)[4:].unsqueeze(1)
    assert fitted.scores(sure).argmax(dim=1).tolist() == [4, 5]
    assert fitted.held_out.isfinite().all()


@pytest.mark.parametrize("images", [1, 2, 3, 6])
def test_a_handful_of_images_leaves_about_the_average(images: int) -> None:
    fitted = fit_stacking(*make(images, 4, 10))
    logits, labels = make(500, 4, 10, seed=1)
    averaged = accuracy(mean_logits(logits), labels)
    assert accuracy(fitted.scores(logits), labels) > averaged - 5
    assert fitted.held_out.shape == (images, 10) and fitted.held_out.isfinite().all()


def test_experts_that_answer_for_their_own_classes_alone() -> None:
    """A probability of 0 elsewhere is a floor here; their answers still lead to all classes."""
    logits, labels = make(600, 2, 6)
    logits = logits + 2 * torch.eye(6)[labels].unsqueeze(1)
    logits[:, 0, 3:], logits[:, 1, :3] = NO_OUTPUT, NO_OUTPUT
    fitted = fit_stacking(logits[:300], labels[:300])
    found = fitted.scores(logits[300:])
    assert accuracy(found, labels[300:]) >= accuracy(mean_logits(logits[300:]), labels[300:])
    assert found.argmax(dim=1).unique().tolist() == list(range(6)) and found.isfinite().all()


def test_what_it_is_given_is_checked() -> None:
    logits, labels = make(20, 2, 4)
    with pytest.raises(ValueError, match="labels: expected 0 to 3"):
        fit_stacking(logits, labels + 4)
    logits[3, 0, 0] = float("-inf")
    with pytest.raises(ValueError, match="not finite"):
        fit_stacking(logits, labels)


def test_what_would_take_hours_is_not_fitted() -> None:
    assert not is_too_large(1_000, 4, 100) and not is_too_large(2_000, 4, 200)
    assert is_too_large(25_000, 4, 1_000)
