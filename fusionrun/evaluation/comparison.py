"""Fusion and its alternatives on the same images: from a row's predictions to what is reported.

Whatever is chosen or fitted (the best expert, weights, temperatures, the best alternative) is so
on validation; the test set is only measured. Accuracies and calibration errors are percent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Self

from torch import Tensor

from fusionrun.evaluation.alternatives import (
    ALTERNATIVES,
    FUSED,
    METHODS,
    NOTHING_CHOSEN,
    Choice,
    Method,
    Stage,
    scores_by_method,
)
from fusionrun.evaluation.predictions import HeadLogits, Predictions
from fusionrun.evaluation.schema import (
    Calibrated,
    Contributions,
    Cost,
    Difference,
    ExpertResult,
    MethodResult,
    PathGradients,
    PerClass,
    RowResult,
    name_row,
)
from fusionrun.evaluation.statistics.expert_diversity import (
    attribution,
    disagreement,
    dominance,
    gain_per_class,
    leave_one_expert_out,
    oracle_accuracy,
)
from fusionrun.evaluation.statistics.metrics import (
    accuracy,
    apply_temperature,
    correct,
    fit_mixture_weights,
    fit_temperature,
    losses,
    measure,
    per_class_accuracy,
    percent,
    reliability,
)
from fusionrun.evaluation.statistics.significance import bootstrap_difference, mcnemar
from fusionrun.study.rows import Row


@dataclass(frozen=True)
class Answers:
    """A method's log-probabilities, made when asked for: all methods' together take room."""

    method: Method
    test: Callable[[], Tensor]  # (N, C)
    validation: Callable[[], Tensor]  # (V, C)

    @classmethod
    def of(cls, method: Method, predictions: Predictions, choice: Choice = NOTHING_CHOSEN) -> Self:
        test, validation = (
            partial(method.formula.log_probabilities, heads.of(method.stage), choice)
            for heads in (predictions.test, predictions.validation)
        )
        return cls(method, test, validation)


def control_answers(row: Row, predictions: Predictions) -> Answers:
    """What a control row answers, for the rows that it controls."""
    answers = Answers.of(METHODS[row.control or row.fusion], predictions)
    # made at once: all heads of all controls would take room until the last row
    test, validation = answers.test(), answers.validation()
    return replace(answers, test=lambda: test, validation=lambda: validation)


def accuracies_by_method(
    answers: HeadLogits,
    val_accuracies: Sequence[float] = (),
    before_val_accuracies: Sequence[float] = (),
) -> dict[str, float | list[float]]:
    """What a manifest says of these images, in percent: by method, then expert by expert.

    The best expert is chosen by its *validation* accuracy: choosing it on these images would
    flatter it. Weights aren't in it: only logits of validation can fit them. Experts without such
    accuracies are left out. Raises ValueError.
    """
    chosen_by: dict[Stage, Sequence[float]] = {
        "after": val_accuracies,
        "before": before_val_accuracies,
    }
    best = {stage: known.index(max(known)) for stage, known in chosen_by.items() if known}
    logits: dict[Stage, Tensor] = {stage: answers.of(stage) for stage in ("fusion", *best)}
    found: dict[str, float | list[float]] = {
        method.key: accuracy(scores, answers.labels)
        for method, scores in scores_by_method(logits, best).items()
    }
    for stage in best:
        each = logits[stage].unbind(dim=1)
        key = "experts" if stage == "after" else "before_experts"
        found[key] = [accuracy(of_expert, answers.labels) for of_expert in each]
    return found


@dataclass(frozen=True)
class Experts:
    """The experts of one stage: how good they are, and what validation chose among them."""

    accuracies: list[float]  # on the test set, E
    val_accuracies: list[float]
    weights: Tensor  # (E,)

    @classmethod
    def of(cls, predictions: Predictions, stage: Stage) -> Self:
        accuracies, val_accuracies = (
            [accuracy(logits, answers.labels) for logits in answers.of(stage).unbind(dim=1)]
            for answers in (predictions.test, predictions.validation)
        )
        validation = predictions.validation
        weights = fit_mixture_weights(validation.of(stage), validation.labels)
        return cls(accuracies, val_accuracies, weights)

    @property
    def choice(self) -> Choice:
        return Choice(self.val_accuracies.index(max(self.val_accuracies)), self.weights)


def compare_row(
    row: Row,
    predictions: Predictions,
    controls: Sequence[Answers] = (),
    *,
    epoch: int,
    cost: Cost,
) -> RowResult:
    """A row beside its alternatives and its controls; its seed is also the bootstrap's.

    `controls` cost a training of their own, so none of them can be the best alternative. Raises
    ValueError when a network's answers aren't finite.
    """
    labels = predictions.test.labels
    after, before = Experts.of(predictions, "after"), Experts.of(predictions, "before")
    fused = Answers.of(FUSED, predictions)
    alternatives = [
        Answers.of(method, predictions, (after if method.stage == "after" else before).choice)
        for method in ALTERNATIVES
    ]
    best = best_on_validation(alternatives, predictions.validation.labels)
    scores = fused.test(), best.test()
    return RowResult(
        **name_row(row),
        epoch=epoch,
        methods=tuple(
            measure_method(answers, fused, predictions, seed=row.seed)
            for answers in (fused, *alternatives, *controls)
        ),
        weights=tuple(after.weights.tolist()),
        before_weights=tuple(before.weights.tolist()),
        experts=tuple(
            ExpertResult(k, *of)
            for k, of in enumerate(
                zip(
                    after.accuracies,
                    before.accuracies,
                    after.val_accuracies,
                    before.val_accuracies,
                    strict=True,
                )
            )
        ),
        per_class=PerClass(
            fused=per_class_accuracy(scores[0], labels),
            best_alternative=per_class_accuracy(scores[1], labels),
            gain=gain_per_class(*scores, labels),
        ),
        best_alternative_key=best.method.key,
        contributions=expert_contributions(predictions),
        cost=cost,
    )


def best_on_validation(alternatives: Sequence[Answers], labels: Tensor) -> Answers:
    """The most accurate on validation (V,); of equals the one with the smallest loss there."""

    def rank(answers: Answers) -> tuple[float, float]:
        scores = answers.validation()
        return accuracy(scores, labels), -float(losses(scores, labels).mean())

    return max(alternatives, key=rank)


def measure_method(
    answers: Answers, fused: Answers, predictions: Predictions, *, seed: int
) -> MethodResult:
    """What is said of one method; of all but the fused one, how much better that is."""
    method, labels, scores = answers.method, predictions.test.labels, answers.test()
    temperature = fit_temperature(answers.validation(), predictions.validation.labels)
    tempered = apply_temperature(scores, temperature)
    calibrated = measure(tempered, labels)
    right = correct(scores, labels)
    return MethodResult(
        key=method.key,
        label=method.label,
        stage=method.stage,
        **asdict(measure(scores, labels)),
        temperature=temperature,
        calibrated=Calibrated(
            calibrated.nll, calibrated.ece, calibrated.brier, reliability(tempered, labels)
        ),
        reliability=reliability(scores, labels),
        difference=None
        if answers is fused
        else compare_right(correct(fused.test(), labels), right, seed=seed),
    )


def compare_right(fused: Tensor, other: Tensor, *, seed: int) -> Difference:
    """Points of accuracy between (N,) right answers, and whether that could be luck."""
    interval = bootstrap_difference(100 * fused.double(), 100 * other.double(), seed=seed)
    return Difference(*interval, *mcnemar(fused, other))


def expert_contributions(predictions: Predictions) -> Contributions:
    """What each expert brings, and whether the fusion needs more than one."""
    labels = predictions.test.labels
    fused, experts = predictions.test.of("fusion")[:, 0], predictions.test.of("after")
    dominant = dominance(fused, experts)
    k, alarm = dominant.carried_by, ""
    if k is not None:
        alarm = (
            f"expert {k} carries everything: of the {dominant.contested} images on which the "
            f"experts differ, the fused model answers {dominant.agreement[k]:.1f} % as this expert "
            "does"
        )
    gradients = (
        PathGradients(None, None) if math.isnan(share) else PathGradients(100 * share, cosine)
        for share, cosine in predictions.gradients.tolist()
    )
    return Contributions(
        disagreement=tuple(map(tuple, (disagreement(experts) / 100).tolist())),
        oracle=oracle_accuracy(experts, labels),
        without_expert=leave_one_expert_out(experts, labels) if experts.shape[1] > 1 else (),
        attribution=attribution(fused, experts, labels),
        dominance=dominant,
        fused_without_expert=tuple(
            percent(classes == labels) for classes in predictions.without.unbind(dim=1)
        ),
        attention=tuple(predictions.attention.tolist()) or None,
        gradients=tuple(gradients) or None,
        alarm=alarm,
    )
