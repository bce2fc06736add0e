"""`fusionrun robustness`: saved models on changed and on out-of-distribution images."""

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
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_stored


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "robustness",
        help="measure a study's saved models on noisy, corrupted and OOD images",
        description="Ask every finished row of OUTPUT_DIR about the test images clean, with noise "
        "and under fifteen corruptions at five severities, and compare how sure it is of them and "
        "of out-of-distribution (OOD) images. Writes robustness.json, .md and .csv, which `report` "
        "shows. Exit status: as evaluate's.",
    )
    verb.add_argument("words", nargs="+", metavar="OUTPUT_DIR key=value", help=PLACES)
    verb.add_argument("--output", type=path, metavar="DIR", help=OUTPUT)
    verb.add_argument(
        "--corrupted",
        type=path,
        metavar="FOLDER",
        help="the unpacked CIFAR-10-C or CIFAR-100-C: measure on its images too",
    )
    verb.add_argument(
        "--ood",
        type=path,
        metavar="FOLDER",
        help="OOD images, directly in it or in folders directly inside it; without it built-in "
        "ones: noise, clouds, shapes",
    )
    # its name in the first edition
    verb.add_argument("--foreign", type=path, dest="ood", help=argparse.SUPPRESS)
    verb.add_argument("--images", type=int, metavar="N", help="of the test set; default all")
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Measure the finished rows of the output directory."""
    if options.images is not None and options.images < 1:
        raise RecipeError(f"--images: found {options.images}, expected a number above 0")
    folder, overrides = study_and_overrides(options.words, "robustness")
    recipe, name = load_stored(folder, overrides)
    from fusionrun.robustness.measure import RobustnessOptions
    from fusionrun.robustness.run import robustness
    from fusionrun.study.planning import plan_study

    wanted = RobustnessOptions(options.corrupted, options.ood, options.images)
    study = plan_study(recipe, name).measured_in(options.output)
    return robustness(study, rank_info, make_console(), wanted)
