"""`fusionrun preview`: which fusion types are worth a row."""

import argparse
from pathlib import Path

from fusionrun.commands.options import (
    OUTPUT,
    OVERRIDES,
    Verbs,
    make_console,
    path,
    recipe_and_overrides,
)
from fusionrun.common.distributed import RankInfo
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe, load_stored
from fusionrun.study.shipped_recipes import find_recipe


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "preview",
        help="rank all fusion types on the frozen experts' features, in minutes",
        description="Read the features of a study's trained experts once, train every fusion type "
        "on them and rank them by validation accuracy, beside the mean of the experts' "
        "probabilities. A ranking to choose rows by: in a row the experts train too. The test set "
        "is not touched. Writes preview.json and preview.md. Exit status: 0 all architectures "
        "ranked, 1 could not start or write, 2 wrong recipe or command line, 3 not all.",
    )
    verb.add_argument(
        "words",
        nargs="+",
        metavar="RECIPE_or_OUTPUT_DIR key=value",
        help=f"{OVERRIDES}; of an OUTPUT_DIR only where things lie and runtime.*",
    )
    verb.add_argument("--output", type=path, metavar="DIR", help=OUTPUT)
    verb.add_argument("--seeds", type=int, default=3, help="trainings of each fusion (default 3)")
    verb.add_argument("--epochs", type=int, default=30, help="of each training (default 30)")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Rank the fusion types of a recipe's or an output directory's experts."""
    recipe_word, overrides = recipe_and_overrides(options.words)
    if recipe_word is None:
        raise RecipeError("preview needs a RECIPE or an OUTPUT_DIR")
    if options.seeds < 1 or options.epochs < 1:
        raise RecipeError("--seeds and --epochs: expected a number above 0")
    folder = Path(recipe_word)
    if folder.is_dir():
        recipe, recipe_word = load_stored(folder, overrides)
    else:
        recipe = load_recipe(find_recipe(recipe_word), overrides)
    from fusionrun.components.starting_experts import plan_from_experts
    from fusionrun.evaluation.preview import preview

    return preview(
        plan_from_experts(recipe, recipe_word).measured_in(options.output),
        rank_info,
        make_console(),
        seeds=options.seeds,
        epochs=options.epochs,
        new_splits=not folder.is_dir(),
    )
