"""Numbers about saved predictions. Accuracies, confidences and calibration errors are percent.

Everything to be measured is turned into log-probabilities (N, C) first (see `scores`). All of it
is computed in double precision, so that a near tie or a tiny probability isn't rounded away. One
temperature, fitted on validation, makes confidences honest and changes no answer.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionrun.evaluation.schema import Bin
from fusionrun.training.scores import UNNORMALISED, check_scores

BINS = 15  # of confidence, as Guo et al.
GAP = 1e-7  # in nats: how close to the best mixture is close enough
TEMPERATURES = (0.05, 20.0)  # a few samples, all right or all wrong, would ask for 0 or infinity
HALVINGS = 50  # of the range between: what is left is below a double's precision


@dataclass(frozen=True)
class Metrics:
    """What is said about one set of predictions."""

    top1: float  # percent
    top5: float | None  # percent; None with fewer than six classes, where it says nothing
    nll: float  # mean negative log-likelihood in nats
    ece: float  # expected calibration error in percent
    brier: float  # squared error summed over classes, 0 to 2


def measure(log_probs: Tensor, labels: Tensor) -> Metrics:
    """Metrics of log-probabilities (N, C) at labels (N,).

    The calibration error is the mean distance of confidence and accuracy over `reliability`'s
    bins, weighted by samples. Brier score: Brier, "Verification of forecasts expressed in terms
    of probability", 1950.
    Raises ValueError: wrong shapes or labels, values that aren't finite, or rows that are not
    log-probabilities (raw logits, probabilities).
    """
    nll = losses(log_probs, labels).mean()
    error = log_probs.double().exp()
    error[torch.arange(len(labels)), labels] -= 1
    gaps = sum(
        level.samples * abs(level.accuracy - level.confidence)
        for level in reliability(log_probs, labels)
        if level.confidence is not None and level.accuracy is not None
    )
    return Metrics(
        top1=percent(correct(log_probs, labels)),
        top5=percent(correct(log_probs, labels, top=5)) if log_probs.shape[1] > 5 else None,
        nll=float(nll),
        ece=gaps / len(labels),
        brier=float(error.square().sum(dim=1).mean()),
    )


def correct(scores: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """Whether the label is among the `top` largest of (N, C) scores: (N,) bool.

    Of equal scores the first class counts as larger, as in argmax. Raises ValueError.
    """
    scores = check_scores("scores", scores, "NC")
    own = own_scores(scores, labels).unsqueeze(1)
    earlier = torch.arange(scores.shape[1], device=labels.device) < labels.unsqueeze(1)
    ahead = (scores > own) | ((scores == own) & earlier)
    return ahead.sum(dim=1) < top


def losses(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each sample in nats: (N, C), (N,) -> (N,). Raises ValueError."""
    return -own_scores(_check_normalised(log_probs), labels)


def reliability(log_probs: Tensor, labels: Tensor) -> tuple[Bin, ...]:
    """The reliability diagram: confidence of the answer in 15 bins of equal width, 0 to 100 %.

    A bin holds its upper edge but not its lower one (Guo et al., "On calibration of modern neural
    networks", 2017). Raises ValueError.
    """
    confidence = _check_normalised(log_probs).amax(dim=1).exp()
    right = correct(log_probs, labels).double()
    edges = torch.arange(BINS + 1, dtype=torch.float64) / BINS
    # rounding can put certainty a hair above one
    index = (torch.bucketize(confidence, edges) - 1).clamp(max=BINS - 1)
    count = torch.bincount(index, minlength=BINS)
    sums = (torch.bincount(index, of, minlength=BINS) for of in (confidence, right))
    means = (_percents(of, count) for of in sums)
    return tuple(Bin(*values) for values in zip(count.tolist(), *means, strict=True))


def per_class_accuracy(scores: Tensor, labels: Tensor) -> tuple[float | None, ...]:
    """Percent right of each class's samples, scores (N, C); None: no samples. Raises ValueError."""
    right = labels[correct(scores, labels)]
    return _percents(*(torch.bincount(of, minlength=scores.shape[1]) for of in (right, labels)))


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Percent of (N, C) scores whose answer is the label (N,). Raises ValueError."""
    return percent(correct(scores, labels))


def percent(right: Tensor) -> float:
    """Share of a bool tensor (N,) that is true."""
    return 100 * float(right.double().mean())


def fit_mixture_weights(
    expert_logits: Tensor, labels: Tensor, *, iterations: int = 10_000
) -> Tensor:
    """Convex weights (E,) with which `mix_probabilities` has the smallest loss on these samples.

    Expectation maximisation from equal weights: the loss never rises and there is no rate to
    choose. By concavity no weights are better by more than max(gain) - 1 nats, so it stops where
    that is 1e-7; after T iterations the distance is at most log(E) / T in any case. Fit on
    validation, never on what is reported. Raises ValueError.
    """
    each = check_scores("expert logits", expert_logits, "NEC").log_softmax(dim=-1)
    own = own_scores(each, labels)  # (N, E)
    # a factor per sample changes no weight, and this one keeps every sample above zero
    likelihood = (own - own.amax(dim=1, keepdim=True)).exp()
    weights = likelihood.new_full((own.shape[1],), 1 / own.shape[1])
    for _ in range(iterations):
        gain = likelihood.T @ (1 / (likelihood @ weights)) / len(labels)
        if gain.max() <= 1 + GAP:
            break
        weights = weights * gain
    return weights / weights.sum()


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature, within TEMPERATURES, at which (N, C) scores have the smallest loss.

    `scores` are logits or log-probabilities, a mixture's too. The loss is convex in 1 / T
    (Guo et al., "On calibration of modern neural networks", 2017), so bisection of its slope
    finds the minimum. Where none is better than another, it is 1. Fit on validation, never on
    what is reported. Raises ValueError.
    """
    scores = check_scores("scores", scores, "NC")
    margins = scores - own_scores(scores, labels).unsqueeze(1)
    low, high = TEMPERATURES
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


def own_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """The label's entry: (N, ..., C), (N,) -> (N, ...). Raises ValueError: unfit labels."""
    count, classes = scores.shape[0], scores.shape[-1]
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels: expected shape ({count},) of torch.int64, "
            f"found {tuple(labels.shape)} of {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels: expected 0 to {classes - 1}, found {int(labels.min())} to {int(labels.max())}"
        )
    return scores[torch.arange(count, device=labels.device), ..., labels]


def _check_normalised(log_probs: Tensor) -> Tensor:
    log_probs = check_scores("log-probabilities", log_probs, "NC")
    total = log_probs.logsumexp(dim=1)
    worst = int(total.abs().argmax())
    if total[worst].abs() > UNNORMALISED:
        raise ValueError(
            "log-probabilities: expected rows whose probabilities sum to one, but sample "
            f"{worst} has exp({float(total[worst]):.4g}); give logits to log_probabilities first"
        )
    return log_probs


def _percents(sums: Tensor, counts: Tensor) -> tuple[float | None, ...]:
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return tuple(100 * total / count if count else None for total, count in pairs)
