"""What experts bring to a fusion, against answers laid out by hand."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionrun.evaluation.schema import Attribution, Dominance
from fusionrun.evaluation.statistics.expert_diversity import (
    attribution,
    disagreement,
    dominance,
    gain_per_class,
    leave_one_expert_out,
    oracle_accuracy,
)

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
# a line for each expert, a column for each sample
ANSWERS = [
    [0, 0, 1, 1, 0, 0, 3, 0],  # right: 0 1 2 3 . . 6 .
    [0, 1, 1, 0, 2, 1, 3, 0],  # right: 0 . 2 . 4 . 6 .
    [0, 3, 1, 3, 0, 0, 3, 1],  # right: 0 . 2 . . . 6 .
]
FUSED = [0, 0, 1, 1, 2, 2, 0, 0]  # right: 0 1 2 3 4 5 . .


def logits_of(answers: Sequence[int], classes: int = 4) -> Tensor:
    """Scores (N, C) that give these answers."""
    return 2.0 * torch.eye(classes)[list(answers)]


def experts_of(answers: Sequence[Sequence[int]], classes: int = 4) -> Tensor:
    return torch.stack([logits_of(line, classes) for line in answers], dim=1)


EXPERTS = experts_of(ANSWERS)


def test_disagreement_by_hand() -> None:
    of_eight = torch.tensor([[0.0, 4, 3], [4, 0, 5], [3, 5, 0]], dtype=torch.float64)
    assert disagreement(EXPERTS).equal(100 / 8 * of_eight)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 5), st.integers(2, 6))
def test_disagreement_is_a_distance(seed: int, samples: int, experts: int, classes: int) -> None:
    logits = torch.randn(samples, experts, classes, generator=torch.Generator().manual_seed(seed))
    found = disagreement(logits)
    assert found.equal(found.T) and not found.diagonal().any()
    detours = (found.unsqueeze(2) + found.unsqueeze(0)).amin(dim=1)
    assert (found <= detours + 1e-9).all()
    assert disagreement(logits.flip(0)).allclose(found)


def test_the_oracle_by_hand() -> None:
    """Samples 5 and 7 are beyond every expert."""
    assert oracle_accuracy(EXPERTS, LABELS) == pytest.approx(75)
    assert oracle_accuracy(EXPERTS[:, 2:], LABELS) == pytest.approx(37.5)
    assert oracle_accuracy(EXPERTS[7:], LABELS[7:]) == 0


def test_gain_of_each_class_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 4])
    fused = logits_of([0, 0, 1, 0, 2, 2, 2, 4], 5)
    other = logits_of([0, 1, 1, 1, 0, 2, 0, 4], 5)
    expected = (50.0, -50.0, pytest.approx(200 / 3), None, 0.0)
    assert gain_per_class(fused, other, labels) == expected
    assert gain_per_class(fused, fused, labels) == (0.0, 0.0, 0.0, None, 0.0)


def test_leaving_an_expert_out_by_hand() -> None:
    """Expert 2 is surest and always wrong; 0 is right where 1 isn't, and surer."""
    labels = torch.zeros(4, dtype=torch.int64)
    experts = torch.tensor(
        [
            [[3.0, 0.0], [0.0, 1.0], [0.0, 9.0]],
            [[3.0, 0.0], [0.0, 1.0], [0.0, 9.0]],
            [[3.0, 0.0], [1.0, 0.0], [0.0, 9.0]],
            [[0.0, 3.0], [1.0, 0.0], [0.0, 9.0]],
        ]
    )
    # mean probability of class 0 over the others: .27 + 0, .27, .73 | .95 + 0 | .95 + .27, .73
    assert leave_one_expert_out(experts, labels) == (0.0, 0.0, 75.0)
    # the mean is of probabilities, not of votes or logits
    surer = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 9.0], [0.0, 0.0]]])
    label = torch.tensor([0])
    # without 3: .73 + .73 + .00 of 3; without 2: .73 + .73 + .5; without 0: .73 + .00 + .5
    assert leave_one_expert_out(surer, label) == (0.0, 0.0, 100.0, 0.0)


def test_leaving_out_one_of_two_leaves_the_other() -> None:
    pair = EXPERTS[:, :2]
    assert leave_one_expert_out(pair, LABELS) == (50.0, 62.5)
    with pytest.raises(ValueError, match="at least two experts to leave one out, found 1"):
        leave_one_expert_out(EXPERTS[:, :1], LABELS)


def test_attribution_by_hand() -> None:
    """Of six right answers: 1 and 3 are expert 0's alone, 4 expert 1's, 5 nobody's."""
    found = attribution(logits_of(FUSED), EXPERTS, LABELS)
    assert found.only_expert == pytest.approx([100 * 2 / 6, 100 / 6, 0.0])
    assert found.no_expert == pytest.approx(100 / 6)


def test_no_right_answers_have_no_attribution() -> None:
    wrong = logits_of([(int(label) + 1) % 4 for label in LABELS])
    assert attribution(wrong, EXPERTS, LABELS) == Attribution((None, None, None), None)


def test_huge_logits_and_a_single_sample() -> None:
    fused = torch.tensor([[1e4, -1e4]])
    experts = torch.tensor([[[1e4, -1e4], [-1e4, 1e4]]])
    label = torch.tensor([0])
    assert disagreement(experts).tolist() == [[0, 100], [100, 0]]
    assert oracle_accuracy(experts, label) == 100
    assert leave_one_expert_out(experts, label) == (0, 100)
    assert attribution(fused, experts, label) == Attribution((100, 0), 0)
    assert dominance(fused, experts) == Dominance(1, (100, 0), None)


# --- one expert carries everything ---------------------------------------------------------------


def test_dominance_by_hand() -> None:
    """Experts differ on samples 1, 3, 4, 5 and 7: the fused model follows 0 on three of them."""
    found = dominance(logits_of(FUSED), EXPERTS)
    assert found.contested == 5
    assert found.agreement == pytest.approx([60.0, 40.0, 0.0])
    assert found.carried_by is None


def follower(contested: int, followed: int, agreed: int = 1000) -> tuple[Tensor, Tensor]:
    """Experts that agree on the first samples; the fused model follows expert 1 on some others."""
    lines = [[0] * agreed + [k] * contested for k in (1, 2, 3)]
    fused = [0] * agreed + [2] * followed + [1] * (contested - followed)
    return logits_of(fused), experts_of(lines)


@pytest.mark.parametrize(
    ("contested", "followed", "carried_by"),
    [
        (100, 100, 1),
        (100, 98, 1),
        (100, 97, None),
        (50, 49, 1),
        (50, 48, None),
        (49, 49, None),  # too few to say so
        (200, 100, None),
        (200, 4, 0),  # the rest is expert 0's
        (200, 5, None),
    ],
)
def test_the_alarm_when_one_expert_carries_everything(
    contested: int, followed: int, carried_by: int | None
) -> None:
    """However many samples all experts agree on: there is nothing to decide there."""
    for agreed in (0, 1000):
        found = dominance(*follower(contested, followed, agreed))
        assert found.contested == contested
        share = 100 * followed / contested
        assert found.agreement == pytest.approx([100 - share, share, 0.0])
        assert found.carried_by == carried_by


def test_of_two_carriers_the_one_that_agrees_most() -> None:
    """Experts 0 and 1 differ once in a hundred, expert 2 always."""
    lines = [[0] * 100, [0] * 99 + [1], [2] * 100]
    assert dominance(logits_of(lines[1]), experts_of(lines)).carried_by == 1
    assert dominance(logits_of(lines[0]), experts_of(lines)).carried_by == 0
    twins = [lines[2], lines[0], lines[0]]
    assert dominance(logits_of(lines[0]), experts_of(twins)).carried_by == 1


def test_a_majority_is_no_carrier() -> None:
    """Each expert is outvoted on a third of the samples."""
    lines = [[int(sample % 3 == k) for sample in range(300)] for k in range(3)]
    found = dominance(logits_of([0] * 300), experts_of(lines))
    assert found.contested == 300
    assert found.agreement == pytest.approx([100 * 2 / 3] * 3)
    assert found.carried_by is None


def test_experts_that_always_agree_leave_nothing_to_carry() -> None:
    same = [[0, 1, 2, 3] * 25] * 3
    assert dominance(logits_of(same[0]), experts_of(same)) == Dominance(0, (None,) * 3, None)
    assert dominance(logits_of(same[0]), experts_of(same[:1])) == Dominance(0, (None,), None)


# --- what is refused -----------------------------------------------------------------------------


def test_what_is_not_finite_is_refused() -> None:
    fused, broken = logits_of(FUSED), EXPERTS.clone()
    broken[3, 0, 0] = math.nan
    for call in (
        lambda: disagreement(broken),
        lambda: oracle_accuracy(broken, LABELS),
        lambda: leave_one_expert_out(broken, LABELS),
        lambda: attribution(fused, broken, LABELS),
        lambda: dominance(fused, broken),
        lambda: dominance(broken[:, 0], EXPERTS),
        lambda: gain_per_class(fused, broken[:, 0], LABELS),
    ):
        with pytest.raises(ValueError, match=r"1 of 8 samples hold .* first is sample 3"):
            call()


def test_what_does_not_fit_is_refused() -> None:
    fused = logits_of(FUSED)
    with pytest.raises(ValueError, match=r"expected shape \(N, E, C\) .* found \(8, 4\)"):
        disagreement(fused)
    with pytest.raises(ValueError, match=r"expected shape \(N, E, C\) .* found \(8, 0, 4\)"):
        disagreement(EXPERTS[:, :0])
    with pytest.raises(ValueError, match=r"labels: expected shape \(8,\) .* found \(7,\)"):
        oracle_accuracy(EXPERTS, LABELS[:7])
    with pytest.raises(ValueError, match=r"labels: expected shape \(7,\) .* found \(8,\)"):
        attribution(fused[:7], EXPERTS, LABELS)
    with pytest.raises(ValueError, match=r"fused scores: expected 8 samples, .* found 7"):
        dominance(fused[:7], EXPERTS)
    with pytest.raises(ValueError, match=r"one shape, found \(8, 4\) and \(8, 3\)"):
        gain_per_class(fused, fused[:, :3], LABELS)
