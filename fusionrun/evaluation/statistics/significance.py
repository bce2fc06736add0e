"""Is a difference more than luck? Two models on the same samples."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CELLS = 2**22  # resampled counts held at a time: 32 MiB


class Interval(NamedTuple):
    """A mean difference and where it could as well be, in the units of the values."""

    difference: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Samples on which exactly one of two models is right, and how odd their split is."""

    only_first: int
    only_second: int
    p_value: float


def bootstrap_difference(
    first: Tensor,
    second: Tensor,
    *,
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of `first` minus `second` with its paired percentile bootstrap interval.

    Both (N,) are values of the same samples: 100 * correct(...) for points of accuracy, losses
    for nats. Samples are drawn together with their pair (Efron and Tibshirani, "An introduction
    to the bootstrap", 1993, chapter 13). Says nothing about other seeds of the training.
    Raises ValueError: other shapes, or values that aren't finite.
    """
    values, counts = np.unique(_differences(first, second).numpy(), return_counts=True)
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "resamples, confidence: expected at least 1 and between 0 and 1, "
            f"found {resamples} and {confidence}"
        )
    # Equal values are interchangeable, so drawing how often each occurs is the same as drawing
    # samples, and right or wrong leaves three values however many samples there are.
    total = int(counts.sum())
    generator = np.random.default_rng(seed)
    at_once = max(1, CELLS // len(values))
    means = [
        generator.multinomial(total, counts / total, size=min(at_once, resamples - start)) @ values
        for start in range(0, resamples, at_once)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means) / total, (tail, 1 - tail))
    return Interval(float(values @ counts / total), float(low), float(high))


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """Exact two-sided McNemar test of two (N,) bool tensors of right answers.

    Only samples that one model gets right and the other wrong count: were the models equally
    good, either would be the right one as often as a coin falls (McNemar, 1947). Raises ValueError.
    """
    if first.dtype != torch.bool or second.dtype != torch.bool:
        raise ValueError(f"expected right answers as bool, found {first.dtype} and {second.dtype}")
    difference = _differences(first, second)
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    return McNemar(only_first, only_second, _coin_test(only_first, only_second))


def sign_flip_test(differences: Tensor) -> float:
    """Exact two-sided randomisation test of whole differences (N,), by chance as often + as -.

    How often coins for their signs give a sum at least as far from zero (Fisher, "The design of
    experiments", 1935, section 21). Of +1 and -1 it is McNemar's; of samples' differences summed
    over several trainings it speaks of other samples, not of training again. Raises ValueError.
    """
    if differences.is_floating_point() or differences.dim() != 1 or not len(differences):
        raise ValueError(
            "expected whole numbers, at least one, found "
            f"{tuple(differences.shape)} of {differences.dtype}"
        )
    sizes, counts = np.unique(differences.abs().numpy(), return_counts=True)
    chances = np.ones(1)  # of each sum of what falls on +, from 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        if size:
            tosses = np.zeros(size * count + 1)
            ways = [math.lgamma(k + 1) + math.lgamma(count - k + 1) for k in range(count + 1)]
            tosses[::size] = np.exp(math.lgamma(count + 1) - np.array(ways) - count * math.log(2))
            chances = np.convolve(chances, tosses)
    total, found = len(chances) - 1, int(differences.sum())
    least = (total - abs(found)) // 2  # on +, so that the sum is as far below zero
    return float(min(1.0, 2 * chances[: least + 1].sum()))


def _coin_test(heads: int, tails: int) -> float:
    """Chance of a split at least as uneven from a fair coin, in whole numbers until the end."""
    tosses = heads + tails
    ways, outcomes = 1, 0
    for k in range(min(heads, tails) + 1):
        outcomes += ways
        ways = ways * (tosses - k) // (k + 1)  # of k + 1 heads
    return min(1.0, 2 * outcomes / (1 << tosses))


def _differences(first: Tensor, second: Tensor) -> Tensor:
    if first.dim() != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            "expected two equally long rows of values, at least one each, "
            f"found shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    difference = first.double() - second.double()
    if not difference.isfinite().all():
        wrong = int((~difference.isfinite()).sum())
        raise ValueError(f"expected finite values, found {wrong} of {len(first)} that are not")
    return difference
