"""What a report is made of: what `evaluate` and `robustness` measured, tables of epochs, recipe."""

import csv
import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fusionrun.common.typed_fields import flatten
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe

FORMAT = 1  # of evaluation.json and of robustness.json


class ReportError(Exception):
    """There is nothing to report from, or nowhere to put it; the message says what to do."""


@dataclass(frozen=True)
class Bin:
    """Samples of like confidence; percent."""

    samples: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Difference:
    """Fused minus another contender in points, with its 95 % interval and McNemar's p-value."""

    points: float
    low: float
    high: float
    only_fused: int
    only_other: int
    p_value: float


@dataclass(frozen=True)
class Calibrated:
    nll: float
    ece: float
    brier: float
    reliability: tuple[Bin, ...]


@dataclass(frozen=True)
class Contender:
    key: str
    label: str
    stage: str
    top1: float
    top5: float | None
    nll: float
    ece: float
    brier: float
    temperature: float | None
    calibrated: Calibrated | None
    reliability: tuple[Bin, ...]
    difference: Difference | None


@dataclass(frozen=True)
class Expert:
    expert: int
    top1: float | None
    before_top1: float | None


@dataclass(frozen=True)
class PerClass:
    fused: tuple[float | None, ...]
    best_alternative: tuple[float | None, ...]
    gain: tuple[float | None, ...]


@dataclass(frozen=True)
class Credit:
    only_expert: tuple[float | None, ...]
    no_expert: float | None


@dataclass(frozen=True)
class Dominance:
    contested: float
    agreement: tuple[float | None, ...]


@dataclass(frozen=True)
class Gradients:
    fused_share: float | None
    cosine: float | None


@dataclass(frozen=True)
class XRay:
    disagreement: tuple[tuple[float, ...], ...]  # fractions
    oracle: float
    without_expert: tuple[float, ...]
    credit: Credit
    dominance: Dominance
    fused_without_expert: tuple[float, ...]
    attention: tuple[float, ...] | None
    gradients: tuple[Gradients, ...] | None
    alarm: str


@dataclass(frozen=True)
class Cost:
    parameters: int | None
    macs: int | None
    train_seconds: float | None
    expert_seconds: tuple[float | None, ...]
    latency_ms: float | None
    latency_low: float | None
    latency_high: float | None
    images_per_second: float | None
    peak_memory_bytes: float | None


@dataclass(frozen=True)
class Row:
    """A row that was measured. Raises ValueError: nothing to compare."""

    task: str
    model: str
    fusion: str
    variant: str
    seed: int
    alpha: float
    epoch: int
    contenders: tuple[Contender, ...]
    best_alternative: str  # key of a contender, chosen on validation
    weights: tuple[float, ...]
    experts: tuple[Expert, ...]
    per_class: PerClass
    xray: XRay
    cost: Cost
    control: str | None = None  # frozen, detached: the row is there to be compared with

    def __post_init__(self) -> None:
        _ = self.fused, self.difference

    @property
    def name(self) -> str:
        return f"{self.model} + {self.variant}"

    @property
    def fused(self) -> Contender:
        return self._known("fused")

    @property
    def rival(self) -> Contender:
        """The best of the cheap alternatives."""
        return self._known(self.best_alternative)

    @property
    def difference(self) -> Difference:
        """Fused minus the best alternative."""
        if self.rival.difference is None:
            raise ValueError(f"{self.task}: {self.best_alternative}: found no difference to fused")
        return self.rival.difference

    def contender(self, key: str) -> Contender | None:
        return next((c for c in self.contenders if c.key == key), None)

    def _known(self, key: str) -> Contender:
        found = self.contender(key)
        if found is None:
            raise ValueError(f"{self.task}: contenders: found no {key!r}")
        return found


@dataclass(frozen=True)
class Failure:
    """A row that could not be measured."""

    model: str
    variant: str
    problem: str

    @property
    def name(self) -> str:
        return f"{self.model} + {self.variant}"


@dataclass(frozen=True)
class Spread:
    mean: float
    deviation: float


@dataclass(frozen=True)
class OverSeeds:
    model: str
    fusion: str
    alpha: float
    seeds: int
    columns: dict[str, Spread | None]


@dataclass(frozen=True)
class Data:
    name: str
    classes: tuple[str, ...]
    test_images: int
    val_images: int
    image_size: int


@dataclass(frozen=True)
class Training:
    """Of all experts and rows: their seconds in sum, and those in which any of them trained."""

    tasks: int
    serial_seconds: float
    parallel_seconds: float


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json, as `evaluate` writes it. Accuracies are percent."""

    study: str
    output_dir: str
    evaluated: str
    data: Data
    device: str
    threads: int | None
    versions: dict[str, str]
    training: Training | None
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    over_seeds: tuple[OverSeeds, ...]

    @property
    def in_question(self) -> tuple[Row, ...]:
        """The rows that are asked whether fusion helps; controls are part of the answer."""
        return tuple(row for row in self.rows if row.control is None)

    @property
    def subtitle(self) -> str:
        data = self.data
        return (
            f"{self.study} · {data.name}, {len(data.classes):,} classes, {data.test_images:,} test "
            f"images · evaluated {self.evaluated}"
        )


@dataclass(frozen=True)
class NoiseLevel:
    sigma: float
    top1: float


@dataclass(frozen=True)
class Corruption:
    name: str
    top1: tuple[float, ...]  # of severity 1 to 5
    mean: float


@dataclass(frozen=True)
class Suite:
    corruptions: tuple[Corruption, ...]
    mean: float | None  # of all fifteen
    kept: float | None  # percent of the clean accuracy


@dataclass(frozen=True)
class Tested:
    """A contender on changed test images."""

    key: str
    label: str
    clean: float
    noise: tuple[NoiseLevel, ...]
    made: Suite | None
    published: Suite | None


@dataclass(frozen=True)
class Detected:
    """How well a score of a contender tells foreign images from the study's own; percent."""

    set: str
    contender: str
    score: str
    auroc: float | None
    aupr_in: float | None
    aupr_out: float | None
    fpr_at_95_tpr: float | None


@dataclass(frozen=True)
class TestedRow:
    model: str
    variant: str
    contenders: tuple[Tested, ...]
    detection: tuple[Detected, ...]

    @property
    def name(self) -> str:
        return f"{self.model} + {self.variant}"

    def contender(self, key: str) -> Tested | None:
        return next((c for c in self.contenders if c.key == key), None)


@dataclass(frozen=True)
class ForeignSet:
    name: str
    about: str
    images: int


@dataclass(frozen=True)
class Robustness:
    """robustness.json, as `robustness` writes it."""

    evaluated: str
    images: int
    corrupted: str | None
    foreign: tuple[ForeignSet, ...]
    notes: tuple[str, ...]
    rows: tuple[TestedRow, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Epoch:
    epoch: float
    train: float  # accuracy in percent
    validation: float


@dataclass(frozen=True)
class Findings:
    """Everything about one study."""

    label: str
    evaluation: Evaluation
    robustness: Robustness | None  # None: not measured
    recipe: str  # as the file has it
    settings: dict[str, Any]  # the recipe's, by dotted path
    curves: dict[str, tuple[Epoch, ...]]  # by task; none where the table of epochs is gone


def read_findings(folder: Path, label: str) -> Findings:
    """Raises ReportError."""
    layout = Layout(folder)
    evaluation = read_evaluation(layout.evaluation("json"))
    path = layout.robustness("json")
    robustness = read_robustness(path) if path.exists() else None
    try:
        recipe = layout.recipe.read_text(encoding="utf-8")
        settings = flatten(load_recipe(layout.recipe))
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise ReportError(f"{layout.recipe}: can't be read: {error}") from None
    rows = evaluation.rows
    curves = {row.task: _read_epochs(layout.row(row.model, row.variant).csv) for row in rows}
    return Findings(label, evaluation, robustness, recipe, settings, curves)


def read_evaluation(path: Path) -> Evaluation:
    """Raises ReportError: no such file, not evaluate's, or of another version of it."""
    return cast(Evaluation, _read_rows(Evaluation, path, "evaluate"))


def read_robustness(path: Path) -> Robustness:
    """Raises ReportError, as `read_evaluation`."""
    return cast(Robustness, _read_rows(Robustness, path, "robustness"))


def _read_rows(kind: type, path: Path, command: str) -> object:
    """The file that `command` left, rows with a problem apart."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(
            f"{path}: no such file; run `python -m fusionrun {command} {path.parent}` first"
        ) from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: can't be read: {error}; run {command} again") from None
    found = (
        tree.get("format", "nothing") if isinstance(tree, dict) else f"no {kind.__name__.lower()}"
    )
    if found != FORMAT:
        raise ReportError(
            f"{path}: format: found {found!r}, expected {FORMAT}; run this version's {command} "
            "again"
        )
    try:
        rows = cast(list[dict[str, Any]], _read(list[dict[str, Any]], tree.get("rows"), "rows"))
        failures = [row for row in rows if row.get("problem")]
        measured = [row for row in rows if not row.get("problem")]
        tree = {**tree, "rows": measured, "failures": failures}
        return _read(kind, tree, "")
    except ValueError as error:
        raise ReportError(f"{path}: {error}; run this version's {command} again") from None


def _read_epochs(path: Path) -> tuple[Epoch, ...]:
    columns = ("epoch", "train_accuracy", "val_accuracy")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            epochs = [Epoch(*(float(line[c]) for c in columns)) for line in csv.DictReader(file)]
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: is not a training log: {error!r}") from None
    return tuple(e for e in epochs if all(map(math.isfinite, dataclasses.astuple(e))))


def _read(hint: Any, tree: Any, where: str) -> object:
    """`tree` as `hint` says, fields it doesn't know left aside; ValueError names what is wrong."""
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):  # X | None
        return None if tree is None else _read(arguments[0], tree, where)
    kind = typing.get_origin(hint) or hint
    if kind in (list, tuple) and isinstance(tree, list):
        return kind(_read(arguments[0], item, f"{where}.{i}") for i, item in enumerate(tree))
    if kind is dict and isinstance(tree, dict):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in tree.items()}
    if dataclasses.is_dataclass(kind) and isinstance(tree, dict):
        return _read_fields(kind, tree, where)
    if hint is Any or type(tree) is kind or (kind is float and type(tree) is int):
        return cast(object, tree)
    raise ValueError(f"{where}: found {tree!r:.60}, expected {kind.__name__}")


def _read_fields(kind: Any, tree: dict[str, Any], where: str) -> object:
    hints = typing.get_type_hints(kind)
    values = {}
    for spec in dataclasses.fields(kind):
        path = f"{where}.{spec.name}".lstrip(".")
        if spec.name in tree:
            values[spec.name] = _read(hints[spec.name], tree[spec.name], path)
        elif spec.default is dataclasses.MISSING:
            raise ValueError(f"{path}: found nothing, expected a value")
    return cast(object, kind(**values))
