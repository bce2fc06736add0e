"""What a report is made of: what `evaluate` and `robustness` measured, tables of epochs, recipe."""

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fusionrun.common.text import problem_of
from fusionrun.common.typed_fields import FieldError, build, flatten
from fusionrun.evaluation.schema import FORMAT, Evaluation
from fusionrun.robustness.schema import Robustness
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_stored

M = TypeVar("M", Evaluation, Robustness)


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


def read_study(
    folder: Path, label: str, elsewhere: Path, overrides: Sequence[str] = ()
) -> StudyResults:
    """Of the study in `folder`; what was measured of it lies there, or `elsewhere`.

    Raises ReportError.
    """
    layout = Layout(folder)
    evaluation = _read_latest(layout, elsewhere, Evaluation, "evaluate")
    if evaluation is None:
        path = layout.evaluation("json")
        raise ReportError(
            f"{path}: no such file; run `python -m fusionrun evaluate {folder}` first"
        )
    robustness = _read_latest(layout, elsewhere, Robustness, "robustness")
    try:
        recipe = layout.recipe.read_text(encoding="utf-8")
        settings = flatten(load_stored(folder, overrides)[0])
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise ReportError(f"{layout.recipe}: can't be read: {problem_of(error)}") from None
    rows = evaluation.rows
    curves = {row.task: _read_epochs(layout.row(row.model, row.variant).csv) for row in rows}
    return StudyResults(label, evaluation, robustness, recipe, settings, curves)


def _read_latest(layout: Layout, elsewhere: Path, kind: type[M], command: str) -> M | None:
    """What `command` left, of this study `elsewhere` or else in its own folder; None: nothing."""
    for each in (replace(layout, elsewhere=elsewhere), layout):
        path = (each.evaluation if kind is Evaluation else each.robustness)("json")
        found = _read_measured(path, kind, command) if path.exists() else None
        own = layout.output_dir.resolve()
        if found and (each is layout or Path(found.output_dir).resolve() == own):
            return found
    return None


def _read_measured(path: Path, kind: type[M], command: str) -> M:
    """The file that `command` left. Raises ReportError: none, or of another version of it."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(
            f"{path}: can't be read: {problem_of(error)}; run {command} again"
        ) from None
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
