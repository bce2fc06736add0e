"""What a report is made of: what `evaluate` and `robustness` measured, tables of epochs, recipe."""

import csv
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fusionrun.common.typed_fields import FieldError, build, flatten
from fusionrun.evaluation.schema import FORMAT, Evaluation
from fusionrun.robustness.schema import Robustness
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe

T = TypeVar("T")


class ReportError(Exception):
    """There is nothing to report from, or nowhere to put it; the message says what to do."""


@dataclass(frozen=True)
class Epoch:
    epoch: float
    train: float  # accuracy in percent
    validation: float


@dataclass(frozen=True)
class StudyResults:
    """Everything about one study."""

    label: str
    evaluation: Evaluation
    robustness: Robustness | None  # None: not measured
    recipe: str  # as the file has it
    settings: dict[str, Any]  # the recipe's, by dotted path
    curves: dict[str, tuple[Epoch, ...]]  # by task; none where the table of epochs is gone


def read_study(folder: Path, label: str) -> StudyResults:
    """Raises ReportError."""
    layout = Layout(folder)
    evaluation = _read_measured(layout.evaluation("json"), Evaluation, "evaluate")
    path = layout.robustness("json")
    robustness = _read_measured(path, Robustness, "robustness") if path.exists() else None
    try:
        recipe = layout.recipe.read_text(encoding="utf-8")
        settings = flatten(load_recipe(layout.recipe))
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise ReportError(f"{layout.recipe}: can't be read: {error}") from None
    rows = evaluation.rows
    curves = {row.task: _read_epochs(layout.row(row.model, row.variant).csv) for row in rows}
    return StudyResults(label, evaluation, robustness, recipe, settings, curves)


def _read_measured(path: Path, kind: type[T], command: str) -> T:
    """The file that `command` left. Raises ReportError: none, or of another version of it."""
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
        return build(kind, tree, strict=False)
    except FieldError as error:
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
