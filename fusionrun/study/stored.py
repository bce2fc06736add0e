"""The study that an output directory holds already, and what a launch adds to it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fusionrun.study.identity import identity_of_study
from fusionrun.study.paths import Layout
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import WITHOUT_EXPERTS, Recipe, RecipeError, RowConfig, named
from fusionrun.study.recipe_yaml import load_stored
from fusionrun.study.rows import networks_of, rows_of
from fusionrun.study.study import Study
from fusionrun.training.identity import IdentityError


def stored_study(output_dir: Path, overrides: Iterable[str] = ()) -> Study:
    """The study in `output_dir`, wherever its folder is now. Raises RecipeError."""
    return plan_study(*load_stored(output_dir, overrides))


def join_stored(recipe: Recipe, layout: Layout, *, in_use: bool = False) -> Recipe:
    """`recipe` with every row of the study that its output directory holds.

    The stored rows come first and keep their places, and so their names. Where nothing was trained
    yet, and no launch is at it (`in_use`), the stored recipe counts for nothing. Raises RecipeError
    where it is another study's.
    """
    if not layout.recipe.is_file():
        return recipe
    stored, _ = load_stored(layout.output_dir)
    if not in_use and not has_results(stored, layout):
        return recipe
    models = _architectures(stored) & _architectures(recipe)
    try:
        identity_of_study(recipe, models).require_same(
            f"{layout.recipe} (the study in this folder)", identity_of_study(stored, models).fields
        )
    except IdentityError as error:
        raise RecipeError(str(error)) from None
    _require_same_names(stored, recipe, f"{layout.recipe} (the study in this folder)")
    return _joined(stored, recipe)


def _require_same_names(stored: Recipe, recipe: Recipe, place: str) -> None:
    """Raise RecipeError where a name that `recipe` gives to experts isn't theirs in the study."""
    for row in recipe.all_rows():
        for other in stored.all_rows() if row.name is not None else ():
            if other.label == row.label and other.model != row.model:
                found = f"{other.label} has other experts there: {', '.join(other.model)}"
                raise RecipeError(f"{place}: {found}; choose another name for {list(row.model)}")
            if other.model == row.model and other.label != row.label:
                found = f"the experts of {row.label} are called {other.label} there"
                raise RecipeError(f"{place}: {found}; leave out their name")


def _architectures(recipe: Recipe) -> set[str]:
    return {model for row in rows_of(recipe) for model in row.architectures}


def has_results(recipe: Recipe, layout: Layout) -> bool:
    """Whether anything was trained for a row of `recipe`, or is half-done."""
    rows = rows_of(recipe)
    networks = [network for row in rows for network in networks_of(row)]
    files = [layout.row(row.model, row.variant) for row in (*rows, *networks)]
    if any(each.manifest.exists() or each.checkpoint.exists() for each in files):
        return True
    folders = (layout.expert_checkpoints, layout.state / "experts")
    return any(path for folder in folders for path in folder.rglob("*.pth"))


def _joined(stored: Recipe, recipe: Recipe) -> Recipe:
    """`recipe` with the stored rows before its own; as it is where that changes nothing."""
    kept, own = stored.all_rows(), recipe.all_rows()
    wanted = named(own, kept)
    explicit = tuple(_explicit(row, stored) for row in kept)
    rows = list(explicit)
    rows += [row for row in (_explicit(row, recipe) for row in wanted) if row not in explicit]
    if rows == [_explicit(row, recipe) for row in own]:
        return recipe
    if rows == list(explicit):
        table = {"rows": stored.rows, "grid": stored.grid, "controls": stored.controls}
    else:
        table = {"rows": tuple(rows), "grid": None, "controls": ()}
    models = {**stored.models, **recipe.models}
    for model in _architectures(stored) - _architectures(recipe):  # whose networks are made already
        models[model] = stored.models.get(model, {})
    return replace(
        recipe,
        **table,  # type: ignore[arg-type]
        models={model: own for model, own in models.items() if own},
        plugins={**stored.plugins, **recipe.plugins},
    )


def _explicit(row: RowConfig, recipe: Recipe) -> RowConfig:
    """The row with nothing left to its recipe."""
    if row.fusion in WITHOUT_EXPERTS:
        return replace(row, seed=recipe.seed if row.seed is None else row.seed)
    return replace(
        row,
        seed=recipe.seed if row.seed is None else row.seed,
        alpha=recipe.fusion.alpha if row.alpha is None else row.alpha,
        expert_seed=None if row.expert_seed == recipe.seed else row.expert_seed,
    )
