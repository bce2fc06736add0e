"""Numbers about saved predictions. Accuracies, confidences and calibration errors are percent.

Everything to be measured is turned into log-probabilities (N, C) first: a model's own by
`log_probabilities`, several experts' together by `mix_probabilities` or `mix_logits`. All of it
is computed in double precision, so that a near tie or a tiny probability isn't rounded away.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15  # of confidence, as Guo et al.
UNNORMALISED = 1e-4  # in nats: more than float32 loses in a log-softmax
GAP = 1e-7  # in nats: how close to the best mixture is close enough


@dataclass(frozen=True)
class Metrics:
    """What is said about one set of predictions."""

    top1: float  # percent
    top5: float | None  # percent; None with fewer than six classes, where it says nothing
    nll: float  # mean negative log-likelihood in nats
    ece: float  # expected calibration error in percent
    brier: float  # squared error summed over classes, 0 to 2


class Bin(NamedTuple):
    """Samples of like confidence; no means without samples."""

    samples: int
    confidence: float | None  # mean, percent
    accuracy: float | None  # percent


def measure(log_probs: Tensor, labels: Tensor) -> Metrics:
    """Metrics of log-probabilities (N, C) at labels (N,).

    Brier score: Brier, "Verification of forecasts expressed in terms of probability", 1950.
    Raises ValueError: wrong shapes or labels, values that aren't finite, or rows that are not
    log-probabilities (raw logits, probabilities).
    """
    nll = losses(log_probs, labels).mean()
    error = log_probs.double().exp()
    error[torch.arange(len(labels)), labels] -= 1
    return Metrics(
        top1=percent(correct(log_probs, labels)),
        top5=percent(correct(log_probs, labels, top=5)) if log_probs.shape[1] > 5 else None,
        nll=float(nll),
        ece=_calibration_error(reliability(log_probs, labels)),
        brier=float(error.square().sum(dim=1).mean()),
    )


def correct(scores: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """Whether the label is among the `top` largest of (N, C) scores: (N,) bool.

    Of equal scores the first class counts as larger, as in argmax. Raises ValueError.
    """
    scores = check_scores("scores", scores, "NC")
    own = own_scores(scores, labels).unsqueeze(1)
    earlier = torch.arange(scores.shape[1]) < labels.unsqueeze(1)
    ahead = (scores > own) | ((scores == own) & earlier)
    return ahead.sum(dim=1) < top


def losses(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each sample in nats: (N, C), (N,) -> (N,). Raises ValueError."""
    return -own_scores(_check_normalised(log_probs), labels)


def reliability(log_probs: Tensor, labels: Tensor) -> list[Bin]:
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
    return [Bin(*values) for values in zip(count.tolist(), *means, strict=True)]


def per_class_accuracy(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Percent right of each class's samples, scores (N, C); None: no samples. Raises ValueError."""
    right = labels[correct(scores, labels)]
    return _percents(*(torch.bincount(of, minlength=scores.shape[1]) for of in (right, labels)))


def percent(right: Tensor) -> float:
    """Share of a bool tensor (N,) that is true."""
    return 100 * float(right.double().mean())


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax of (N, C) logits in double precision. Raises ValueError."""
    return check_scores("logits", logits, "NC").log_softmax(dim=-1)


def mix_logits(expert_logits: Tensor) -> Tensor:
    """Log-probabilities of the experts' mean logits: (N, E, C) -> (N, C). Raises ValueError."""
    return log_probabilities(check_scores("expert logits", expert_logits, "NEC").mean(dim=1))


def mix_probabilities(expert_logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Log of the experts' weighted mean probability: (N, E, C), (E,) -> (N, C).

    Without `weights` all experts weigh the same. Raises ValueError.
    """
    each = check_scores("expert logits", expert_logits, "NEC").log_softmax(dim=-1)
    experts = each.shape[1]
    if weights is None:
        return each.logsumexp(dim=1) - math.log(experts)
    weights = weights.double()
    convex = weights.shape == (experts,) and bool((weights >= 0).all())
    if not convex or not abs(float(weights.sum()) - 1) <= UNNORMALISED:
        raise ValueError(
            f"weights: expected {experts}, none negative, that sum to one, found {weights.tolist()}"
        )
    return (each + weights.log().unsqueeze(-1)).logsumexp(dim=1)


def fit_weights(expert_logits: Tensor, labels: Tensor, *, iterations: int = 10_000) -> Tensor:
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


def check_scores(name: str, scores: Tensor, dims: str) -> Tensor:
    """`scores` in double precision; `dims` names its dimensions, a letter each: "NC" or "NEC".

    Raises ValueError: another shape, nothing in it, fewer than two classes, not-a-number or
    infinity.
    """
    if scores.dim() != len(dims) or not scores.numel() or scores.shape[-1] < 2:
        raise ValueError(
            f"{name}: expected shape ({', '.join(dims)}) of at least one sample and two classes, "
            f"found {tuple(scores.shape)}"
        )
    wrong = ~scores.isfinite().flatten(start_dim=1).all(dim=1)
    if wrong.any():
        raise ValueError(
            f"{name}: {int(wrong.sum())} of {len(wrong)} samples hold values that are not finite, "
            f"the first is sample {int(wrong.int().argmax())}; the model that made them diverged"
        )
    return scores.double()


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
    return scores[torch.arange(count), ..., labels]


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


def _calibration_error(bins: list[Bin]) -> float:
    """Mean distance of confidence and accuracy, weighted by samples."""
    gaps = sum(
        samples * abs(accuracy - confidence)
        for samples, confidence, accuracy in bins
        if confidence is not None and accuracy is not None
    )
    return gaps / sum(samples for samples, _, _ in bins)


def _percents(sums: Tensor, counts: Tensor) -> list[float | None]:
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return [100 * total / count if count else None for total, count in pairs]
