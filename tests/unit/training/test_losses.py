"""The dual-path loss against torch's cross-entropy, one head at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fusionrun.common.image_classifier import NO_OUTPUT
from fusionrun.training.losses import head_correct, head_losses, head_weights

N, H, C = 7, 5, 6


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(N, H, C, generator=generator)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 5, 2, 2, 4, 1, 3])


@pytest.fixture
def partners() -> Tensor:
    return torch.tensor([0, 1, 4, 2, 5, 0, 2])  # the first and the fourth mix with their own class


@pytest.fixture
def shares() -> Tensor:
    return torch.tensor([0.25, 0.0, 1.0, 0.6, 0.9, 0.5, 0.1])


def one_hot(labels: Tensor) -> Tensor:
    return torch.eye(C)[labels]


def mixed(labels: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    share = shares.unsqueeze(1)
    return share * one_hot(labels) + (1 - share) * one_hot(partners)


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.1, 0.5])
def test_equals_cross_entropy_of_labels(logits: Tensor, labels: Tensor, smoothing: float) -> None:
    losses = head_losses(logits, one_hot(labels), smoothing)
    expected = [
        functional.cross_entropy(logits[:, h], labels, label_smoothing=smoothing) for h in range(H)
    ]
    assert losses.shape == (H,)
    torch.testing.assert_close(losses, torch.stack(expected))


@pytest.mark.parametrize("smoothing", [0.0, 0.08])
def test_mixed_targets_are_the_mixture_of_both_losses(
    logits: Tensor, labels: Tensor, partners: Tensor, shares: Tensor, smoothing: float
) -> None:
    def each(classes: Tensor, h: int) -> Tensor:
        return functional.cross_entropy(
            logits[:, h], classes, label_smoothing=smoothing, reduction="none"
        )

    losses = head_losses(logits, mixed(labels, partners, shares), smoothing)
    expected = [
        (shares * each(labels, h) + (1 - shares) * each(partners, h)).mean() for h in range(H)
    ]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_gradients_equal_those_of_cross_entropy(logits: Tensor, labels: Tensor) -> None:
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    weights = head_weights(H - 1, 3.0, torch.device("cpu"))
    (head_losses(ours, one_hot(labels), 0.1) @ weights).backward()  # type: ignore[no-untyped-call]
    loss = functional.cross_entropy(theirs[:, 0], labels, label_smoothing=0.1)
    for h in range(1, H):
        loss = loss + 3.0 * functional.cross_entropy(theirs[:, h], labels, label_smoothing=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 15.0])
def test_dual_path_is_a_sum_over_experts(logits: Tensor, labels: Tensor, alpha: float) -> None:
    total = head_losses(logits, one_hot(labels)) @ head_weights(H - 1, alpha, logits.device)
    fused = functional.cross_entropy(logits[:, 0], labels)
    experts = [functional.cross_entropy(logits[:, h], labels) for h in range(1, H)]
    torch.testing.assert_close(total, fused + alpha * torch.stack(experts).sum())


def test_half_precision_logits_lose_nothing_more(logits: Tensor, labels: Tensor) -> None:
    """Under autocast logits are bfloat16; the loss must be computed from them in float32."""
    rough = logits.bfloat16()
    losses = head_losses(rough, one_hot(labels), 0.1)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, head_losses(rough.float(), one_hot(labels), 0.1))


def test_huge_logits_stay_finite(logits: Tensor, labels: Tensor) -> None:
    assert head_losses(1e4 * logits, one_hot(labels)).isfinite().all()


def test_it_counts_right_answers(logits: Tensor, labels: Tensor) -> None:
    correct = head_correct(logits, one_hot(labels))
    expected = [sum(int(logits[n, h].argmax()) == labels[n] for n in range(N)) for h in range(H)]
    assert correct.tolist() == expected
    perfect = one_hot(labels).unsqueeze(1).expand(N, H, C)
    assert head_correct(perfect, one_hot(labels)).tolist() == [N] * H


def test_answers_to_mixed_targets_earn_their_share(
    logits: Tensor, labels: Tensor, partners: Tensor, shares: Tensor
) -> None:
    expected = [0.0] * H
    for n in range(N):
        for h in range(H):
            choice = int(logits[n, h].argmax())
            expected[h] += float(shares[n]) * (choice == int(labels[n]))
            expected[h] += (1 - float(shares[n])) * (choice == int(partners[n]))
    correct = head_correct(logits, mixed(labels, partners, shares))
    assert correct.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) > 1  # heads that differ, or it's no test


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_head_without_some_outputs_is_asked_about_its_own(
    logits: Tensor, labels: Tensor, smoothing: float
) -> None:
    """As if the images of other classes, and those outputs, were not there: in value and slope."""
    own = (labels >= 2) & (labels < 5)
    narrow = logits[:, :1, 2:5].clone().requires_grad_()
    wide = functional.pad(narrow, (2, 1), value=NO_OUTPUT)
    (found,) = head_losses(wide, one_hot(labels), smoothing)
    smoothed = one_hot(labels)[own] * (1 - smoothing) + smoothing / C
    log_probabilities = narrow[own, 0].log_softmax(dim=-1)
    by_hand = -(smoothed[:, 2:5] * log_probabilities).sum() / N
    torch.testing.assert_close(found, by_hand)
    (slope,) = torch.autograd.grad(found, narrow, retain_graph=True)
    (expected,) = torch.autograd.grad(by_hand, narrow)
    torch.testing.assert_close(slope, expected)
    assert not slope[~own].any() and slope[own].any()


def test_heads_with_all_outputs_are_not_touched_by_those_without(
    logits: Tensor, labels: Tensor, partners: Tensor, shares: Tensor
) -> None:
    targets = mixed(labels, partners, shares)
    alone = head_losses(logits[:, :2], targets, 0.1)
    logits[:, 2:, :4] = NO_OUTPUT
    together = head_losses(logits, targets, 0.1)
    assert torch.equal(together[:2], alone) and together.isfinite().all()
