"""`fusionrun doctor`: before spending hours."""

import argparse

from fusionrun.commands.options import OVERRIDES, Verbs, make_console, recipe_and_overrides
from fusionrun.common.distributed import RankInfo, usual_ranks
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.shipped_recipes import find_recipe


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "doctor",
        help="check everything a launch needs before spending hours, and estimate its time",
        description="Check folders, disk, devices, data, splits and experts, time a few training "
        "steps of every row and add up how long the launch will take. Writes nothing but the data "
        "set's cache. Exit status: 0 nothing failed, 1 something would make the launch fail, "
        "2 wrong recipe or command line.",
    )
    verb.add_argument("words", nargs="+", metavar="RECIPE key=value", help=OVERRIDES)
    verb.add_argument(
        "--ranks",
        type=int,
        help="of the launch on this machine (default: its GPUs, 4 without one)",
    )
    verb.add_argument(
        "--seconds", type=float, default=10.0, help="of timing for each kind of task (default 10)"
    )
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Check and estimate."""
    recipe_word, overrides = recipe_and_overrides(options.words)
    if recipe_word is None:
        raise RecipeError("doctor needs a RECIPE")
    if (options.ranks is not None and options.ranks < 1) or not options.seconds > 0:
        raise RecipeError("--ranks and --seconds: expected a number above 0")
    recipe = load_recipe(find_recipe(recipe_word), overrides)
    from fusionrun.components.starting_experts import plan_from_experts
    from fusionrun.doctor.doctor import doctor

    study = plan_from_experts(recipe, recipe_word)
    ranks = options.ranks or usual_ranks(recipe.runtime.device)
    return doctor(study, rank_info, make_console(), ranks=ranks, seconds=options.seconds)
