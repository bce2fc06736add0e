"""The commands; thin: each parses its words and calls what does the work."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from fusionrun import __version__
from fusionrun.common.distributed import LaunchError, RankInfo, read_rank_info
from fusionrun.common.exit_status import ExitStatus
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe

SHIPPED = Path(__file__).resolve().parent.parent / "configs"


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        rank_info = read_rank_info(os.environ)
    except LaunchError as error:
        print(f"fusionrun: {error}", file=sys.stderr)
        return ExitStatus.NOT_STARTED
    code = _run_command(arguments, rank_info)
    return _report(code, rank_info)


def _run_command(arguments: Sequence[str], rank_info: RankInfo) -> int:
    try:
        options = _parse(_parser(rank_info), arguments)
        return int(options.command(options, rank_info))
    except RecipeError as error:
        return _complain(rank_info, str(error), ExitStatus.WRONG_RECIPE)
    except LaunchError as error:
        return _complain(rank_info, str(error), ExitStatus.NOT_STARTED)
    except SystemExit as error:  # argparse: --help, or a wrong command line
        return int(error.code or 0)


def _report(code: int, rank_info: RankInfo) -> int:
    """Hand the exit status to launch.sh, which asks for it with FUSIONRUN_EXIT_FILE.

    torchrun has one status for every failure and would restart workers that failed on purpose;
    for launch.sh they leave quietly and the status travels by file.
    """
    path = os.environ.get("FUSIONRUN_EXIT_FILE")
    if not path:
        return code
    if rank_info.local_rank == 0:
        Path(path).write_text(f"{code:d}\n")
    return 0


def _complain(rank_info: RankInfo, message: str, code: int) -> int:
    """All ranks meet the same mistake; one says so."""
    if rank_info.rank == 0:
        print(f"fusionrun: {message}", file=sys.stderr)
    return code


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """As parse_args, but words may stand on both sides of flags: `R --epochs 3 fusion.alpha=2`."""
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "words") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.words += rest
    return options


class _Parser(argparse.ArgumentParser):
    """Complains on rank 0 only."""

    rank = 0

    def error(self, message: str) -> NoReturn:
        if self.rank == 0:
            print(f"fusionrun: {message}; see {self.prog} --help", file=sys.stderr)
        self.exit(ExitStatus.WRONG_RECIPE)


def _parser(rank_info: RankInfo) -> argparse.ArgumentParser:
    _Parser.rank = rank_info.rank
    parser = _Parser(
        prog="python -m fusionrun",
        description="Train many expert-fusion models side by side in one torchrun launch.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(verbs)
    _add_prepare(verbs)
    _add_doctor(verbs)
    _add_preview(verbs)
    _add_watch(verbs)
    _add_evaluate(verbs)
    _add_robustness(verbs)
    _add_report(verbs)
    _add_assemble(verbs)
    _add_export(verbs)
    return parser


def _add_evaluate(verbs: Any) -> None:
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
    verb.set_defaults(command=_evaluate)


def _add_robustness(verbs: Any) -> None:
    verb = verbs.add_parser(
        "robustness",
        help="measure a study's saved models on noisy, corrupted and foreign images",
        description="Ask every finished row of OUTPUT_DIR about the test images clean, with noise "
        "and under fifteen corruptions at five severities, and compare how sure it is of them and "
        "of images of something else. Writes robustness.json, .md and .csv, which `report` shows. "
        "Exit status: as evaluate's.",
    )
    verb.add_argument("output_dir", metavar="OUTPUT_DIR")
    verb.add_argument(
        "--corrupted",
        metavar="FOLDER",
        help="the unpacked CIFAR-10-C or CIFAR-100-C: measure on its images too",
    )
    verb.add_argument(
        "--foreign",
        metavar="FOLDER",
        help="images of something else, directly in it or in folders directly inside it; without "
        "it built-in ones: noise, clouds, shapes",
    )
    verb.add_argument("--images", type=int, metavar="N", help="of the test set; default all")
    verb.set_defaults(command=_robustness)


def _add_report(verbs: Any) -> None:
    verb = verbs.add_parser(
        "report",
        help="tables and pictures of what `evaluate` measured",
        description="Write report.html (one page that needs no network) and its tables as "
        "report.md, report.csv and report.tex from what `evaluate` left in OUTPUT_DIR. Several "
        "directories are compared side by side; the files go to the first.",
    )
    verb.add_argument("output_dirs", nargs="+", metavar="OUTPUT_DIR")
    verb.add_argument("--output", metavar="FILE.html", help="another place for the page")
    verb.set_defaults(command=_write_report)


def _add_assemble(verbs: Any) -> None:
    verb = verbs.add_parser(
        "assemble",
        help="build a model from components of different rows or runs",
        description="Put experts, a fusion module and a global head of different rows or runs "
        "together and save them as a row's folder that load_model loads. MANIFEST.yaml has the "
        "keys experts (a row's folder, or a list of expert files), fusion (a row's folder, or a "
        "file), global_head (as fusion, which is the default) and evaluate (optional: the output "
        "directory of the study on whose images the model is measured).",
        epilog="Exit status: 0 assembled, 1 could not start or write, 2 the manifest or command "
        "line is wrong, or the components don't fit together.",
    )
    verb.add_argument("manifest", metavar="MANIFEST.yaml")
    verb.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or an empty folder")
    verb.set_defaults(command=_assemble)


def _add_export(verbs: Any) -> None:
    verb = verbs.add_parser(
        "export",
        help="write a saved model as one file that runs without fusionrun",
        description="Write the model in ROW_DIR as a program from images (N, 3, H, W), float32 "
        "scaled to 0..1, to fused logits (N, classes), for any N; it normalises by itself. The "
        "file is loaded again and must answer as the model does.",
        epilog="Exit status: 0 written, 1 the model can't be loaded, exported or written, or its "
        "copy answers differently, 2 the command line is wrong.",
    )
    verb.add_argument("row_dir", metavar="ROW_DIR", help="the folder with manifest.json")
    verb.add_argument(
        "--format",
        choices=["torch_export", "onnx"],
        default="torch_export",
        help="torch_export (default): for torch.export.load; onnx: for ONNX Runtime and others",
    )
    verb.add_argument("--output", metavar="FILE", help="default: ROW_DIR/model.pt2 or .onnx")
    verb.set_defaults(command=_export)


OVERRIDES = "key=value overrides any field of the recipe by its dotted path, e.g. fusion.epochs=3"


def _add_train(verbs: Any) -> None:
    verb = verbs.add_parser(
        "train",
        help="train a study's rows",
        description="Train the rows of a recipe: under torchrun one rank a row, else one after "
        "another. With --model and --fusion_type: that single row, on the recipe's data "
        f"(default recipe: {SHIPPED.name}/cifar100.yaml).",
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
    verb.set_defaults(command=_train)


def _add_prepare(verbs: Any) -> None:
    verb = verbs.add_parser(
        "prepare",
        help="fetch or check the data, write the splits",
        description="Load the recipe's data set (fetching it when data.download is true), prepare "
        "its cache and write the splits that `train` uses.",
    )
    verb.add_argument("words", nargs="+", metavar="RECIPE key=value", help=OVERRIDES)
    verb.set_defaults(command=_prepare)


def _add_doctor(verbs: Any) -> None:
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
        "--ranks", type=int, default=4, help="of the launch on this machine (default 4)"
    )
    verb.add_argument(
        "--seconds", type=float, default=10.0, help="of timing for each kind of task (default 10)"
    )
    verb.set_defaults(command=_doctor)


def _add_preview(verbs: Any) -> None:
    verb = verbs.add_parser(
        "preview",
        help="rank all fusion types on the frozen experts' features, in minutes",
        description="Read the features of a study's trained experts once, train every fusion type "
        "on them and rank them by validation accuracy, beside the mean of the experts' "
        "probabilities. A ranking to choose rows by: in a row the experts train too. The test set "
        "is not touched. Writes preview.json and preview.md. Exit status: 0 all architectures "
        "ranked, 1 could not start or write, 2 wrong recipe or command line, 3 not all.",
    )
    verb.add_argument("words", nargs="+", metavar="RECIPE_or_OUTPUT_DIR key=value", help=OVERRIDES)
    verb.add_argument("--seeds", type=int, default=3, help="trainings of each fusion (default 3)")
    verb.add_argument("--epochs", type=int, default=30, help="of each training (default 30)")
    verb.set_defaults(command=_preview)


def _add_watch(verbs: Any) -> None:
    verb = verbs.add_parser(
        "watch",
        help="show a running launch's table from another shell",
        description="Show the live table of the launch that writes to OUTPUT_DIR, from any "
        "machine that sees the folder.",
    )
    verb.add_argument("output_dir", metavar="OUTPUT_DIR")
    verb.set_defaults(command=_watch)


def _split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """(recipe or None, overrides)."""
    recipes = [word for word in words if "=" not in word or _is_file(word)]
    if len(recipes) > 1:
        raise RecipeError(f"found {len(recipes)} recipes ({', '.join(recipes)}), expected one")
    overrides = [word for word in words if word not in recipes]
    return (Path(recipes[0]) if recipes else None), overrides


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # an override can be longer than any file's name
        return False


def _train(options: argparse.Namespace, rank_info: RankInfo) -> int:
    path, overrides = _split_words(options.words)
    preset = _preset(options)
    if path is None:
        if "rows" not in preset:
            raise RecipeError("train needs a RECIPE, or --model and --fusion_type")
        path = SHIPPED / "cifar100.yaml"
    recipe = load_recipe(path, overrides, preset)
    # torch takes seconds to import; a wrong recipe shouldn't have to wait for it
    from fusionrun.launch.rank import run
    from fusionrun.study.study import plan_study

    study = plan_study(recipe, str(path))
    if options.only:
        study = study.matching(options.only)
    return run(study, rank_info, make_console(), only_failed=options.rerun == "failed")


def make_console() -> Console:
    """The terminal as it is, or a log file that is wide enough for the tables."""
    return Console() if sys.stdout.isatty() else Console(width=140, color_system=None)


def _preset(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of the one-row command as dotted paths of the recipe."""
    preset: dict[str, Any] = {}
    if (options.model is None) != (options.fusion_type is None):
        raise RecipeError("--model and --fusion_type belong together: found only one of them")
    if options.model is not None:
        preset["rows"] = [{"model": options.model, "fusion": options.fusion_type}]
        preset["grid"] = None
    if options.checkpoint_dir is not None:
        folder = Path(options.checkpoint_dir)
        inside = options.model is not None and folder.name == options.model
        preset["experts.checkpoint_dir"] = str(folder.parent if inside else folder)
    flags = {
        "output_dir": options.output_dir,
        "fusion.epochs": options.epochs,
        "fusion.batch_size": options.batch_size,
    }
    return preset | {key: value for key, value in flags.items() if value is not None}


def _prepare(options: argparse.Namespace, rank_info: RankInfo) -> int:
    path, overrides = _split_words(options.words)
    if path is None:
        raise RecipeError("prepare needs a RECIPE")
    recipe = load_recipe(path, overrides)
    from fusionrun.data.datasets import DataError
    from fusionrun.study.context import load_data
    from fusionrun.study.study import plan_study

    study = plan_study(recipe, str(path))
    try:
        data, splits = load_data(study, lambda text: print(text, flush=True))
    except (DataError, OSError) as error:
        raise LaunchError(str(error)) from None
    for note in data.notes:
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
    return 0


def _doctor(options: argparse.Namespace, rank_info: RankInfo) -> int:
    path, overrides = _split_words(options.words)
    if path is None:
        raise RecipeError("doctor needs a RECIPE")
    if options.ranks < 1 or not options.seconds > 0:
        raise RecipeError("--ranks and --seconds: expected a number above 0")
    recipe = load_recipe(path, overrides)
    if rank_info.rank > 0:
        return 0  # under torchrun one process looks for all
    from fusionrun.doctor.doctor import doctor
    from fusionrun.study.study import plan_study

    study = plan_study(recipe, str(path))
    return doctor(study, rank_info, make_console(), ranks=options.ranks, seconds=options.seconds)


def _preview(options: argparse.Namespace, rank_info: RankInfo) -> int:
    path, overrides = _split_words(options.words)
    if path is None:
        raise RecipeError("preview needs a RECIPE or an OUTPUT_DIR")
    if options.seeds < 1 or options.epochs < 1:
        raise RecipeError("--seeds and --epochs: expected a number above 0")
    preset = {}
    if path.is_dir():
        path, preset = path / "recipe.yaml", {"output_dir": str(path)}
    recipe = load_recipe(path, overrides, preset)
    from fusionrun.evaluation.preview import preview
    from fusionrun.study.study import plan_study

    study = plan_study(recipe, str(path))
    return preview(study, rank_info, make_console(), seeds=options.seeds, epochs=options.epochs)


def _watch(options: argparse.Namespace, rank_info: RankInfo) -> int:
    from fusionrun.monitor.live import watch

    return watch(Path(options.output_dir))


def _evaluate(options: argparse.Namespace, rank_info: RankInfo) -> int:
    folder = Path(options.output_dir)
    path = folder / "recipe.yaml"
    recipe = load_recipe(path, preset={"output_dir": str(folder)})
    from fusionrun.evaluation.evaluate import evaluate
    from fusionrun.study.study import plan_study

    return evaluate(plan_study(recipe, str(path)), rank_info, make_console())


def _robustness(options: argparse.Namespace, rank_info: RankInfo) -> int:
    if options.images is not None and options.images < 1:
        raise RecipeError(f"--images: found {options.images}, expected a number above 0")
    folder = Path(options.output_dir)
    path = folder / "recipe.yaml"
    recipe = load_recipe(path, preset={"output_dir": str(folder)})
    from fusionrun.robustness.measure import Asked, robustness
    from fusionrun.study.study import plan_study

    given = (options.corrupted, options.foreign)
    corrupted, foreign = (None if name is None else Path(name).expanduser() for name in given)
    asked = Asked(corrupted, foreign, options.images)
    return robustness(plan_study(recipe, str(path)), rank_info, make_console(), asked)


def _write_report(options: argparse.Namespace, rank_info: RankInfo) -> int:
    if rank_info.rank > 0:
        return ExitStatus.DONE  # under torchrun one process writes for all
    from fusionrun.report.load import ReportError
    from fusionrun.report.write import write_report

    folders = [Path(folder) for folder in options.output_dirs]
    try:
        written = write_report(folders, Path(options.output) if options.output else None)
    except ReportError as error:
        raise LaunchError(str(error)) from None
    for path in written:
        print(path)
    return ExitStatus.DONE


def _assemble(options: argparse.Namespace, rank_info: RankInfo) -> int:
    if rank_info.rank > 0:
        return ExitStatus.DONE  # under torchrun one process does it for all
    from fusionrun.components.assemble import assemble

    folder = Path(options.output_dir)
    return assemble(Path(options.manifest), folder, rank_info, make_console())


def _export(options: argparse.Namespace, rank_info: RankInfo) -> int:
    if rank_info.rank > 0:
        return ExitStatus.DONE  # as above
    from fusionrun.components.export import ExportError, export
    from fusionrun.training.checkpoint import CheckpointError

    output = None if options.output is None else Path(options.output)
    try:
        done = export(Path(options.row_dir), options.format, output)
    except (CheckpointError, ExportError, OSError) as error:
        raise LaunchError(str(error)) from None
    print(
        f"{done.path}: images (N, 3, {done.image_size}, {done.image_size}) scaled to 0..1 -> "
        f"logits (N, {done.num_classes}); largest difference from the saved model "
        f"{done.difference:.1e} (allowed {done.tolerance:.1e})"
    )
    return ExitStatus.DONE
