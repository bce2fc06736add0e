"""robustness.json, format 1: what `robustness` measured, written and read by the same classes.

Accuracies, AUROC and the like are percent; None, in the file null, is what was not measured. Names
are the file's, but for those that a field keeps under its older `key`. Needs no torch.
"""

from dataclasses import dataclass, field

from fusionrun.evaluation.row_names import RowName
from fusionrun.evaluation.schema import FailedRow, RunHeader


@dataclass(frozen=True)
class NoiseLevel:
    """Gaussian noise of standard deviation `sigma`, added to normalised images."""

    sigma: float
    top1: float


@dataclass(frozen=True)
class Corruption:
    name: str
    top1: tuple[float, ...]  # of severity 1 to 5
    mean: float


@dataclass(frozen=True)
class Suite:
    """All corruptions of one source."""

    corruptions: tuple[Corruption, ...]
    mean: float | None  # over the fifteen at five severities; None where one is lacking
    kept: float | None  # the mean as percent of the clean accuracy


@dataclass(frozen=True)
class CorruptionResult:
    """A method on the test images, clean and changed."""

    key: str
    label: str
    clean: float
    noise: tuple[NoiseLevel, ...]
    made: Suite | None  # corruptions made by fusionrun
    published: Suite | None  # None: no folder of published images was given

    def suite(self, source: str) -> Suite | None:
        """Of the corruptions "made" by fusionrun or "published"."""
        return self.made if source == "made" else self.published


@dataclass(frozen=True)
class OODResult:
    """How well a score of a method tells OOD images from in-distribution ones.

    All None where the score means nothing.
    """

    set: str  # name of an OODSet
    method: str = field(metadata={"key": "contender"})
    score: str
    auroc: float | None
    aupr_in: float | None
    aupr_out: float | None
    fpr_at_95_tpr: float | None


@dataclass(frozen=True, kw_only=True)
class RobustnessRow(RowName):
    """A row that was measured."""

    epoch: int  # that validation selected
    problem: str = ""
    methods: tuple[CorruptionResult, ...] = field(metadata={"key": "contenders"})
    ood: tuple[OODResult, ...] = field(metadata={"key": "detection"})

    def method(self, key: str) -> CorruptionResult | None:
        return next((method for method in self.methods if method.key == key), None)

    def label(self, key: str) -> str:
        """Of the method `key`, for people."""
        method = self.method(key)
        return method.label if method else key


@dataclass(frozen=True)
class OODSet:
    name: str
    about: str  # what the images are, for people
    images: int


@dataclass(frozen=True, kw_only=True)
class Robustness(RunHeader):
    """robustness.json, every row in the study's order."""

    images: int  # of the test set that the rows were tested on
    seed: int  # of all random numbers; the same images for every row and study
    corrupted: str | None  # the folder of published images
    ood_sets: tuple[OODSet, ...] = field(metadata={"key": "foreign"})
    notes: tuple[str, ...]  # what a reader of the numbers needs to know
    entries: tuple[FailedRow | RobustnessRow, ...] = field(metadata={"key": "rows"})

    @property
    def rows(self) -> tuple[RobustnessRow, ...]:
        """Those that were measured."""
        return tuple(entry for entry in self.entries if isinstance(entry, RobustnessRow))

    @property
    def failures(self) -> tuple[FailedRow, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, FailedRow))
