"""One temperature, fitted on validation, makes confidences honest and changes no answer."""

import math

from torch import Tensor

from fusionrun.evaluation.statistics.metrics import check_scores, own_scores

LIMITS = (0.05, 20.0)  # a few samples, all right or all wrong, would ask for 0 or infinity
HALVINGS = 50  # of the range between: what is left is below a double's precision


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature, within LIMITS, at which (N, C) scores have the smallest loss.

    `scores` are logits or log-probabilities, a mixture's too. The loss is convex in 1 / T
    (Guo et al., "On calibration of modern neural networks", 2017), so bisection of its slope
    finds the minimum. Where none is better than another, it is 1. Fit on validation, never on
    what is reported. Raises ValueError.
    """
    scores = check_scores("scores", scores, "NC")
    margins = scores - own_scores(scores, labels).unsqueeze(1)
    low, high = LIMITS
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)  # 1 at first
        # of the loss in 1 / T: how much sharper would cost
        slope = float(((margins / middle).softmax(dim=1) * margins).sum(dim=1).mean())
        if slope == 0:
            return middle
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.sqrt(low * high)


def apply_temperature(scores: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (N, C) of logits or log-probabilities divided by `temperature`.

    Raises ValueError: also for a temperature that isn't positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive number, found {temperature}")
    return (check_scores("scores", scores, "NC") / temperature).log_softmax(dim=-1)
