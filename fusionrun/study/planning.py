"""From a recipe to a study: names checked, networks built once, rows and tasks laid out."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fusionrun.common.plugins import is_backbone, load_plugin
from fusionrun.common.text import nearest
from fusionrun.common.typed_fields import FieldError
from fusionrun.data.augmentation.policies import AUGMENTATIONS
from fusionrun.data.datasets import DATASETS
from fusionrun.experts import BUILDERS, Expert
from fusionrun.fusions import FUSIONS, FusionModule
from fusionrun.study.models import known_names, settings_of
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import WITHOUT_EXPERTS, Recipe, RecipeError
from fusionrun.study.rows import Row, rows_of
from fusionrun.study.study import Study
from fusionrun.study.tasks import make_tasks
from fusionrun.study.trial import errors_at, work_per_image

# fusion types of later versions: a study may have called a part of its own so, which is meant then
LATER = ("alignedMultiplicative", "alignedAddition", "gated", "meanLogits")


def plan_study(recipe: Recipe, name: str) -> Study:
    """Check every name of the recipe against the tables, then lay out its rows and tasks.

    Raises RecipeError.
    """
    _check_names(recipe, name)
    layout = Layout(Path(recipe.output_dir))
    rows = rows_of(recipe)
    work = work_per_image(recipe, rows, name)
    data, experts, fusion = recipe.data, recipe.experts, recipe.fusion
    own_share = 1 / experts.count  # of what the experts divide among them
    if data.split == "iid":
        own_share = min(data.unique_fraction, (1 - data.shared_fraction) * own_share)
        own_share += data.shared_fraction
    pool_share = 1 - data.holdout_fraction
    fusion_share = data.holdout_fraction * (1 - data.val_fraction)

    def row_cost(row: Row) -> float:
        if row.is_single:
            return (pool_share + fusion_share) * experts.epochs * work[row.model]
        if row.is_full_ensemble:  # its networks are there: they answer images, say as many again
            return data.holdout_fraction * experts.count * work[row.model]
        each_image = sum(work[member.model] for member in row.experts)
        return fusion_share * fusion.epochs * each_image

    tasks = make_tasks(
        rows,
        expert_epochs=experts.epochs,
        fusion_epochs=fusion.epochs,
        expert_cost=lambda model: pool_share * own_share * experts.epochs * work[model],
        row_cost=row_cost,
    )
    return Study(
        name=name,
        recipe=recipe,
        layout=layout,
        checkpoint_dir=Path(experts.checkpoint_dir or layout.expert_checkpoints),
        splits_dir=Path(data.splits_dir or layout.splits),
        rows=rows,
        tasks=tasks,
    )


def _check_names(recipe: Recipe, name: str) -> None:
    def check(path: str, value: str, valid: Iterable[str]) -> None:
        if value not in valid:
            raise RecipeError(f"{name}: {path}: found {value!r}; {nearest(value, valid)}")

    def check_model(path: str, value: str) -> None:
        if not is_backbone(value):  # which is built, and so checked, in a moment
            check(path, value, [*models, "timm:NAME", "torchvision:NAME"])

    models, fusions, datasets = _known_names(recipe, name)
    for index, row in enumerate(recipe.rows):
        for place, model in _each(f"rows.{index}.model", row.model):
            check_model(place, model)
        check(f"rows.{index}.fusion", row.fusion, [*fusions, *WITHOUT_EXPERTS])
    if recipe.grid is not None:
        for place, model in _each("grid.models", recipe.grid.models):
            check_model(place, model)
        for index, fusion in enumerate(recipe.grid.fusions):
            check(f"grid.fusions.{index}", fusion, fusions)
    for model, arguments in recipe.models.items():
        check_model(f"models.{model}", model)
        known = known_names(recipe, model)
        for argument in arguments if known is not None else ():
            check(f"models.{model}.{argument}", argument, known or ())
        try:
            settings_of(recipe, model)
        except FieldError as error:
            raise RecipeError(f"{name}: models.{model}.{error}") from None
    check("data.name", recipe.data.name, datasets)
    check("experts.augmentation", recipe.experts.augmentation, [*AUGMENTATIONS, "auto"])
    check("fusion.augmentation", recipe.fusion.augmentation, [*AUGMENTATIONS, "auto"])


def _known_names(recipe: Recipe, name: str) -> tuple[list[str], list[str], list[str]]:
    """(architectures, fusion types, data sets): ours, and those of the recipe's plug-ins."""
    models, fusions, datasets = list(BUILDERS), list(FUSIONS), list(DATASETS)
    taken = {*models, *fusions, *datasets, *WITHOUT_EXPERTS}.difference(LATER)
    for plugin, source in recipe.plugins.items():
        place = f"{name}: plugins.{plugin}"
        if not re.fullmatch(r"\w+", plugin) or plugin in taken:
            raise RecipeError(f"{place}: expected a new name, of letters, digits and _")
        with errors_at(place):
            found = load_plugin(source)
        if not isinstance(found, type):
            datasets.append(plugin)
        elif issubclass(found, Expert):
            models.append(plugin)
        elif issubclass(found, FusionModule):
            fusions.append(plugin)
        else:
            raise RecipeError(
                f"{place}: found {found.__name__}, expected a subclass of fusionrun.experts.Expert "
                f"or fusionrun.fusions.FusionModule, or a function that loads a data set"
            )
    return models, fusions, datasets


def _each(place: str, names: str | Iterable[Any]) -> Iterator[tuple[str, str]]:
    """(its place in the recipe, name) of the names in lists of names."""
    if isinstance(names, str):
        yield place, names
        return
    for index, inner in enumerate(names):
        yield from _each(f"{place}.{index}", inner)
