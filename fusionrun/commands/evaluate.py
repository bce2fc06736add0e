"""`fusionrun evaluate`: saved models beside their cheap alternatives."""

import argparse

from fusionrun.commands.options import (
    OUTPUT,
    PLACES,
    Verbs,
    make_console,
    path,
    study_and_overrides,
)
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
    verb.add_argument("words", nargs="+", metavar="OUTPUT_DIR key=value", help=PLACES)
    verb.add_argument("--output", type=path, metavar="DIR", help=OUTPUT)
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Measure the finished rows of the output directory."""
    folder, overrides = study_and_overrides(options.words, "evaluate")
    recipe, name = load_stored(folder, overrides)
    from fusionrun.evaluation.evaluate import evaluate
    from fusionrun.study.planning import plan_study

    study = plan_study(recipe, name).measured_in(options.output)
    return evaluate(study, rank_info, make_console())
