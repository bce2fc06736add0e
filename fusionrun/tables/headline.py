"""The question's answer by name, and how many digits it carries: the same wherever it is told.

Declared beforehand: whether fusion helps is asked of the mean of the experts' probabilities, which
costs nothing and is hard to beat. Other comparisons stand beside it under their own names.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from fusionrun.common.text import plural

AVERAGING = "mean_probabilities"  # keys of the methods that fused is compared with
BEST_EXPERT = "best_expert"
GAIN = "gain over averaging"  # fused minus the mean of the experts' probabilities, in points
GAIN_KEY = "gain_over_averaging"  # in files
VS_BEST_EXPERT = "vs best expert"  # the best on validation
VS_BEST_ALTERNATIVE = "vs best alternative"  # likewise
ENOUGH = 500  # validation images that choices can rest on
SIGNIFICANT = 0.05  # a p-value below it, after correction


def digits(images: int | None) -> int:
    """After the decimal point of a percentage of `images`: its last digit is worth about an image.

    None of 60 images, one of 1,000, two of 10,000 and more; also where their number isn't known.
    """
    return 2 if images is None else min(max(round(math.log10(max(images, 1) / 100)), 0), 2)


Outcome = Literal["ahead", "open", "behind"]


class Margin(NamedTuple):
    """Points between two accuracies, with a 95 % interval where one is known."""

    points: float
    low: float | None = None
    high: float | None = None

    @property
    def outcome(self) -> Outcome:
        """By the interval alone: does it leave out zero, and on which side?"""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "open"
        return "ahead" if self.low > 0 else "behind"

    def text(self, digits: int) -> str:
        """+1.2 (-0.3 to +2.7); the interval on a line of its own, where lines matter."""
        points = signed(self.points, digits)
        if self.low is None or self.high is None:
            return points
        return f"{points}\n({signed(self.low, digits)} to {signed(self.high, digits)})"


def signed(points: float, digits: int) -> str:
    """Nothing has no sign of less."""
    text = f"{points:+.{digits}f}"
    return text.replace("-", "+") if float(text) == 0 else text


def too_few(images: int) -> str:
    """A warning where so few images of validation choose; else nothing."""
    if images >= ENOUGH:
        return ""
    return (
        f"validation has {images} images, one of them is {100 / max(images, 1):.2g} points: what "
        f"it chooses (epochs, best experts, weights) is partly luck with fewer than {ENOUGH}"
    )


def types_note(fusions: Iterable[str], recipe: str) -> str:
    """What the fusion types that are compared differ in, by the recipe's fusion.recipe; "": one."""
    if len({*fusions}) < 2:
        return ""
    if recipe == "shared":
        return (
            "The fusion types were trained by one shared recipe, on the same batches and "
            "augmentation (fusion.recipe: shared): what differs is what they compute."
        )
    return (
        "Each fusion type was trained by its own published recipe (fusion.recipe: per_type): types "
        "differ in rates, augmentation and smoothing, too, where the study's recipe sets none."
    )


def verdict(gains: Sequence[Margin], digits: int) -> str:
    """What the rows' gains over averaging come to, in a sentence that says no more than they do."""
    known = [gain for gain in gains if gain.low is not None]
    if not known:
        return f"No row has a {GAIN} with an interval."
    lowest, highest = (end(known).text(digits).replace("\n", " ") for end in (min, max))
    if len(known) == 1:
        zero = {"ahead": "above zero", "open": "which holds zero", "behind": "below zero"}
        found = f"{lowest} points, {zero[known[0].outcome]}, in 1 row"
        return f"{GAIN.capitalize()} with its 95 % interval: {found}."
    ahead, still, behind = (
        sum(gain.outcome == each for gain in known) for each in ("ahead", "open", "behind")
    )
    return (
        f"{GAIN.capitalize()}: the 95 % interval lies above zero in {ahead} of "
        f"{plural(len(known), 'row')}, below in {behind}, and holds zero in {still}; "
        f"from {lowest} to {highest} points."
    )


def after_correction(gains: Sequence[tuple[float, float]]) -> str:
    """What of the rows' (gain over averaging, corrected p) remains; nothing of a single row."""
    if len(gains) < 2:
        return ""
    found = [points for points, p in gains if p < SIGNIFICANT]
    ahead, behind = sum(points > 0 for points in found), sum(points < 0 for points in found)
    return (
        f"After Holm's correction over {len(gains):,} rows (p below {SIGNIFICANT}) it is ahead in "
        f"{ahead} and behind in {behind}."
    )


def beats_every(ahead: Sequence[str], rows: int, comparisons: int) -> str:
    """The rows that are `ahead` of every alternative and control after correction, by name."""
    if not rows:
        return ""
    family = f"after Holm's correction over all {plural(comparisons, 'comparison')}"
    if not ahead:
        return f"No row beats every alternative and control that it is compared with, {family}."
    return (
        f"{plural(len(ahead), 'row')} of {rows:,} {'beats' if len(ahead) == 1 else 'beat'} every "
        f"alternative and control compared with, {family}: {', '.join(ahead)}."
    )
