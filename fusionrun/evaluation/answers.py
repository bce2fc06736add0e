"""The answers of one method on a row's images, and how good they are."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple, Self

from torch import Tensor

from fusionrun.evaluation.alternatives import METHODS, NOTHING_CHOSEN, Choice, Method
from fusionrun.evaluation.predictions import Predictions
from fusionrun.evaluation.row_names import RowName, row_name
from fusionrun.evaluation.schema import Calibrated, Cost, Difference, MethodResult
from fusionrun.evaluation.statistics.metrics import (
    accuracy,
    apply_temperature,
    correct,
    fit_temperature,
    losses,
    measure,
    reliability,
)
from fusionrun.evaluation.statistics.significance import bootstrap_difference, mcnemar
from fusionrun.study.rows import Row
from fusionrun.tables.headline import AVERAGING, BEST_EXPERT, GAIN_KEY


@dataclass(frozen=True)
class Answers:
    """A method's log-probabilities, made when asked for: all methods' together take room."""

    method: Method
    test: Callable[[], Tensor]  # (N, C)
    validation: Callable[[], Tensor]  # (V, C)
    cost: Cost | None = None  # of a control

    @classmethod
    def of(cls, method: Method, predictions: Predictions, choice: Choice = NOTHING_CHOSEN) -> Self:
        test, validation = (
            partial(method.formula.log_probabilities, heads.of(method.stage), choice)
            for heads in (predictions.test, predictions.validation)
        )
        held_out = choice.held_out
        if method.formula.chosen == "stacking" and held_out is not None:
            # what it was fitted on it would know by heart
            return cls(method, test, lambda: held_out)
        return cls(method, test, validation)


class Controls:
    """What the control rows answer, for the rows that they control."""

    def __init__(self) -> None:
        self._answers: list[tuple[RowName, Answers]] = []

    def add(self, row: Row, predictions: Predictions, cost: Cost | None = None) -> None:
        """Raises ValueError: answers that aren't finite."""
        answers = Answers.of(METHODS[row.control or row.fusion], predictions)
        # made at once: all heads of all controls would take room until the last row
        test, validation = answers.test(), answers.validation()
        kept = Answers(answers.method, lambda: test, lambda: validation, cost)
        self._answers.append((row_name(row), kept))

    def of(self, row: Row) -> list[Answers]:
        """Of those that differ from `row` in nothing but what they control."""
        name = row_name(row)
        return [answers for other, answers in self._answers if other.is_control_of(name)]


class Right(NamedTuple):
    """Which test images a row gets right, and those that it is compared with; each (N,) bool."""

    fused: Tensor
    others: dict[str, Tensor]  # by the difference's name in `numbers`
    validation: float  # the fused model's accuracy there

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        fused: Answers,
        alternatives: Sequence[Answers],
        best: Answers,
    ) -> Self:
        by_key = {answers.method.key: answers for answers in alternatives}
        others = {
            GAIN_KEY: by_key[AVERAGING],
            "vs_best_expert": by_key[BEST_EXPERT],
            "vs_best_alternative": best,
        }
        labels = predictions.test.labels
        return cls(
            correct(fused.test(), labels),
            {name: correct(answers.test(), labels) for name, answers in others.items()},
            accuracy(fused.validation(), predictions.validation.labels),
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
        cost=answers.cost,
    )


def compare_right(fused: Tensor, other: Tensor, *, seed: int) -> Difference:
    """Points of accuracy between (N,) right answers, and whether that could be luck."""
    interval = bootstrap_difference(100 * fused.double(), 100 * other.double(), seed=seed)
    return Difference(*interval, *mcnemar(fused, other))
