"""What every row's fusion and the cheap alternatives are worth on the test set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.common.typed_fields import FieldError, build
from fusionrun.components.manifest import Manifest, read_manifest, write_manifest
from fusionrun.evaluation.accuracies import accuracies_by_method
from fusionrun.evaluation.alternatives import ALTERNATIVES, FUSED, METHODS
from fusionrun.evaluation.many_comparisons import holm
from fusionrun.evaluation.predictions import Predictions
from fusionrun.evaluation.problems import say
from fusionrun.evaluation.row_names import RowName, members_of, name_row
from fusionrun.evaluation.schema import Cost, Difference, RowResult
from fusionrun.study.recipe import WITHOUT_EXPERTS
from fusionrun.study.study import Study
from fusionrun.tables import headline
from fusionrun.tables.table import Images
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.identity import others_in

UNFITTED = tuple(m.key for m in ALTERNATIVES if not m.formula.is_fitted)


@dataclass(frozen=True, kw_only=True)
class Result(RowName):
    """One row's accuracies on the test set, in percent."""

    epoch: int | None = None  # that validation selected; None: not finished
    val_accuracy: float | None = None
    top1: Mapping[str, float] = field(default_factory=dict)  # by method's key, those measured
    differences: Mapping[str, Difference] = field(default_factory=dict)  # of fused to a method
    images: Images = field(default_factory=Images)
    fusion_recipe: str = "per_type"  # the study's
    other_experts: tuple[str, ...] = ()  # that its recipe didn't train, and whose they are
    cost: Cost | None = None  # counted; None: an older version trained it

    @property
    def fused(self) -> float | None:
        return self.top1.get(FUSED.key)

    @property
    def gain(self) -> float | None:
        """Points of the fused model over the mean of its experts' probabilities."""
        margin = self.over(headline.AVERAGING)
        return None if margin is None else margin.points

    def over(self, key: str) -> headline.Margin | None:
        """Fused minus the method `key`; without an interval where an older version measured it."""
        if key in self.differences:
            return self.differences[key].margin
        if self.fused is None or key not in self.top1:
            return None
        return headline.Margin(self.fused - self.top1[key])

    @property
    def numbers(self) -> dict[str, float]:
        """What is summarised over seeds."""
        margins = {
            headline.GAIN_KEY: self.over(headline.AVERAGING),
            "vs_best_expert": self.over(headline.BEST_EXPERT),
        }
        return {**self.top1, **{key: each.points for key, each in margins.items() if each}}


def csv_line(result: Result) -> dict[str, object]:
    """A line of results.csv, in full precision."""
    gain = result.over(headline.AVERAGING) or (None, None, None)
    over_best, best = result.over(headline.BEST_EXPERT) or (None, None, None), "vs_best_expert"
    line = {
        "task": result.task,
        "model": result.model,
        "fusion_type": result.fusion,
        "seed": result.seed,
        "alpha": result.alpha,
        "epoch": result.epoch,
        "val_accuracy": result.val_accuracy,
        **{key: result.top1.get(key) for key in (FUSED.key, *UNFITTED)},
        **dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True)),
        **dict(zip((best, f"{best}_low", f"{best}_high"), over_best, strict=True)),
        "best_expert_name": result.best_expert_name,
        "members": members_of([result]).get(result.model, ""),
        "expert_seed": "" if result.expert_seed is None else result.expert_seed,
        "other_experts": "; ".join(result.other_experts),
    }
    return {key: NOT_AVAILABLE if value is None else value for key, value in line.items()}


def collect_results(study: Study) -> list[Result]:
    """A result for every row of the study; rows without a manifest have no numbers."""
    results = []
    for row in study.rows:
        path = study.layout.measured_row(row.model, row.variant) / "manifest.json"
        own = study.layout.row(row.model, row.variant).manifest
        try:
            manifest = read_manifest(path if path.is_file() else own)
        except CheckpointError:
            results.append(Result(**name_row(row), fusion_recipe=study.recipe.fusion.recipe))
            continue
        results.append(
            Result(
                **name_row(row),
                best_expert=best_expert(manifest),
                epoch=manifest.epoch,
                val_accuracy=manifest.val_accuracy,
                top1={key: value for key, value in manifest.test.items() if key in METHODS},
                differences=stored_differences(manifest),
                images=Images(manifest.test.get("images"), manifest.validation.get("images")),
                fusion_recipe=study.recipe.fusion.recipe,
                other_experts=others_in(row.members, manifest.experts_from or ()),
                cost=stored_cost(manifest),
            )
        )
    return results


def update_manifest(
    path: Path, manifest: Manifest, predictions: Predictions, row: RowResult
) -> None:
    """Bring its test numbers up to date; whoever may only read a study may measure it, too."""
    test = accuracies_by_method(
        predictions.test,
        [expert.validation for expert in row.experts],
        [expert.before_validation for expert in row.experts],
        seed=row.seed,
    )
    validation = {**manifest.validation, "images": len(predictions.validation.labels)}
    if (manifest.test, manifest.validation) != (test, validation):
        try:
            write_manifest(path, replace(manifest, test=test, validation=validation))
        except OSError as error:
            say(f"[{row.task}] {path} keeps its earlier numbers: {error.strerror}")


def best_expert(manifest: Manifest) -> int | None:
    """The expert that is best on validation, of equals the first; None: it has none."""
    found = manifest.validation.get("experts")
    return found.index(max(found)) if isinstance(found, list) and found else None


def stored_differences(manifest: Manifest) -> dict[str, Difference]:
    """By method; none where an older version wrote the manifest."""
    try:
        return {
            key: build(Difference, tree, strict=False)
            for key, tree in manifest.test.get("differences", {}).items()
        }
    except (AttributeError, FieldError):  # not what this version writes
        return {}


def stored_cost(manifest: Manifest) -> Cost | None:
    """None where an older version wrote the manifest, or where it couldn't be counted."""
    try:
        return build(Cost, manifest.cost, strict=False) if manifest.cost else None
    except FieldError:  # not what this version writes
        return None


def images_of(results: Sequence[Result]) -> Images:
    """All rows of a study are measured on the same."""
    return next((each.images for each in results if each.images != Images()), Images())


def gains_of(results: Sequence[Result]) -> list[tuple[str, headline.Margin | None]]:
    """Of the rows that are asked whether fusion helps."""
    return [(each.name, each.over(headline.AVERAGING)) for each in in_question(results)]


def in_question(results: Sequence[Result]) -> list[Result]:
    """Controls, and networks without experts, are part of the answer."""
    return [each for each in results if not each.control and each.fusion not in WITHOUT_EXPERTS]


def words_of(results: Sequence[Result]) -> list[str]:
    """The answer in a sentence and after correction, then what a reader must not overlook."""
    images, gains = images_of(results), [gain for _, gain in gains_of(results) if gain]
    few = "" if images.validation is None else headline.too_few(images.validation)
    answer = headline.verdict(gains, headline.digits(images.test))
    known = [each.differences.get(headline.AVERAGING) for each in in_question(results)]
    found = [difference for difference in known if difference]
    p_values = holm([difference.p_value for difference in found])
    pairs = zip((difference.points for difference in found), p_values, strict=True)
    answer = " ".join(filter(None, [answer, headline.after_correction(list(pairs))]))
    if any(gain.low is None for gain in gains):
        answer += " An earlier version measured what has no interval; `evaluate` adds it."
    recipe = results[0].fusion_recipe if results else ""
    types = headline.types_note((each.fusion for each in in_question(results)), recipe)
    return [answer, *([types] if types else []), *([f"Warning: {few}."] if few else [])]
