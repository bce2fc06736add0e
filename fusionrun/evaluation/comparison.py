"""Fusion and its alternatives on the same images: from a row's predictions to what is reported.

Whatever is chosen or fitted (the best expert, weights, temperatures, the best alternative) is so
on validation; the test set is only measured. Accuracies and calibration errors are percent.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fusionrun.evaluation.predictions import Answers, Predictions
from fusionrun.evaluation.statistics.calibration import apply_temperature, fit_temperature
from fusionrun.evaluation.statistics.expert_diversity import (
    Dominance,
    credit,
    disagreement,
    dominance,
    gain_per_class,
    oracle_accuracy,
    without_each_expert,
)
from fusionrun.evaluation.statistics.metrics import (
    correct,
    fit_weights,
    log_probabilities,
    losses,
    measure,
    mix_logits,
    mix_probabilities,
    per_class_accuracy,
    percent,
    reliability,
)
from fusionrun.evaluation.statistics.significance import bootstrap_difference, mcnemar, spread
from fusionrun.study.recipe import SINGLE
from fusionrun.study.rows import Row

FUSED = "fused"

# of control rows: what they are, and the answer (N, C) that counts among their heads' (N, H, C)
CONTROLS: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "frozen": ("experts frozen", lambda logits: log_probabilities(logits[:, 0])),
    "detached": ("experts without fusion", lambda logits: mix_probabilities(logits[:, 1:])),
    SINGLE: ("one network", lambda logits: log_probabilities(logits[:, 0])),
}


@dataclass(frozen=True)
class Contender:
    """One way to answer. Its log-probabilities are made when asked for: all of them take room."""

    key: str
    label: str
    stage: str  # fusion, after (tuned experts), before (as their own training left them), control
    test: Callable[[], Tensor]  # (N, C)
    validation: Callable[[], Tensor]  # (V, C)


@dataclass(frozen=True)
class Experts:
    """The experts of one stage, and what validation says of them."""

    test: Tensor  # logits (N, E, C)
    validation: Tensor  # (V, E, C)
    accuracies: list[float]  # on the test set, E
    val_accuracies: list[float]
    weights: Tensor  # (E,) fitted on validation

    @property
    def best(self) -> int:
        """Of equals the first."""
        return self.val_accuracies.index(max(self.val_accuracies))


def control_contender(row: Row, predictions: Predictions) -> Contender:
    """What a control row answers, for the rows that it controls."""
    words, way = CONTROLS[row.control or row.fusion]
    test, validation = (
        way(answers.logits) for answers in (predictions.test, predictions.validation)
    )
    return Contender(
        row.control or row.fusion, f"control: {words}", "control", lambda: test, lambda: validation
    )


def controls_of(row: Row, controls: Sequence[tuple[Row, Contender]]) -> Iterator[Contender]:
    """Of all control rows those that differ from `row` in nothing but what they control."""
    if row.control is not None:
        return
    for other, contender in controls:
        alike = other.is_single or (other.fusion, other.alpha) == (row.fusion, row.alpha)
        if alike and (other.model, other.seed) == (row.model, row.seed):
            yield contender


def compare_row(
    predictions: Predictions, controls: Sequence[Contender] = (), *, seed: int
) -> dict[str, Any]:
    """A row's entry in evaluation.json, but for its name and costs; `seed` is the bootstrap's.

    `controls` cost a training of their own, so none of them can be the best alternative. Raises
    ValueError when a network's answers aren't finite.
    """
    test = predictions.test
    after = _experts(predictions, lambda answers: answers.logits[:, 1:])
    before = _experts(predictions, lambda answers: answers.before)
    fused = Contender(
        FUSED,
        "fused",
        "fusion",
        partial(log_probabilities, test.logits[:, 0]),
        partial(log_probabilities, predictions.validation.logits[:, 0]),
    )
    alternatives = [
        *_ways_without_fusion(after, "after", "", ""),
        *_ways_without_fusion(before, "before", "before_", "before: "),
    ]
    best = best_on_validation(alternatives, predictions.validation.labels)
    scores = fused.test(), best.test()
    per_class = [per_class_accuracy(each, test.labels) for each in scores]
    return {
        "contenders": [
            _entry(contender, fused, predictions, seed)
            for contender in (fused, *alternatives, *controls)
        ],
        "weights": after.weights.tolist(),
        "before_weights": before.weights.tolist(),
        "experts": [
            {
                "expert": k,
                "top1": after.accuracies[k],
                "before_top1": before.accuracies[k],
                "validation": after.val_accuracies[k],
                "before_validation": before.val_accuracies[k],
            }
            for k in range(len(after.accuracies))
        ],
        "per_class": {
            "fused": per_class[0],
            "best_alternative": per_class[1],
            "gain": gain_per_class(*scores, test.labels),
        },
        "best_alternative": best.key,
        "xray": _xray(predictions),
    }


def best_on_validation(contenders: Sequence[Contender], labels: Tensor) -> Contender:
    """The most accurate on validation (V,); of equals the one with the smallest loss there."""

    def rank(contender: Contender) -> tuple[float, float]:
        scores = contender.validation()
        return percent(correct(scores, labels)), -float(losses(scores, labels).mean())

    return max(contenders, key=rank)


def _experts(predictions: Predictions, pick: Callable[[Answers], Tensor]) -> Experts:
    test, validation = pick(predictions.test), pick(predictions.validation)
    accuracies, val_accuracies = (
        [percent(correct(logits, labels)) for logits in each.unbind(dim=1)]
        for each, labels in (
            (test, predictions.test.labels),
            (validation, predictions.validation.labels),
        )
    )
    weights = fit_weights(validation, predictions.validation.labels)
    return Experts(test, validation, accuracies, val_accuracies, weights)


def _ways_without_fusion(experts: Experts, stage: str, key: str, label: str) -> list[Contender]:
    """The experts' answers, alone and put together; `key` and `label` go before their own."""
    best, weights = experts.best, experts.weights
    ways: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "best_expert": ("best expert", lambda logits: log_probabilities(logits[:, best])),
        "mean_probabilities": ("mean of probabilities", mix_probabilities),
        "mean_logits": ("mean of logits", mix_logits),
        "weighted": ("weighted mean", lambda logits: mix_probabilities(logits, weights)),
    }
    return [
        Contender(
            f"{key}{name}",
            f"{label}{words}",
            stage,
            partial(way, experts.test),
            partial(way, experts.validation),
        )
        for name, (words, way) in ways.items()
    ]


def _entry(
    contender: Contender, fused: Contender, predictions: Predictions, seed: int
) -> dict[str, Any]:
    """What is said of one contender."""
    labels, scores = predictions.test.labels, contender.test()
    temperature = fit_temperature(contender.validation(), predictions.validation.labels)
    tempered = apply_temperature(scores, temperature)
    calibrated = measure(tempered, labels)
    return {
        "key": contender.key,
        "label": contender.label,
        "stage": contender.stage,
        **asdict(measure(scores, labels)),
        "temperature": temperature,
        "calibrated": {name: getattr(calibrated, name) for name in ("nll", "ece", "brier")}
        | {"reliability": _reliability(tempered, labels)},
        "reliability": _reliability(scores, labels),
        "difference": None
        if contender is fused
        else _difference(correct(fused.test(), labels), correct(scores, labels), seed),
    }


def _reliability(scores: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    return [level._asdict() for level in reliability(scores, labels)]


def _difference(fused: Tensor, other: Tensor, seed: int) -> dict[str, Any]:
    """Points of accuracy between (N,) right answers, and whether that could be luck."""
    interval = bootstrap_difference(100 * fused.double(), 100 * other.double(), seed=seed)
    test = mcnemar(fused, other)
    return {
        "points": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "only_fused": test.only_first,
        "only_other": test.only_second,
        "p_value": test.p_value,
    }


def _xray(predictions: Predictions) -> dict[str, Any]:
    """What each expert brings, and whether the fusion needs more than one."""
    labels, logits, _ = predictions.test
    fused, experts = logits[:, 0], logits[:, 1:]
    dominant = dominance(fused, experts)
    return {
        "disagreement": (disagreement(experts) / 100).tolist(),
        "oracle": oracle_accuracy(experts, labels),
        "without_expert": without_each_expert(experts, labels) if experts.shape[1] > 1 else None,
        "credit": credit(fused, experts, labels)._asdict(),
        "dominance": dominant._asdict(),
        "fused_without_expert": [
            percent(classes == labels) for classes in predictions.without.unbind(dim=1)
        ],
        "attention": predictions.attention.tolist() or None,
        "gradients": _gradients(predictions.gradients),
        "alarm": _alarm(dominant),
    }


def _gradients(gradients: Tensor) -> list[dict[str, float | None]] | None:
    """(E, 2) -> for each expert the fused path's percent and the cosine; None: not two paths."""
    return [
        {"fused_share": None, "cosine": None}
        if math.isnan(share)
        else {"fused_share": 100 * share, "cosine": cosine}
        for share, cosine in gradients.tolist()
    ] or None


def _alarm(dominant: Dominance) -> str:
    k = dominant.carried_by
    if k is None:
        return ""
    return (
        f"expert {k} carries everything: of the {dominant.contested} images on which the experts "
        f"differ, the fused model answers {dominant.agreement[k]:.1f} % as this expert does"
    )


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample deviation of accuracies where measured rows differ in their seed alone.

    `gain` is the fused model's over the alternative that validation chose, in each row its own.
    """
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        if not row["problem"]:
            groups.setdefault((row["model"], row["fusion"], row["alpha"]), []).append(row)
    return [
        {"model": model, "fusion": fusion, "alpha": alpha, "seeds": len(group)}
        | {"columns": _spreads([_columns(row) for row in group])}
        for (model, fusion, alpha), group in groups.items()
        if len(group) > 1
    ]


def _columns(row: Mapping[str, Any]) -> dict[str, float]:
    contenders = {contender["key"]: contender for contender in row["contenders"]}
    accuracies = {key: contender["top1"] for key, contender in contenders.items()}
    return {**accuracies, "gain": contenders[row["best_alternative"]]["difference"]["points"]}


def _spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Of the columns that all rows have."""
    found = {}
    for key in rows[0]:
        if all(key in row for row in rows):
            over = spread([row[key] for row in rows])
            found[key] = {"mean": over.mean, "deviation": over.deviation}
    return found
