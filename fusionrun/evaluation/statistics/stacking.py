"""Stacking: a multinomial logistic regression on what the experts answer, fitted on validation.

Wolpert, "Stacked generalization", 1992. Its penalty is on the distance from the mean of the
experts' logits, not from zero: validation has too few images for E x C x C weights, and classes
that it lacks would never be answered again. No number is drawn at random.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusionrun.evaluation.statistics.metrics import fit_temperature, own_scores
from fusionrun.training.scores import check_scores

FLOOR = -13.8  # nats, a probability of one in a million: less says nothing more
STRENGTHS = (1e4, 3e3, 1e3, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)  # of the penalty
FOLDS = 5  # of validation: each is answered by what was fitted on the others
ITERATIONS = 200  # of L-BFGS, at most
# multiplications of a pass over validation; all fits together are some hundred passes
MOST_WORK = 1_000_000_000


@dataclass(frozen=True)
class Stacking:
    """A fitted regression, and what it answers on validation without having seen the image."""

    weights: Tensor  # (E * C + 1, C), the last row added to every image's scores
    strength: float  # of the penalty: by the smallest loss of `held_out`
    held_out: Tensor  # (V, C) log-probabilities of the validation images, each fold's by the rest

    def scores(self, expert_logits: Tensor) -> Tensor:
        """Logits: (N, E, C) -> (N, C). Raises ValueError."""
        return stacking_inputs(expert_logits) @ self.weights


def stacking_inputs(expert_logits: Tensor) -> Tensor:
    """What the regression reads: (N, E, C) -> (N, E * C + 1), the last column being ones.

    Log-probabilities, none below FLOOR, less their mean over the classes. Raises ValueError.
    """
    each = check_scores("expert logits", expert_logits, "NEC").log_softmax(dim=-1)
    each = each.clamp(min=FLOOR)
    each = (each - each.mean(dim=-1, keepdim=True)).flatten(start_dim=1)
    return torch.cat([each, each.new_ones(len(each), 1)], dim=1)


def is_too_large(images: int, experts: int, classes: int) -> bool:
    """Whether fitting on so many images of validation would take hours."""
    return images * experts * classes**2 > MOST_WORK


def fit_stacking(expert_logits: Tensor, labels: Tensor) -> Stacking:
    """The regression for experts that answer (V, E, C) on validation images with `labels` (V,).

    Its loss is the sum over images of the cross-entropy, and strength / 2 times the squared
    distance of the weights from those that average the experts (see `tempered`). The strength is
    the one with the smallest cross-entropy on held-out folds, from the strongest on until a weaker
    one is no better; with it all of validation is fitted. Classes that validation lacks keep about
    what the average gives them. Raises ValueError.
    """
    inputs = stacking_inputs(expert_logits)
    own_scores(expert_logits, labels)  # refuses labels that don't fit
    _, experts, classes = expert_logits.shape
    one = torch.eye(classes, dtype=inputs.dtype) / experts
    mean = torch.cat([*[one] * experts, torch.zeros_like(one[:1])])
    # every fold has its part of each class
    fold = torch.empty_like(labels)
    fold[labels.argsort(stable=True)] = torch.arange(len(labels)) % FOLDS
    averages = [tempered(mean, inputs[fold != k], labels[fold != k]) for k in range(FOLDS)]
    weights = list(averages)
    chosen, least, answers = STRENGTHS[0], math.inf, torch.empty(0)
    for strength in STRENGTHS:
        held_out = torch.empty(len(labels), classes, dtype=inputs.dtype)
        for k in range(FOLDS):
            seen = fold != k
            weights[k] = fit_weights(inputs[seen], labels[seen], averages[k], strength, weights[k])
            held_out[~seen] = (inputs[~seen] @ weights[k]).log_softmax(dim=-1)
        loss = float(F.nll_loss(held_out, labels))
        if loss >= least:
            break
        chosen, least, answers = strength, loss, held_out
    average = tempered(mean, inputs, labels)
    return Stacking(fit_weights(inputs, labels, average, chosen, average), chosen, answers)


def tempered(mean: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """The weights that average the experts, at the temperature that fits these images best."""
    return mean / fit_temperature(inputs @ mean, labels) if len(labels) else mean


def fit_weights(
    inputs: Tensor, labels: Tensor, average: Tensor, strength: float, start: Tensor
) -> Tensor:
    """The weights (E * C + 1, C) with the smallest loss; without images they're the `average`."""
    weights = start.clone()
    # strongly convex: the minimum is at most the gradient over the strength away
    search = torch.optim.LBFGS(
        [weights],
        max_iter=ITERATIONS,
        tolerance_grad=1e-4 * strength,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        scores = inputs @ weights
        distance = weights - average
        error = scores.softmax(dim=-1) - F.one_hot(labels, scores.shape[1])
        weights.grad = inputs.T @ error + strength * distance
        entropy = F.cross_entropy(scores, labels, reduction="sum")
        return float(entropy + strength / 2 * distance.square().sum())

    search.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()
