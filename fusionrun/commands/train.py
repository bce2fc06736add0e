"""`fusionrun train`: the rows of a recipe, or one row in the words of the seed's scripts."""

import argparse
import gc
import os
from pathlib import Path
from typing import Any

from fusionrun.commands.options import OVERRIDES, Verbs, make_console, recipe_and_overrides
from fusionrun.common.distributed import RankInfo
from fusionrun.common.text import plural
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.shipped_recipes import find_recipe, shipped_recipes


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "train",
        help="train a study's rows",
        description="Train the rows of a recipe: under torchrun one rank a row, else one after "
        "another. With --model and --fusion_type: that single row, on the recipe's data "
        "(default recipe: configs/cifar100.yaml).",
        epilog="Exit status: 0 all rows done, 1 could not start, 2 wrong recipe or command line, "
        "3 some row failed, 4 stopped before the end (run it again to go on).",
    )
    verb.add_argument("words", nargs="*", metavar="RECIPE key=value", help=OVERRIDES)
    verb.add_argument("--model", help="train one row: its architecture")
    verb.add_argument("--fusion_type", help="train one row: its fusion")
    verb.add_argument(
        "--checkpoint_dir",
        help="experts' checkpoints: a folder with <model>/expert_<k>_best.pth, or <model> itself",
    )
    verb.add_argument("--output_dir", help="where everything of this run goes")
    verb.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="of the recipe's rows those whose model/fusion fits, e.g. 'densenet/*' or "
        "'*/TransformerBase-seed7'; can be given again",
    )
    verb.add_argument(
        "--rerun",
        choices=["failed"],
        help="only the rows that failed in the last launch; without it, all that isn't done",
    )
    verb.add_argument("--epochs", type=int, help="epochs of fusion training")
    verb.add_argument("--batch_size", type=int, help="batch size of fusion training")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Train as the rank that `rank_info` says; returns the exit status."""
    recipe_word, overrides = recipe_and_overrides(options.words)
    preset = flags_as_fields(options)
    if recipe_word is None:
        default = "cifar100" if "rows" in preset else os.environ.get("FUSIONRUN_DEFAULT_RECIPE")
        if not default:  # launch.sh has one
            raise RecipeError("train needs a RECIPE, or --model and --fusion_type")
        recipe_word = str(shipped_recipes()[default])
    recipe = load_recipe(find_recipe(recipe_word), overrides, preset)
    # torch takes seconds to import; a wrong recipe shouldn't have to wait for it
    if rank_info.rank == 0:
        ranks = plural(rank_info.world_size, "rank")
        print(f"fusionrun: {recipe_word}: loads PyTorch on {ranks}", flush=True)
    from fusionrun.components.starting_experts import plan_from_experts
    from fusionrun.launch.rank import run as run_launch

    study = plan_from_experts(recipe, recipe_word)
    if options.only:
        study = study.matching(options.only)
    gc.freeze()  # modules stay: looking through them for garbage between tasks takes 0.1 s
    return run_launch(study, rank_info, make_console(), only_failed=options.rerun == "failed")


def flags_as_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of the one-row command as dotted paths of the recipe.

    Raises RecipeError when only one of --model and --fusion_type is given.
    """
    fields: dict[str, Any] = {}
    if (options.model is None) != (options.fusion_type is None):
        raise RecipeError("--model and --fusion_type belong together: found only one of them")
    if options.model is not None:
        fields["rows"] = [{"model": options.model, "fusion": options.fusion_type}]
        fields["grid"] = None
    if options.checkpoint_dir is not None:
        folder = Path(options.checkpoint_dir)
        inside = options.model is not None and folder.name == options.model
        fields["experts.checkpoint_dir"] = str(folder.parent if inside else folder)
    flags = {
        "output_dir": options.output_dir,
        "fusion.epochs": options.epochs,
        "fusion.batch_size": options.batch_size,
    }
    return fields | {key: value for key, value in flags.items() if value is not None}
