"""What may happen to a training image, and the draw of what does happen to each of a batch.

Literal tables of the published policies, and one function a decision: numbers on the host, from
the generators that it is given. batch.py does what was drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

POLICIES = ("none", "color_jitter", "randaugment", "trivialaugment")
MIXINGS = ("none", "cutmix", "mixup")
MAGNITUDE_BINS = 31


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch. Raises ValueError for values out of range."""

    policy: str = "none"  # one of POLICIES
    num_ops: int = 2  # randaugment: operations per image, one after another
    magnitude: int = 9  # randaugment: strength, 0..30
    crop_padding: int = 4  # pixels of reflect padding around a random crop
    flip: float = 0.5  # probability of a horizontal mirror image
    erasing: float = 0.0  # probability of an erased rectangle
    mixing: str = "none"  # one of MIXINGS
    mixing_alpha: float = 1.0  # of the Beta(alpha, alpha) that a mixing weight is drawn from

    def __post_init__(self) -> None:
        for name, allowed in (("policy", POLICIES), ("mixing", MIXINGS)):
            if getattr(self, name) not in allowed:
                found = getattr(self, name)
                raise ValueError(f"augmentation {name} is {found!r}; expected one of {allowed}")
        for name in ("flip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation {name} is {getattr(self, name)}; expected 0 to 1")
        if not 0 <= self.magnitude < MAGNITUDE_BINS or self.num_ops < 0 or self.crop_padding < 0:
            raise ValueError(
                f"augmentation {self}: expected magnitude 0..{MAGNITUDE_BINS - 1}, "
                "num_ops >= 0 and crop_padding >= 0"
            )
        if self.mixing_alpha <= 0:
            raise ValueError(f"augmentation mixing_alpha is {self.mixing_alpha}; expected > 0")


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(crop_padding=0, flip=0.0),
    "crop_flip": Augmentation(),
    "color_jitter": Augmentation("color_jitter", erasing=0.25),
    "randaugment": Augmentation("randaugment", 2, 9, erasing=0.1),
    "randaugment_strong": Augmentation("randaugment", 3, 14, erasing=0.3),
    "trivialaugment": Augmentation("trivialaugment", erasing=0.25),
}

# Operations of both policies, with their strength at the last bin (0 at the first) and whether
# the sign is random. RandAugment: Cubuk et al. 2020; wide TrivialAugment: Müller and Hutter 2021;
# ranges as torchvision.transforms.v2 has them. Translations of RandAugment are parts of the image,
# those of TrivialAugment pixels.
RANDAUGMENT: dict[str, tuple[float, bool]] = {
    "identity": (0.0, False),
    "shear_x": (0.3, True),
    "shear_y": (0.3, True),
    "translate_x": (150 / 331, True),
    "translate_y": (150 / 331, True),
    "rotate": (30.0, True),
    "brightness": (0.9, True),
    "saturation": (0.9, True),
    "contrast": (0.9, True),
    "sharpness": (0.9, True),
    "posterize": (4.0, False),
    "solarize": (255.0, False),
    "autocontrast": (0.0, False),
    "equalize": (0.0, False),
}
TRIVIALAUGMENT: dict[str, tuple[float, bool]] = {
    "identity": (0.0, False),
    "shear_x": (0.99, True),
    "shear_y": (0.99, True),
    "translate_x": (32.0, True),
    "translate_y": (32.0, True),
    "rotate": (135.0, True),
    "brightness": (0.99, True),
    "saturation": (0.99, True),
    "contrast": (0.99, True),
    "sharpness": (0.99, True),
    "posterize": (6.0, False),
    "solarize": (255.0, False),
    "autocontrast": (0.0, False),
    "equalize": (0.0, False),
}
# torchvision's ColorJitter: factors 1 +- 0.2, hue +- 0.1 of the circle, in random order
COLOR_JITTER: dict[str, float] = {
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.1,
}


class Draws:
    """Samples of several steps, one step after another, each drawn from its own step's seed.

    So a step is given the same numbers whether it is drawn alone or among others; all else is
    computed once for the samples of all.
    """

    def __init__(self, steps: Sequence[tuple[int, int]]) -> None:
        """`steps`: each one's seed and how many samples it has."""
        self._steps = [(np.random.default_rng(seed), count) for seed, count in steps]
        sizes = [count for _, count in steps]
        self.count = sum(sizes)
        # where the step begins that a sample belongs to, (count,)
        self.first = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)

    def each(self, draw: Callable[[np.random.Generator, int], Array], axis: int = 0) -> Array:
        """What `draw` makes of every step's generator and number of samples, along `axis`."""
        return np.concatenate([draw(rng, count) for rng, count in self._steps], axis=axis)

    def random(self) -> Numbers:
        """(count,) in 0..1."""
        return self.each(lambda rng, count: rng.random(count))

    def integers(self, high: int) -> npt.NDArray[np.int64]:
        """(count,) in 0..high-1."""
        return self.each(lambda rng, count: rng.integers(0, high, count))


def draw_operations(
    draws: Draws, augmentation: Augmentation, height: int, width: int
) -> list[tuple[npt.NDArray[np.str_], npt.NDArray[np.int64], Numbers]]:
    """The operations that samples get, one after another: names, which of them and how strong.

    Names (K,) are the keys of the policy's table, each sample's choice (samples,) is one's place
    among them; strengths (samples,) are signed numbers in the table's units, translations in
    pixels. The images have (height, width) pixels.
    """
    if augmentation.policy == "none" or not draws.count:
        return []
    rows = np.arange(draws.count)
    if augmentation.policy == "color_jitter":  # a random order of the four for every sample
        names, limits = np.array(list(COLOR_JITTER)), np.array(list(COLOR_JITTER.values()))
        order = draws.each(lambda rng, count: rng.random((count, len(names)))).argsort(axis=1)
        jitter = draws.each(lambda rng, count: rng.uniform(-1, 1, (count, len(names)))) * limits
        return [(names, of_all, jitter[rows, of_all]) for of_all in order.T]
    wide = augmentation.policy == "trivialaugment"
    table = TRIVIALAUGMENT if wide else RANDAUGMENT
    names, operations = np.array(list(table)), []
    for _ in range(1 if wide else augmentation.num_ops):
        chosen, bins = draws.integers(len(table)), draws.integers(MAGNITUDE_BINS)
        if not wide:
            bins = np.full_like(bins, augmentation.magnitude)
        signs = np.where(draws.random() < 0.5, -1.0, 1.0)
        strengths = []  # of every operation, (samples,)
        for name, (limit, signed) in table.items():
            if not wide and name.startswith("translate"):
                limit *= width if name == "translate_x" else height
            strengths.append(limit * bins * (signs if signed else 1) / (MAGNITUDE_BINS - 1))
        operations.append((names, chosen, np.stack(strengths)[chosen, rows]))
    return operations


def draw_rectangles(draws: Draws, probability: float, height: int, width: int) -> Numbers:
    """(4, samples): top, bottom, left, right of what is erased (Zhong et al. 2020); often nothing.

    Area 2-33 % of the image, aspect 0.3-3.3, the first of ten draws that fits.
    """
    tries, flat = 10, (math.log(0.3), math.log(3.3))
    area = height * width * draws.each(lambda rng, count: rng.uniform(0.02, 0.33, (count, tries)))
    aspect = np.exp(draws.each(lambda rng, count: rng.uniform(*flat, (count, tries))))
    rows, columns = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (rows < height) & (columns < width)
    first = np.arange(draws.count), fits.argmax(axis=1)
    # no rectangle where nothing fits or the sample is not chosen
    chosen = fits.any(axis=1) & (draws.random() < probability)
    rows, columns = rows[first] * chosen, columns[first] * chosen
    top = np.floor(draws.random() * (height - rows + 1))
    left = np.floor(draws.random() * (width - columns + 1))
    return np.stack([top, top + rows, left, left + columns])


def draw_mixing(draws: Draws, augmentation: Augmentation, height: int, width: int) -> list[Array]:
    """Rows (samples,): partner, own weight and, for CutMix, the box that comes from the partner.

    Partners are of the same step. CutMix: Yun et al. 2019; mixup: Zhang et al. 2018.
    """
    alpha = augmentation.mixing_alpha
    partner = draws.each(lambda rng, count: rng.permutation(count)) + draws.first
    weight = draws.each(lambda rng, count: rng.beta(alpha, alpha, count))
    if augmentation.mixing == "mixup":
        return [partner, weight]
    side = np.sqrt(1 - weight)
    rows, columns = (height * side).astype(np.int64), (width * side).astype(np.int64)
    y, x = draws.integers(height), draws.integers(width)
    top, bottom = (y - rows // 2).clip(0, height), (y + rows // 2).clip(0, height)
    left, right = (x - columns // 2).clip(0, width), (x + columns // 2).clip(0, width)
    # the weight is that of the pixels really kept, after the box was cut at the border
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return [partner, weight, top, bottom, left, right]
