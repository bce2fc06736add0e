"""Intervals and tests of differences, against scipy, arithmetic and simulation."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionrun.evaluation.over_seeds import Spread
from fusionrun.evaluation.statistics.seeds import spread
from fusionrun.evaluation.statistics.significance import (
    Interval,
    bootstrap_difference,
    mcnemar,
    sign_flip_test,
)


def make_answers(seed: int, samples: int, *chances: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(samples, generator=generator) < chance for chance in chances]


# --- bootstrap -----------------------------------------------------------------------------------


def test_identical_models_differ_by_nothing() -> None:
    (right,) = make_answers(0, 300, 0.7)
    assert bootstrap_difference(right, right, seed=0) == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize("samples", [400, 5000])
@pytest.mark.parametrize("confidence", [0.68, 0.95])
def test_right_answers_have_an_interval_of_the_right_width(samples: int, confidence: float) -> None:
    """Many samples: the normal approximation of a mean of paired differences."""
    first, second = make_answers(1, samples, 0.75, 0.70)
    found = bootstrap_difference(100 * first, 100 * second, seed=0, confidence=confidence)
    difference = 100 * (first.numpy().astype(float) - second.numpy().astype(float))
    half = scipy.stats.norm.ppf((1 + confidence) / 2) * difference.std() / math.sqrt(samples)
    assert found.difference == pytest.approx(difference.mean())
    # the ends lie on a grid of one sample's worth
    assert found.low == pytest.approx(difference.mean() - half, abs=0.05 * half + 100 / samples)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.05 * half + 100 / samples)


def test_losses_have_the_interval_of_scipys_bootstrap() -> None:
    """Values that are all distinct, and skewed."""
    generator = torch.Generator().manual_seed(2)
    second = torch.rand(250, generator=generator)
    first = second + 0.3 * torch.rand(250, generator=generator).log().square()
    found = bootstrap_difference(first, second, seed=0)
    expected = scipy.stats.bootstrap(
        ((first - second).numpy(),), np.mean, method="percentile", rng=1
    ).confidence_interval
    low, high = float(expected.low), float(expected.high)
    assert found.low == pytest.approx(low, abs=0.04 * (high - low))
    assert found.high == pytest.approx(high, abs=0.04 * (high - low))


def test_pairs_stay_together() -> None:
    """Losses that vary wildly from sample to sample, but by the same amount for both models."""
    first = torch.randn(200, generator=torch.Generator().manual_seed(0)).double() * 100
    found = bootstrap_difference(first, first - 1.0, seed=0)
    assert list(found) == pytest.approx([1.0, 1.0, 1.0])


def test_every_resample_of_two_samples_by_hand() -> None:
    """Differences 0 and 1: a resample's mean is 0, 0.5, 0.5 or 1."""
    first, second = torch.tensor([True, True]), torch.tensor([True, False])
    assert bootstrap_difference(first, second, seed=0) == Interval(0.5, 0.0, 1.0)
    # a quarter each is 0 and 1, so the middle 40 % are all one half
    assert bootstrap_difference(first, second, seed=0, confidence=0.4) == Interval(0.5, 0.5, 0.5)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(400):
        first, second = make_answers(seed, 300, 0.8, 0.7)
        found = bootstrap_difference(first, second, seed=seed, resamples=1000)
        covered += found.low <= 0.1 <= found.high
    # 95 % of 400, four standard deviations either way
    assert 380 - 18 <= covered <= 380 + 18


def test_the_seed_decides_the_interval() -> None:
    first, second = torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    one, again, other = (bootstrap_difference(first, second, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.low != other.low


def test_a_large_test_set_needs_little_memory() -> None:
    """2,000 resamples of 10,000 different values at once would be 160 MB of counts alone."""
    first, second = torch.rand(2, 10_000, generator=torch.Generator().manual_seed(0))
    tracemalloc.start()
    bootstrap_difference(first, second, seed=0, resamples=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_exchanging_the_models_and_the_samples(pairs: list[tuple[bool, bool]]) -> None:
    first, second = torch.tensor(pairs).unbind(dim=1)
    found = bootstrap_difference(first, second, seed=0, resamples=200)
    assert found == bootstrap_difference(first.flip(0), second.flip(0), seed=0, resamples=200)
    assert found.low - 1e-12 <= found.difference <= found.high + 1e-12
    exchanged = bootstrap_difference(second, first, seed=0, resamples=200)
    assert exchanged.difference == pytest.approx(-found.difference)
    assert mcnemar(first, second).p_value == mcnemar(second, first).p_value


# --- McNemar -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_first", "only_second"),
    [*itertools.product(range(5), range(5)), (30, 12), (12, 30), (100, 101), (2056, 1900)],
)
def test_the_p_value_equals_scipys(only_first: int, only_second: int) -> None:
    both, neither = 7, 3
    counts = torch.tensor([both, only_first, only_second, neither])
    first = torch.tensor([True, True, False, False]).repeat_interleave(counts)
    second = torch.tensor([True, False, True, False]).repeat_interleave(counts)
    found = mcnemar(first, second)
    assert found[:2] == (only_first, only_second)
    discordant = only_first + only_second
    expected = scipy.stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_a_hopeless_case_is_no_overflow() -> None:
    first = torch.ones(10_000, dtype=torch.bool)
    assert mcnemar(first, ~first) == (10_000, 0, 0.0)  # 2 ** -9999 is below the smallest double
    assert mcnemar(first[:1000], ~first[:1000]).p_value == pytest.approx(2.0**-999)


# --- several trainings ---------------------------------------------------------------------------


@pytest.mark.parametrize(("plus", "minus"), [(0, 0), (1, 0), (8, 2), (3, 3), (300, 251), (40, 95)])
def test_of_one_training_it_is_mcnemars(plus: int, minus: int) -> None:
    differences = torch.tensor([1] * plus + [-1] * minus + [0] * 5)
    expected = scipy.stats.binomtest(plus, plus + minus).pvalue if plus + minus else 1.0
    assert sign_flip_test(differences) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_signs_are_coins(differences: list[int]) -> None:
    """Against every outcome of the coins, one by one."""
    far = abs(sum(differences))
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [sum(s * d for s, d in zip(each, differences, strict=True)) for each in signs]
    expected = sum(abs(total) >= far for total in sums) / len(sums)
    assert sign_flip_test(torch.tensor(differences)) == pytest.approx(expected)


def test_many_images_and_seeds_are_tested_exactly() -> None:
    """Ten thousand images, five seeds; the normal approximation is close, but not at the tails."""
    generator = torch.Generator().manual_seed(0)
    differences = torch.randint(-5, 6, (10_000,), generator=generator)
    z = abs(int(differences.sum())) / math.sqrt(int((differences**2).sum()))
    expected = 2 * scipy.stats.norm.sf(z)
    assert sign_flip_test(differences) == pytest.approx(expected, rel=0.02)
    assert 0 < sign_flip_test(torch.full((1000,), 3)) == pytest.approx(2.0**-999)


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(0).long(), torch.zeros(2, 2).long()])
def test_sums_of_whole_numbers_alone_are_tested(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="expected whole numbers, at least one, found"):
        sign_flip_test(wrong)


# --- over seeds ----------------------------------------------------------------------------------


def test_mean_and_deviation_over_seeds() -> None:
    assert spread([71.0]) == Spread(71.0, None)
    assert spread([1.0, 2.0, 6.0]) == Spread(3.0, pytest.approx(math.sqrt(7)))
    values = [70.1, 70.9, 71.3, 69.8]
    expected = Spread(pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert spread(values) == expected


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(0), torch.zeros(0)),
        *[(torch.zeros(2, 2),) * 2],
    ],
)
def test_rows_of_unlike_length_are_refused(first: Tensor, second: Tensor) -> None:
    with pytest.raises(ValueError, match=r"equally long rows .* found shapes \("):
        bootstrap_difference(first, second, seed=0)
    with pytest.raises(ValueError, match=r"equally long rows .* found shapes \("):
        mcnemar(first.bool(), second.bool())


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="expected finite values, found 1 of 3"):
        bootstrap_difference(torch.tensor([0, math.nan, 1]), torch.zeros(3), seed=0)
    for values in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="at least one value, all finite, found"):
            spread(values)


@pytest.mark.parametrize(
    ("resamples", "confidence"), [(0, 0.95), (100, 0.0), (100, 1.0), (100, 95.0)]
)
def test_resamples_and_confidence_have_limits(resamples: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=f"found {resamples} and {confidence}"):
        bootstrap_difference(
            torch.zeros(2), torch.zeros(2), seed=0, resamples=resamples, confidence=confidence
        )


def test_only_right_and_wrong_have_a_mcnemar_test() -> None:
    with pytest.raises(ValueError, match=r"as bool, found torch.float32 and torch.bool"):
        mcnemar(torch.zeros(3), torch.zeros(3).bool())
