"""Fusion and its alternatives on the same images: from a row's predictions to its result.

Whatever is chosen or fitted (the best expert, weights, temperatures, the best alternative) is so
on validation; the test set is only measured. Accuracies and calibration errors are percent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from fusionrun.evaluation.alternatives import ALTERNATIVES, FUSED, Choice, Stage
from fusionrun.evaluation.answers import (
    Answers,
    Right,
    best_on_validation,
    measure_method,
)
from fusionrun.evaluation.contributions import expert_contributions
from fusionrun.evaluation.predictions import Predictions
from fusionrun.evaluation.row_names import name_row, row_name
from fusionrun.evaluation.schema import Cost, ExpertResult, PerClass, RowResult
from fusionrun.evaluation.statistics.expert_diversity import gain_per_class
from fusionrun.evaluation.statistics.metrics import (
    accuracy,
    fit_mixture_weights,
    per_class_accuracy,
)
from fusionrun.evaluation.statistics.stacking import Stacking, fit_stacking, is_too_large
from fusionrun.study.rows import Row


@dataclass(frozen=True)
class Experts:
    """The experts of one stage: how good they are, and what validation chose among them."""

    accuracies: list[float]  # on the test set, E
    val_accuracies: list[float]
    weights: Tensor  # (E,)
    stacking: Stacking | None  # None: that would take hours

    @classmethod
    def of(cls, predictions: Predictions, stage: Stage) -> Self:
        accuracies, val_accuracies = (
            [accuracy(logits, answers.labels) for logits in answers.of(stage).unbind(dim=1)]
            for answers in (predictions.test, predictions.validation)
        )
        validation = predictions.validation
        given = validation.of(stage), validation.labels
        stacking = None if is_too_large(*given[0].shape) else fit_stacking(*given)
        return cls(accuracies, val_accuracies, fit_mixture_weights(*given), stacking)

    @property
    def choice(self) -> Choice:
        best = self.val_accuracies.index(max(self.val_accuracies))
        if self.stacking is None:
            return Choice(best, self.weights)
        return Choice(best, self.weights, self.stacking.scores, self.stacking.held_out)


class Compared(NamedTuple):
    """What is said of a row, and what comparing it with other rows takes."""

    result: RowResult
    right: Right


def compare_row(
    row: Row,
    predictions: Predictions,
    controls: Sequence[Answers] = (),
    *,
    epoch: int,
    cost: Cost,
) -> Compared:
    """A row beside its alternatives and its controls; its seed is also the bootstrap's.

    `controls` cost a training of their own, so none of them can be the best alternative. Raises
    ValueError when a network's answers aren't finite.
    """
    labels = predictions.test.labels
    after, before = Experts.of(predictions, "after"), Experts.of(predictions, "before")
    fused = Answers.of(FUSED, predictions)
    choices = {"after": after.choice, "before": before.choice}
    alternatives = [
        Answers.of(method, predictions, choices[method.stage])
        for method in ALTERNATIVES
        if method.formula.chosen != "stacking" or choices[method.stage].stacking
    ]
    best = best_on_validation(alternatives, predictions.validation.labels)
    scores = fused.test(), best.test()
    result = RowResult(
        **name_row(row),
        best_expert=after.choice.best,
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
        contributions=expert_contributions(row_name(row), predictions),
        cost=cost,
    )
    return Compared(result, Right.of(predictions, fused, alternatives, best))
