"""What may happen to a training image, and the draw of what does happen to each of a batch.

Literal tables of the published policies, and one function a decision: numbers on the host, from
the generator that it is given. batch.py does what was drawn.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

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


def draw_operations(
    rng: np.random.Generator, augmentation: Augmentation, count: int, height: int, width: int
) -> list[tuple[npt.NDArray[np.str_], Numbers]]:
    """The policy's steps, one after another: the operation of every sample and its strength.

    Names are keys of the policy's table; strengths are signed numbers in its units, translations
    in pixels. `count` samples of (height, width) pixels.
    """
    if augmentation.policy == "none" or not count:
        return []
    if augmentation.policy == "color_jitter":  # a random order of the four for every sample
        names, limits = np.array(list(COLOR_JITTER)), np.array(list(COLOR_JITTER.values()))
        order = rng.random((count, len(names))).argsort(axis=1)
        jitter = rng.uniform(-1, 1, (count, len(names))) * limits
        rows = np.arange(count)
        return [(names[order[:, k]], jitter[rows, order[:, k]]) for k in range(len(names))]
    wide = augmentation.policy == "trivialaugment"
    table = TRIVIALAUGMENT if wide else RANDAUGMENT
    steps = []
    for _ in range(1 if wide else augmentation.num_ops):
        chosen = rng.integers(0, len(table), count)
        bins = rng.integers(0, MAGNITUDE_BINS, count)
        if not wide:
            bins = np.full(count, augmentation.magnitude)
        signs = np.where(rng.random(count) < 0.5, -1.0, 1.0)
        strength = np.zeros(count)
        for number, (name, (limit, signed)) in enumerate(table.items()):
            mine = chosen == number
            if not wide and name.startswith("translate"):
                limit *= width if name == "translate_x" else height
            strength[mine] = (limit * bins * (signs if signed else 1) / (MAGNITUDE_BINS - 1))[mine]
        steps.append((np.array(list(table))[chosen], strength))
    return steps


def draw_rectangles(
    rng: np.random.Generator, probability: float, count: int, height: int, width: int
) -> Numbers:
    """(4, count): top, bottom, left, right of what is erased (Zhong et al. 2020); often nothing.

    Area 2-33 % of the image, aspect 0.3-3.3, the first of ten draws that fits.
    """
    tries = 10
    area = height * width * rng.uniform(0.02, 0.33, (count, tries))
    aspect = np.exp(rng.uniform(math.log(0.3), math.log(3.3), (count, tries)))
    rows, columns = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (rows < height) & (columns < width)
    first = np.arange(count), fits.argmax(axis=1)
    # no rectangle where nothing fits or the sample is not chosen
    chosen = fits.any(axis=1) & (rng.random(count) < probability)
    rows, columns = rows[first] * chosen, columns[first] * chosen
    top = np.floor(rng.random(count) * (height - rows + 1))
    left = np.floor(rng.random(count) * (width - columns + 1))
    return np.stack([top, top + rows, left, left + columns])


def draw_mixing(
    rng: np.random.Generator, augmentation: Augmentation, count: int, height: int, width: int
) -> list[npt.NDArray[np.generic]]:
    """Rows (count,): partner, own weight and, for CutMix, the box that comes from the partner.

    CutMix: Yun et al. 2019; mixup: Zhang et al. 2018.
    """
    partner = rng.permutation(count)
    weight = rng.beta(augmentation.mixing_alpha, augmentation.mixing_alpha, count)
    if augmentation.mixing == "mixup":
        return [partner, weight]
    side = np.sqrt(1 - weight)
    rows, columns = (height * side).astype(np.int64), (width * side).astype(np.int64)
    y, x = rng.integers(0, height, count), rng.integers(0, width, count)
    top, bottom = (y - rows // 2).clip(0, height), (y + rows // 2).clip(0, height)
    left, right = (x - columns // 2).clip(0, width), (x + columns // 2).clip(0, width)
    # the weight is that of the pixels really kept, after the box was cut at the border
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return [partner, weight, top, bottom, left, right]
