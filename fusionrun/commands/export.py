"""`fusionrun export`: a saved model as one file that runs without fusionrun."""

import argparse

from fusionrun.commands.options import Verbs, path
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.text import problem_of


def add_parser(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "export",
        help="write a saved model as one file that runs without fusionrun",
        description="Write the model in ROW_DIR as model.pt2 or model.onnx, a program from images "
        "(N, 3, H, W), float32 scaled to 0..1, to fused logits (N, classes), for any N; it "
        "normalises by itself. The file is loaded again and must answer as the model does.",
        epilog="Exit status: 0 written, 1 the model can't be loaded, exported or written, or its "
        "copy answers differently, 2 the command line is wrong.",
    )
    verb.add_argument("row_dir", type=path, metavar="ROW_DIR", help="the folder with manifest.json")
    verb.add_argument(
        "--format",
        choices=["torch_export", "onnx"],
        default="torch_export",
        help="torch_export (default): for torch.export.load; onnx: for ONNX Runtime and others",
    )
    verb.add_argument(
        "--output",
        type=path,
        metavar="FILE",
        help="default: ROW_DIR/model.pt2 or .onnx; of a folder, that name in it",
    )
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Write the file."""
    from fusionrun.components.export import ExportError, export
    from fusionrun.evaluation.opening import require_writable
    from fusionrun.training.checkpoint import CheckpointError

    require_writable(options.output or options.row_dir)
    try:
        done = export(options.row_dir, options.format, options.output)
    except (CheckpointError, ExportError, OSError) as error:
        raise LaunchError(problem_of(error)) from None
    print(
        f"{done.path}: images (N, 3, {done.image_size}, {done.image_size}) scaled to 0..1 -> "
        f"logits (N, {done.num_classes}); largest difference from the saved model "
        f"{done.difference:.1e} (allowed {done.tolerance:.1e})"
    )
    return ExitStatus.DONE
