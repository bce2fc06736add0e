"""`fusionrun evaluate`: saved models beside their cheap alternatives."""

import argparse
from pathlib import Path

from fusionrun.commands.options import Verbs, make_console
from fusionrun.common.distributed import RankInfo
from fusionrun.study.recipe_yaml import load_stored


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "evaluate",
        help="measure a study's saved models and their cheap alternatives",
        description="Load the components of every finished row of OUTPUT_DIR, verify them against "
        "their manifests and measure them on the test set beside the cheap alternatives: accuracy, "
        "calibration, differences with intervals, what each expert brings, cost. Writes "
        "evaluation.json, .md and .csv, results.csv, .md and .svg, and each row's predictions.npz, "
        "which the next time is used again. Exit status: 0 all rows measured, 1 could not start or "
        "write, 2 wrong recipe or command line, 3 not all rows.",
    )
    verb.add_argument("output_dir", metavar="OUTPUT_DIR")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Measure the finished rows of the output directory."""
    recipe, name = load_stored(Path(options.output_dir))
    from fusionrun.evaluation.evaluate import evaluate
    from fusionrun.study.planning import plan_study

    return evaluate(plan_study(recipe, name), rank_info, make_console())
