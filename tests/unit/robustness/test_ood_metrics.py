"""Out-of-distribution detection, against scikit-learn and against counted pairs."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from fusionrun.robustness.ood_metrics import (
    DetectionMetrics,
    detection_metrics,
    max_probability,
    negative_energy,
)


def random_scores(count: int, shift: float, digits: int | None, seed: int) -> Tensor:
    """Rounded to `digits`, scores have ties within a side and between the sides."""
    values = np.random.default_rng(seed).normal(shift, 1, count)
    return torch.from_numpy(values if digits is None else values.round(digits))


@pytest.mark.parametrize("digits", [None, 1, 0])
@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("counts", [(400, 150), (30, 700), (20, 20)])
def test_equals_scikit_learn(counts: tuple[int, int], shift: float, digits: int | None) -> None:
    known = random_scores(counts[0], shift, digits, seed=1)
    ood = random_scores(counts[1], 0, digits, seed=2)
    found = detection_metrics(known, ood)
    scores = torch.cat([known, ood]).numpy()
    is_known = np.arange(len(scores)) < len(known)
    false_rate, true_rate, _ = roc_curve(is_known, scores, drop_intermediate=False)
    assert found.auroc == pytest.approx(100 * roc_auc_score(is_known, scores), abs=1e-9)
    assert found.aupr_in == pytest.approx(100 * average_precision_score(is_known, scores), abs=1e-9)
    expected = 100 * average_precision_score(~is_known, -scores)
    assert found.aupr_out == pytest.approx(expected, abs=1e-9)
    # scikit-learn's rates are quotients, of which 0.95 may be just below itself
    first = int(np.flatnonzero(true_rate >= 0.95 - 1e-12)[0])
    assert found.fpr_at_95_tpr == pytest.approx(100 * false_rate[first], abs=1e-9)


def test_counted_by_hand() -> None:
    known, ood = torch.tensor([3.0, 2.0, 2.0]), torch.tensor([2.0, 1.0])
    # pairs: 3 > 2, 3 > 1, twice 2 = 2 and twice 2 > 1
    # in-distribution at 3: 1 of 1; at 2: 3 of 4.  OOD at 1: 1 of 1; at 2: 2 of 4.
    assert detection_metrics(known, ood) == DetectionMetrics(
        auroc=pytest.approx(100 * (1 + 1 + 0.5 + 0.5 + 1 + 1) / 6),
        aupr_in=pytest.approx(100 * (1 / 3 * 1 + 2 / 3 * 3 / 4)),
        aupr_out=pytest.approx(100 * (1 / 2 * 1 + 1 / 2 * 2 / 4)),
        fpr_at_95_tpr=50.0,
    )


def test_the_line_is_drawn_where_95_percent_pass() -> None:
    """19 of 20 in-distribution images are enough, 18 aren't; images on the line pass."""
    known = torch.arange(20.0)
    assert detection_metrics(known, torch.tensor([0.5, 30.0])).fpr_at_95_tpr == 50
    assert detection_metrics(known, torch.tensor([1.0, 30.0])).fpr_at_95_tpr == 100
    assert detection_metrics(known, torch.tensor([0.0, 1.5])).fpr_at_95_tpr == 50


def test_extremes() -> None:
    low, high = torch.arange(5.0), torch.arange(10.0, 17.0)
    assert detection_metrics(high, low) == DetectionMetrics(100, 100, 100, 0)
    worst = detection_metrics(low, high)
    assert worst.auroc == 0 and worst.fpr_at_95_tpr == 100
    assert worst.aupr_in < 50 and worst.aupr_out < 60
    # a score that knows nothing: chance, the share of each side
    blind = detection_metrics(torch.zeros(30), torch.zeros(10))
    assert blind == DetectionMetrics(50, 75, 25, 100)


def test_only_the_order_counts() -> None:
    known, ood = (random_scores(90, shift, 1, seed=5) for shift in (1.0, 0.0))
    assert detection_metrics(known, ood) == detection_metrics((known * 3).exp(), (ood * 3).exp())
    flipped = detection_metrics(-ood, -known)
    found = detection_metrics(known, ood)
    assert flipped.auroc == found.auroc
    assert (flipped.aupr_in, flipped.aupr_out) == (found.aupr_out, found.aupr_in)


def test_scores_of_logits() -> None:
    rows = [[2.0, 1.0, -3.0], [0.0, 0.0, 0.0], [100.0, 60.0, 0.0], [-700.0, -800.0, -900.0]]
    logits = torch.tensor(rows)
    sums = [math.fsum(math.exp(value - max(row)) for value in row) for row in rows]
    highest = [1 / total for total in sums]
    energies = [max(row) + math.log(total) for row, total in zip(rows, sums, strict=True)]
    np.testing.assert_allclose(max_probability(logits).numpy(), highest, rtol=1e-12)
    np.testing.assert_allclose(negative_energy(logits).numpy(), energies, rtol=1e-12)
    # sure and surer: in single precision both would be 1, a tie
    one, two = max_probability(torch.tensor([[20.0, 0.0], [25.0, 0.0]])).tolist()
    assert one < two < 1


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (torch.empty(0), r"found \(0,\), 0 of them"),
        (torch.zeros(3, 2), r"found \(3, 2\), 0 of them"),
        (torch.tensor([1.0, math.nan, math.inf]), r"found \(3,\), 2 of them not finite"),
    ],
)
def test_unfit_scores_are_refused(bad: Tensor, found: str) -> None:
    with pytest.raises(ValueError, match=f"in-distribution scores: .*{found}"):
        detection_metrics(bad, torch.zeros(4))
    with pytest.raises(ValueError, match=f"OOD scores: .*{found}"):
        detection_metrics(torch.zeros(4), bad)


def test_logits_of_a_diverged_model_are_refused() -> None:
    for score in (max_probability, negative_energy):
        with pytest.raises(ValueError, match="not finite"):
            score(torch.tensor([[0.0, math.nan]]))
