"""`fusionrun prepare`: the data and its splits, before any training."""

import argparse

from fusionrun.commands.options import OVERRIDES, Verbs, recipe_and_overrides
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.text import problem_of
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.shipped_recipes import find_recipe


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "prepare",
        help="fetch or check the data, write the splits",
        description="Load the recipe's data set (fetching it when data.download is true), prepare "
        "its cache (data.cache_dir) and write the splits that `train` uses (data.splits_dir, "
        "default OUTPUT_DIR/splits): two .npy files of indices and split_meta.json.",
        epilog="Exit status: 0 all is there, 1 the data can't be had, the splits there are of "
        "other data, or nothing can be written, 2 wrong recipe or command line.",
    )
    verb.add_argument("words", nargs="+", metavar="RECIPE key=value", help=OVERRIDES)
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Load the data, write the splits and say what they hold."""
    recipe_word, overrides = recipe_and_overrides(options.words)
    if recipe_word is None:
        raise RecipeError("prepare needs a RECIPE")
    recipe = load_recipe(find_recipe(recipe_word), overrides)
    from fusionrun.data.datasets import DataError
    from fusionrun.data.split_files import stored_split
    from fusionrun.study.context import load_data
    from fusionrun.study.planning import plan_study

    study = plan_study(recipe, recipe_word)
    try:
        data, splits = load_data(study, lambda text: print(text, flush=True))
    except (DataError, OSError) as error:
        raise LaunchError(problem_of(error)) from None
    split = stored_split(study.splits_dir)
    for note in [*data.notes, *([split.adopted] if split and split.adopted else [])]:
        print(note)
    experts = ", ".join(str(len(part)) for part in splits.expert_train)
    print(
        f"{data.name}: {len(data.train_labels)} training and {len(data.test_labels)} test images, "
        f"{len(data.classes)} classes"
    )
    print(
        f"splits in {study.splits_dir}: experts {experts}; fusion {len(splits.fusion_train)} for "
        f"training, {len(splits.fusion_val)} for validation"
    )
    return ExitStatus.DONE
