"""`fusionrun export`: a saved model as one file that runs without fusionrun."""

import argparse
from pathlib import Path

from fusionrun.commands.options import Verbs
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.exit_status import ExitStatus


def add_parser(verbs: Verbs) -> None:
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
    verb.set_defaults(run=run)


def run(options: argparse.Namespace, rank_info: RankInfo) -> int:
    """Write the file; under torchrun one process does it for all."""
    if rank_info.rank > 0:
        return ExitStatus.DONE
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
