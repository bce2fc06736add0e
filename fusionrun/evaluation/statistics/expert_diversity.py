"""What the experts bring to a fusion, seen in their answers alone. All figures are percent."""

import torch
from torch import Tensor

from fusionrun.evaluation.schema import Attribution, Dominance
from fusionrun.evaluation.statistics.metrics import correct, per_class_accuracy, percent
from fusionrun.training.scores import check_scores, mix_probabilities

CARRIED = 98.0  # percent of the contested samples
ENOUGH = 50  # contested samples; among fewer, 98 % is all of them and could be luck


def disagreement(expert_logits: Tensor) -> Tensor:
    """Percent of samples that two experts answer differently: (N, E, C) -> (E, E).

    Raises ValueError.
    """
    answers = _answers(expert_logits)
    return 100 * (answers.unsqueeze(2) != answers.unsqueeze(1)).double().mean(dim=0)


def oracle_accuracy(expert_logits: Tensor, labels: Tensor) -> float:
    """Percent of samples that any expert (N, E, C) gets right: no choice among them has more.

    Raises ValueError.
    """
    return percent(_right(expert_logits, labels).any(dim=1))


def gain_per_class(fused: Tensor, alternative: Tensor, labels: Tensor) -> tuple[float | None, ...]:
    """Points of each class's accuracy that (N, C) fused scores have over an alternative's.

    None: no samples of that class. Raises ValueError.
    """
    if fused.shape != alternative.shape:
        raise ValueError(
            f"expected scores of one shape, found {tuple(fused.shape)} and "
            f"{tuple(alternative.shape)}"
        )
    accuracies = (per_class_accuracy(scores, labels) for scores in (fused, alternative))
    return tuple(
        None if one is None or other is None else one - other
        for one, other in zip(*accuracies, strict=True)
    )


def leave_one_expert_out(expert_logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Accuracy of the mean of probabilities when expert k is left out, for every k.

    Raises ValueError: also for a single expert.
    """
    experts = check_scores("expert logits", expert_logits, "NEC").shape[1]
    if experts < 2:
        raise ValueError("expert logits: expected at least two experts to leave one out, found 1")
    accuracies = []
    for left_out in range(experts):
        others = [k for k in range(experts) if k != left_out]
        accuracies.append(percent(correct(mix_probabilities(expert_logits[:, others]), labels)))
    return tuple(accuracies)


def attribution(fused: Tensor, expert_logits: Tensor, labels: Tensor) -> Attribution:
    """Which experts the right answers of (N, C) fused scores hang on. Raises ValueError."""
    right = _right(expert_logits, labels)[correct(fused, labels)]
    if not len(right):
        return Attribution((None,) * right.shape[1], None)
    knowing = right.sum(dim=1)
    only = [percent(of_expert & (knowing == 1)) for of_expert in right.unbind(dim=1)]
    return Attribution(tuple(only), percent(knowing == 0))


def dominance(fused: Tensor, expert_logits: Tensor) -> Dominance:
    """Agreement of (N, C) fused answers with each expert's on the contested samples.

    Contested: not all experts answer the same. An expert carries everything when the fused model
    answers as it does on at least 98 % of them, and they are at least 50: where there is something
    to decide, that expert alone would decide the same. Of several it is the one that agrees most,
    of equals the first. Raises ValueError.
    """
    answers = _answers(expert_logits)
    final = check_scores("fused scores", fused, "NC").argmax(dim=-1)
    if len(final) != len(answers):
        raise ValueError(
            f"fused scores: expected {len(answers)} samples, as the experts', found {len(final)}"
        )
    contested = (answers != answers[:, :1]).any(dim=1)
    count = int(contested.sum())
    if not count:
        return Dominance(0, (None,) * answers.shape[1], None)
    agreement = [percent(of_expert == final[contested]) for of_expert in answers[contested].T]
    most = max(agreement)
    alarm = count >= ENOUGH and most >= CARRIED
    return Dominance(count, tuple(agreement), agreement.index(most) if alarm else None)


def _answers(expert_logits: Tensor) -> Tensor:
    return check_scores("expert logits", expert_logits, "NEC").argmax(dim=-1)


def _right(expert_logits: Tensor, labels: Tensor) -> Tensor:
    """(N, E, C), (N,) -> (N, E) bool."""
    experts = check_scores("expert logits", expert_logits, "NEC").unbind(dim=1)
    return torch.stack([correct(logits, labels) for logits in experts], dim=1)
