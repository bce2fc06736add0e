"""The question's answer by name, and how many digits it carries: the same wherever it is told.

Declared beforehand: whether fusion helps is asked of the mean of the experts' probabilities, which
costs nothing and is hard to beat. Other comparisons stand beside it under their own names.
"""

import math

AVERAGING = "mean_probabilities"  # the method's key
GAIN = "gain over averaging"  # fused minus the mean of the experts' probabilities, in points
GAIN_KEY = "gain_over_averaging"  # in files
VS_BEST_EXPERT = "vs best expert"  # the best on validation
VS_BEST_ALTERNATIVE = "vs best alternative"  # likewise
ENOUGH = 500  # validation images that choices can rest on


def digits(images: int | None) -> int:
    """After the decimal point of a percentage of `images`: a last digit is worth an image or more.

    None of 60 images, one of 1,000, two of 10,000 and more; also where their number isn't known.
    """
    return 2 if images is None else min(max(math.floor(math.log10(max(images, 1) / 100)), 0), 2)


def too_few(images: int) -> str:
    """A warning where so few images of validation choose; else nothing."""
    if images >= ENOUGH:
        return ""
    return (
        f"validation has {images} images, one of them is {100 / max(images, 1):.2g} points: what "
        f"it chooses (epochs, best experts, weights) is partly luck with fewer than {ENOUGH}"
    )
