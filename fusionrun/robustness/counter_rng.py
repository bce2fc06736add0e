"""Random numbers that follow from what they are for, not from who draws them in which order.

A number is a hash of (seed, purpose, image, position). An image gets the same numbers in any
batch, on any device.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionrun.common.seeds import derive_seed

# SplitMix64 (Steele, Lea and Flood 2014); as torch has no unsigned products, in two's complement
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
PLASMA_WOBBLE = 100.0  # of the largest squares; what it is hardly matters, the sum is normalised


@dataclass(frozen=True)
class CounterRNG:
    """The random numbers of `count` images, of which the first is number `first` of its set."""

    seed: int
    first: int
    count: int
    device: torch.device

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(count, *shape) float64, at least 0 and below 1; the same bytes on every device."""
        return _upper(self._bits(purpose, shape), 53).to(torch.float64) * 2.0**-53

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """(count, *shape) float32 with mean 0 and variance 1, by Box and Muller's formula.

        Logarithm and cosine may differ in the last bit between devices.
        """
        bits = self._bits(purpose, shape)
        above_zero = (_upper(bits, 32) + 1).to(torch.float32) * 2.0**-32
        turn = (bits & 0xFFFFFFFF).to(torch.float32) * (2.0**-32 * 2 * math.pi)
        return (above_zero.log() * -2).sqrt() * turn.cos()

    def _bits(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """(count, *shape) int64: a SplitMix64 sequence for each image."""
        # products wrap around at 64 bits, as they should
        numbers = torch.arange(self.first, self.first + self.count, device=self.device)
        start = _mix(numbers * GAMMA + derive_seed(self.seed, purpose))
        steps = torch.arange(1, math.prod(shape) + 1, device=self.device) * GAMMA
        return _mix(start.unsqueeze(1) + steps).view(self.count, *shape)


def _mix(z: Tensor) -> Tensor:
    for shift, factor in MIX:
        z = (z ^ _upper(z, 64 - shift)) * factor
    return z ^ _upper(z, 33)


def _upper(bits: Tensor, number: int) -> Tensor:
    """The upper bits as a number from 0; a plain >> would copy the sign into the gap."""
    return (bits >> (64 - number)) & ((1 << number) - 1)


def plasma(rng: CounterRNG, size: int, decay: float, purpose: str = "plasma") -> Tensor:
    """Clouds (N, size, size) float64, each from 0 to 1; `size` is a power of two.

    Diamond-square (Fournier, Fussell and Carpenter 1982) on a torus: each midpoint is the mean
    of its four neighbours plus uniform noise. Its range is the square of a number that shrinks
    by `decay` at every halving, as Hendrycks and Dietterich have it.
    """
    heights = torch.zeros(rng.count, size, size, dtype=torch.float64, device=rng.device)
    step, wobble = size, PLASMA_WOBBLE
    while step >= 2:
        half, cells = step // 2, size // step
        noise = rng.uniform(f"{purpose} {step}", 3, cells, cells).unbind(1)
        squares, above, beside = ((2 * field - 1) * wobble**2 for field in noise)
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        middles = (pairs + pairs.roll(-1, 2)) / 4 + squares
        heights[:, half::step, half::step] = middles
        rows = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        columns = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, ::step, half::step] = rows / 4 + above
        heights[:, half::step, ::step] = columns / 4 + beside
        step, wobble = half, wobble / decay
    heights -= heights.amin(dim=(1, 2), keepdim=True)
    return heights / heights.amax(dim=(1, 2), keepdim=True)
