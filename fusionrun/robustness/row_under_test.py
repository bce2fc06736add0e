"""A finished row on changed and OOD images: what it answers, and how good that is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Literal, Self

from torch import Tensor, nn

from fusionrun.evaluation.alternatives import METHODS, Stage, scores_by_method
from fusionrun.evaluation.measuring import load_row
from fusionrun.evaluation.results import best_expert
from fusionrun.evaluation.row_names import name_row, row_name
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.robustness.conditions import CLEAN, ImageCondition
from fusionrun.robustness.corruptions import CORRUPTIONS, NOISE_SIGMAS, SEVERITIES
from fusionrun.robustness.ood_metrics import detection_metrics, max_probability, negative_energy
from fusionrun.robustness.schema import (
    Corruption,
    CorruptionResult,
    NoiseLevel,
    OODResult,
    RobustnessRow,
    Suite,
)
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.training.checkpoint import CheckpointError

# of (N, C) scores; energy means nothing of probabilities that were averaged: theirs sum to one
CONFIDENCES = {"max_probability": max_probability, "energy": negative_energy}

Confidences = Mapping[tuple[str, str], Tensor]  # (method, score) -> (N,)


@dataclass
class RowUnderTest:
    """A row, and how it did so far."""

    row: Row
    model: nn.Module
    epoch: int
    best: int | None  # expert on validation; None: a single network
    accuracies: dict[ImageCondition, dict[str, float]] = field(default_factory=dict)  # by method
    confidences: Confidences = field(default_factory=dict)  # in the clean images
    ood: list[OODResult] = field(default_factory=list)

    @classmethod
    def load(cls, context: RunContext, row: Row) -> Self:
        """A finished row, on the device. Raises ROW_PROBLEMS."""
        manifest, model = load_row(context, row)
        best = best_expert(manifest)
        if best is None and row.experts:
            found = f"found {manifest.validation.get('experts')!r}, expected numbers"
            raise CheckpointError(f"the manifest's validation.experts: {found}")
        assert manifest.epoch is not None  # only an assembled model has none, which is no row's
        return cls(row, model.eval(), manifest.epoch, best)

    def measure(self, condition: ImageCondition, logits: Tensor, labels: Tensor) -> None:
        """Note how many of the answers (N, H, C) are right. Raises ValueError: not finite."""
        scores = method_scores(logits, self.best)
        self.accuracies[condition] = {key: accuracy(each, labels) for key, each in scores.items()}
        if condition == CLEAN:
            self.confidences = self._confidences(scores)

    def measure_ood(self, name: str, logits: Tensor) -> None:
        """Note how well confidence tells the OOD set `name` from the clean test images.

        An entry for each method and score. Raises ValueError: answers (N, H, C) aren't finite.
        """
        unknown = self._confidences(method_scores(logits, self.best))
        for key in dict.fromkeys(key for key, _ in unknown):
            for score in CONFIDENCES:
                place = key, score
                metrics: dict[str, float | None] = (
                    asdict(detection_metrics(self.confidences[place], unknown[place]))
                    if place in unknown
                    else dict.fromkeys(("auroc", "aupr_in", "aupr_out", "fpr_at_95_tpr"))
                )
                self.ood.append(OODResult(name, key, score, **metrics))

    def result(self) -> RobustnessRow:
        """What robustness.json says of the row."""
        methods = [self._method(key) for key in self.accuracies[CLEAN]]
        return RobustnessRow(
            **name_row(self.row),
            best_expert=self.best,
            epoch=self.epoch,
            methods=tuple(methods),
            ood=tuple(self.ood),
        )

    def _confidences(self, scores: Mapping[str, Tensor]) -> Confidences:
        found = confidences(scores)
        averaged = self.row.is_full_ensemble
        return {k: each for k, each in found.items() if not (averaged and k[1] == "energy")}

    def _method(self, key: str) -> CorruptionResult:
        top1 = {condition: found[key] for condition, found in self.accuracies.items()}
        if key in METHODS:
            label = METHODS[self.row.fusion].heading if not self.row.experts else METHODS[key].label
        else:
            label = row_name(self.row).expert_name(int(key.rpartition("_")[2]))
        noise = ((sigma, top1[ImageCondition("noise", level=sigma)]) for sigma in NOISE_SIGMAS)
        return CorruptionResult(
            key=key,
            label=label,
            clean=top1[CLEAN],
            noise=tuple(NoiseLevel(*level) for level in noise),
            made=suite("made", top1),
            published=suite("published", top1),
        )


def method_scores(logits: Tensor, best: int | None) -> Mapping[str, Tensor]:
    """Scores (N, C) by method, the highest being its answer.

    Of logits (N, 1 + E, C), or (N, 1, C) of a single network; `best` is the best expert on
    validation. Raises ValueError when they aren't finite.
    """
    stages: dict[Stage, Tensor] = {"fusion": logits}
    experts = logits[:, 1:]
    if experts.shape[1]:
        stages["after"] = experts
    scores = scores_by_method(stages, {"after": best or 0})
    alone = {f"expert_{k}": each for k, each in enumerate(experts.unbind(dim=1))}
    return {**{method.key: each for method, each in scores.items()}, **alone}


def confidences(scores: Mapping[str, Tensor]) -> Confidences:
    """How sure each method is of each image; single experts aside."""
    return {
        (key, name): confidence(each)
        for key, each in scores.items()
        for name, confidence in CONFIDENCES.items()
        if key in METHODS and (name != "energy" or METHODS[key].formula.has_logits)
    }


def suite(kind: Literal["made", "published"], top1: Mapping[ImageCondition, float]) -> Suite | None:
    """Corruption by corruption and all together; None: there were none of the kind."""
    names = dict.fromkeys(condition.name for condition in top1 if condition.kind == kind)
    each = {
        name: tuple(top1[ImageCondition(kind, name, level)] for level in SEVERITIES)
        for name in names
    }
    if not each:
        return None
    mean = fmean(map(fmean, each.values())) if len(each) == len(CORRUPTIONS) else None
    clean = top1[CLEAN]
    return Suite(
        corruptions=tuple(Corruption(name, of, fmean(of)) for name, of in each.items()),
        mean=mean,
        kept=100 * mean / clean if mean is not None and clean else None,
    )
