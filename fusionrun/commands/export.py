"""`fusionrun export`: what was saved as one file for others."""

import argparse

from fusionrun.commands.options import Verbs, path
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.text import problem_of


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "export",
        help="write a saved model or expert as one file for others",
        description="Write what SOURCE holds as one file. torch_export and onnx: a program from "
        "images (N, 3, H, W), float32 scaled to 0..1, to logits (N, classes), a row's fused ones, "
        "for any N; it normalises by itself and runs without fusionrun. safetensors: the weights, "
        "which load_model and load_expert read too. The file is loaded again and must answer as "
        "the model does, or hold the same weights.",
        epilog="Exit status: 0 written, 1 the model can't be loaded, exported or written, or its "
        "copy is another, 2 the command line is wrong or the format's packages are lacking.",
    )
    verb.add_argument(
        "source",
        type=path,
        metavar="SOURCE",
        help="a row's folder, with manifest.json, or a component's file, such as an expert's",
    )
    verb.add_argument(
        "--format",
        choices=["torch_export", "onnx", "safetensors"],
        default="torch_export",
        help="torch_export (default): model.pt2, for torch.export.load; onnx: model.onnx, for ONNX "
        "Runtime and others; safetensors: model.safetensors",
    )
    verb.add_argument(
        "--output",
        type=path,
        metavar="FILE",
        help="default: in the row's folder, or beside the file; of a folder: in it",
    )
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Write the file."""
    from fusionrun.components.export import ExportError, export
    from fusionrun.evaluation.opening import require_writable
    from fusionrun.training.checkpoint import CheckpointError

    target = options.output or options.source
    require_writable(target.parent if target.is_file() else target)
    try:
        written, words = export(options.source, options.format, options.output)
    except (CheckpointError, ExportError, OSError) as error:
        raise LaunchError(problem_of(error)) from None
    print(f"{written}: {words}")
    return ExitStatus.DONE
