"""evaluation.json, format 1: what `evaluate` measured, written and read by the same classes.

Accuracies, confidences, calibration errors and shares are percent, differences points, NLL nats;
None, in the file null, is what was not measured. Names are the file's, but for three that a field
keeps under its older `key`. Needs no torch.
"""

from dataclasses import dataclass, field

from fusionrun.common.typed_fields import require
from fusionrun.evaluation.alternatives import FUSED, Stage
from fusionrun.evaluation.over_seeds import OverSeeds, TypeComparison
from fusionrun.evaluation.row_names import RowName
from fusionrun.tables.headline import (
    AVERAGING,
    BEST_EXPERT,
    GAIN_KEY,
    SIGNIFICANT,
    Margin,
    after_correction,
    beats_every,
    digits,
    types_note,
    verdict,
)
from fusionrun.tables.table import Images

FORMAT = 1  # of all files that measure a study


@dataclass(frozen=True)
class Bin:
    """Samples of like confidence; no means without samples."""

    samples: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Difference:
    """Fused minus another method in points, with its 95 % interval and McNemar's p-value.

    `p_holm`: corrected over all methods of all rows in question; None: it isn't one of these, or
    an older version wrote it.
    """

    points: float
    low: float
    high: float
    only_fused: int  # images that it alone gets right
    only_other: int
    p_value: float
    p_holm: float | None = None

    @property
    def is_ahead(self) -> bool:
        """Whether the fused model is better after the correction."""
        return self.points > 0 and self.p_holm is not None and self.p_holm < SIGNIFICANT

    @property
    def margin(self) -> Margin:
        return Margin(self.points, self.low, self.high)


@dataclass(frozen=True)
class Calibrated:
    """The same answers with the temperature that was fitted on validation."""

    nll: float
    ece: float
    brier: float
    reliability: tuple[Bin, ...]


@dataclass(frozen=True)
class Cost:
    """Counted, timed on the device of the evaluation, and read from the training logs."""

    parameters: int | None
    macs: int | None  # multiply-accumulates for one image
    train_seconds: float | None = None
    expert_seconds: tuple[float | None, ...] = ()
    latency_ms: float | None = None  # for one image: median, 5th and 95th percentile
    latency_low: float | None = None
    latency_high: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    # of training, its experts' own included; None: not known, as of experts from elsewhere
    images_seen: int | None = None  # different ones
    steps: int | None = None  # of optimizers
    image_passes: int | None = None  # images x epochs x networks, forward and backward


@dataclass(frozen=True)
class MethodResult:
    """What is said of one method on the test set."""

    key: str
    label: str
    stage: Stage
    top1: float
    top5: float | None  # None: fewer than six classes, where it says nothing
    nll: float
    ece: float
    brier: float  # 0 to 2
    temperature: float | None
    calibrated: Calibrated | None
    reliability: tuple[Bin, ...]
    difference: Difference | None  # None: the fused model itself
    cost: Cost | None = None  # of a control, counted; None: of others, see the row's


@dataclass(frozen=True)
class ExpertResult:
    """An expert's accuracies around fusion training, on the test set and on validation."""

    expert: int
    top1: float
    before_top1: float
    validation: float
    before_validation: float


@dataclass(frozen=True)
class PerClass:
    """Of each class; None: no test images of it."""

    fused: tuple[float | None, ...]
    best_alternative: tuple[float | None, ...]
    gain: tuple[float | None, ...]


@dataclass(frozen=True)
class Attribution:
    """Of the fused model's right answers, the percent that hang on one; None: it has none."""

    only_expert: tuple[float | None, ...]  # that expert k gets right and no other does
    no_expert: float | None  # that every expert gets wrong


@dataclass(frozen=True)
class Dominance:
    """Whose answers the fused model gives where the experts don't all give the same."""

    contested: int  # images on which they don't
    agreement: tuple[float | None, ...]  # of the fused answers with each expert's on those
    carried_by: int | None  # the expert that alone would decide the same: an alarm


@dataclass(frozen=True)
class PathGradients:
    """Of an expert's gradient: what comes from the fused loss, and whether it agrees with the rest.

    None where one of the two paths reaches nothing.
    """

    fused_share: float | None
    cosine: float | None


@dataclass(frozen=True)
class Contributions:
    """What each expert brings, and whether the fusion needs more than one."""

    disagreement: tuple[tuple[float, ...], ...]  # fractions, expert by expert
    oracle: float
    without_expert: tuple[float, ...]  # the mean of the others' probabilities
    attribution: Attribution = field(metadata={"key": "credit"})
    dominance: Dominance
    fused_without_expert: tuple[float, ...]
    attention: tuple[float, ...] | None
    gradients: tuple[PathGradients, ...] | None  # None: not two paths
    alarm: str


@dataclass(frozen=True, kw_only=True)
class FailedRow(RowName):
    """A row that could not be measured."""

    epoch: int | None = None
    problem: str

    def __post_init__(self) -> None:
        require(bool(self.problem), "problem", self.problem, "what went wrong")


@dataclass(frozen=True, kw_only=True)
class RowResult(RowName):
    """A row that was measured. Raises FieldError: nothing to compare."""

    epoch: int  # that validation selected
    methods: tuple[MethodResult, ...] = field(metadata={"key": "contenders"})
    weights: tuple[float, ...]  # of the weighted mean, fitted on validation
    before_weights: tuple[float, ...]
    experts: tuple[ExpertResult, ...]
    per_class: PerClass
    best_alternative_key: str = field(metadata={"key": "best_alternative"})  # by validation
    contributions: Contributions = field(metadata={"key": "xray"})
    cost: Cost
    problem: str = ""
    # McNemar's p of the gain over averaging, corrected over rows alone: it was declared beforehand
    gain_p_holm: float | None = None

    def __post_init__(self) -> None:
        keys = [method.key for method in self.methods]
        require(FUSED.key in keys, "contenders", keys, f"one with the key {FUSED.key!r}")
        expected = "the key of a contender that has a difference to fused"
        for key in (self.best_alternative_key, AVERAGING, BEST_EXPERT):
            other = self.method(key)
            known = other is not None and other.difference is not None
            require(known, "best_alternative", key, expected)

    def method(self, key: str) -> MethodResult | None:
        return next((method for method in self.methods if method.key == key), None)

    @property
    def numbers(self) -> dict[str, float]:
        """Accuracies by method, and what fused is ahead of three of them by."""
        top1 = {method.key: method.top1 for method in self.methods}
        return {
            **top1,
            GAIN_KEY: self.gain_over_averaging.points,
            "vs_best_expert": self.vs_best_expert.points,
            "vs_best_alternative": self.vs_best_alternative.points,
        }

    def against(self, key: str) -> Difference:
        """Fused minus the method `key`, one of those that every row has."""
        method = self.method(key)
        assert method is not None and method.difference is not None, "checked when it was made"
        return method.difference

    @property
    def gain_over_averaging(self) -> Difference:
        """The answer, declared beforehand: fused minus the mean of the experts' probabilities."""
        return self.against(AVERAGING)

    @property
    def compared(self) -> tuple[Difference, ...]:
        """Fused minus every other method."""
        return tuple(method.difference for method in self.methods if method.difference)

    @property
    def vs_best_expert(self) -> Difference:
        """Fused minus the expert that is best on validation."""
        return self.against(BEST_EXPERT)

    @property
    def vs_best_alternative(self) -> Difference:
        """Fused minus the cheap alternative that is best on validation."""
        return self.against(self.best_alternative_key)

    @property
    def fused(self) -> MethodResult:
        return next(method for method in self.methods if method.key == FUSED.key)

    @property
    def averaging(self) -> MethodResult:
        """The mean of the experts' probabilities."""
        return next(m for m in self.methods if m.key == AVERAGING)

    @property
    def best_alternative(self) -> MethodResult:
        """The cheap alternative with the highest validation accuracy."""
        return next(m for m in self.methods if m.key == self.best_alternative_key)


@dataclass(frozen=True)
class DataInfo:
    name: str
    classes: tuple[str, ...]
    test_images: int
    val_images: int
    image_size: int
    notes: tuple[str, ...] = ()  # what was left out, converted or guessed

    @property
    def images(self) -> Images:
        return Images(self.test_images, self.val_images)


@dataclass(frozen=True)
class TrainingTime:
    """Of all experts and rows: their seconds in sum, and those in which any of them trained."""

    tasks: int
    serial_seconds: float
    parallel_seconds: float

    def text(self) -> str:
        """As people read it."""
        serial, parallel = self.serial_seconds / 60, self.parallel_seconds / 60
        return (
            f"All {self.tasks} experts and rows together trained for {serial:.1f} minutes, in "
            f"{parallel:.1f} minutes in which any of them trained: {serial / parallel:.2f} at a "
            "time."
        )


@dataclass(frozen=True, kw_only=True)
class RunHeader:
    """What was measured, when and on what: the beginning of every file that measures a study."""

    format: int
    study: str
    output_dir: str
    evaluated: str  # when
    data: DataInfo
    device: str
    threads: int | None
    versions: dict[str, str]
    fusion_recipe: str = "per_type"  # the recipe's fusion.recipe; versions before had this one


@dataclass(frozen=True, kw_only=True)
class Evaluation(RunHeader):
    """evaluation.json, every row in the study's order."""

    training: TrainingTime | None
    entries: tuple[FailedRow | RowResult, ...] = field(metadata={"key": "rows"})
    over_seeds: tuple[OverSeeds, ...]
    fusion_types: tuple[TypeComparison, ...] = ()  # where there are several of one architecture

    @property
    def rows(self) -> tuple[RowResult, ...]:
        """Those that were measured."""
        return tuple(entry for entry in self.entries if isinstance(entry, RowResult))

    @property
    def failures(self) -> tuple[FailedRow, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, FailedRow))

    @property
    def in_question(self) -> tuple[RowResult, ...]:
        """The rows that are asked whether fusion helps; controls are part of the answer."""
        return tuple(row for row in self.rows if row.control is None)

    @property
    def verdict(self) -> str:
        """The answer in a sentence, and what is left of it after Holm's correction."""
        rows = self.in_question
        gains = [row.gain_over_averaging.margin for row in rows]
        said = [verdict(gains, digits(self.data.test_images))]
        known = [(r.gain_over_averaging.points, r.gain_p_holm) for r in rows]
        said.append(after_correction([(points, p) for points, p in known if p is not None]))
        corrected = [row for row in rows if row.gain_p_holm is not None]
        ahead = [row.name for row in corrected if all(d.is_ahead for d in row.compared)]
        comparisons = sum(len(row.compared) for row in corrected)
        said.append(beats_every(ahead, len(corrected), comparisons))
        return " ".join(sentence for sentence in said if sentence)

    @property
    def types_note(self) -> str:
        """What the fusion types that are compared differ in; "": there is one."""
        return types_note((row.fusion for row in self.in_question), self.fusion_recipe)

    @property
    def subtitle(self) -> str:
        data = self.data
        return (
            f"{self.study} · {data.name}, {len(data.classes):,} classes, {data.test_images:,} test "
            f"images · evaluated {self.evaluated}"
        )
