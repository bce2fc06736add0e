"""`export ROW_DIR`: a saved model as one file that runs without fusionrun, proven to be equal."""

import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fusionrun.common.version import __version__
from fusionrun.components.manifest import read_manifest
from fusionrun.components.store import ComponentInfo, load_component, load_model
from fusionrun.fusions import FusionModel
from fusionrun.study.paths import RowFiles

# of the largest logit: how far an exported program may be from the model. Other kernels add up in
# another order, which measured up to 2e-6
TOLERANCE = 1e-5
BATCHES = (1, 5)  # images, of the comparison
SEED = 0  # of its images
ABOUT_FILE = "fusionrun.json"  # in a .pt2: torch.export.load(path, extra_files={ABOUT_FILE: ""})


class ExportError(Exception):
    """The model can't be exported; the message says why and what to do."""


class Deployed(nn.Module):
    """Images (N, 3, H, W), float32 scaled to 0..1 -> fused logits (N, C)."""

    def __init__(self, model: FusionModel, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values).view(1, 3, 1, 1)) for values in (mean, std)
        )

    def forward(self, images: Tensor) -> Tensor:
        # a program takes what can be computed with: bytes in 0..255 would be answered as 0..1
        torch.ops.aten._assert_tensor_metadata.default(images, dtype=torch.float32)
        logits: Tensor = self.model((images - self.mean) / self.std).logits
        return logits


Program = Callable[[Tensor], Tensor]
Shapes = dict[str, dict[int, Any]]


@dataclass(frozen=True)
class Format:
    suffix: str
    write: Callable[[Deployed, Tensor, Path, Mapping[str, Any]], None]
    load: Callable[[Path], Program]
    needs: tuple[str, ...] = ()  # packages


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    image_size: int
    num_classes: int
    difference: float  # largest between its logits and the saved model's
    tolerance: float


def export(directory: Path, format_name: str, output: Path | None) -> Exported:
    """Write the model saved in `directory`, by default beside its manifest.

    The file is loaded again and must answer random batches of BATCHES images as the model does. It
    says of itself what `about` has: in a .pt2 the extra file ABOUT_FILE, in an .onnx its metadata.
    Raises CheckpointError, ExportError, OSError; then nothing was written.
    """
    chosen = FORMATS[format_name]
    lacking = [name for name in chosen.needs if importlib.util.find_spec(name) is None]
    if lacking:
        raise ExportError(f"{format_name} needs more packages: pip install {' '.join(lacking)}")
    info, _ = load_component(RowFiles(directory, csv=Path()).global_head, "global_head")
    model = Deployed(load_model(directory), info.mean, info.std).eval()
    size, generator = info.image_size, torch.Generator().manual_seed(SEED)
    batches = [torch.rand(n, 3, size, size, generator=generator) for n in BATCHES]
    path = output or directory
    if path.is_dir() or not path.suffix:
        path /= f"model{chosen.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, torch.no_grad():
        written = Path(folder) / f"model{chosen.suffix}"
        try:
            chosen.write(model, batches[-1], written, about(info, directory))
        except OSError:
            raise
        except Exception as error:  # exporters have one of their own for all that they can't follow
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(f"{directory}: {format_name} can't follow it: {reason}") from error
        difference, tolerance = compare(chosen.load(written), model, batches)
        if not difference <= tolerance:
            raise ExportError(
                f"{path}: not written: loaded again, its logits differ by up to {difference:.1e} "
                f"from those of {directory}, where {tolerance:.1e} is allowed"
            )
        written.replace(path)
    return Exported(path, size, info.num_classes, difference, tolerance)


def about(info: ComponentInfo, directory: Path) -> dict[str, Any]:
    """What whoever runs the program needs to know of it."""
    size = info.image_size
    return {
        "classes": info.classes,  # in the logits' order
        "input": f"images (N, 3, {size}, {size}), RGB, float32 scaled to 0..1; normalised inside",
        "output": f"logits (N, {info.num_classes})",
        "image_size": size,
        "mean": info.mean,  # of the normalisation inside
        "std": info.std,
        "model": info.model,
        "fusion": info.fusion,
        "weights": read_manifest(RowFiles(directory, csv=Path()).manifest).weights,
        "made_by": f"fusionrun {__version__}",
    }


def compare(program: Program, model: Deployed, batches: list[Tensor]) -> tuple[float, float]:
    """(largest difference of their logits on the batches, largest that is allowed)."""
    expected = [model(images) for images in batches]
    found = [program(images) for images in batches]
    largest = max(float(logits.abs().max()) for logits in expected)
    differences = [
        float((one - other).abs().max()) if one.shape == other.shape else math.inf
        for one, other in zip(found, expected, strict=True)
    ]
    # torch's maximum, because Python's can lose a NaN
    return float(torch.tensor(differences).max()), TOLERANCE * max(largest, 1.0)


def _any_batch() -> Shapes:
    return {"images": {0: torch.export.Dim("batch")}}


def _write_torch(model: Deployed, images: Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    program = torch.export.export(model, (images,), dynamic_shapes=_any_batch())
    torch.export.save(program, path, extra_files={ABOUT_FILE: json.dumps(metadata)})


def _load_torch(path: Path) -> Program:
    return torch.export.load(path).module()


def _write_onnx(model: Deployed, images: Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=_any_batch(),
        external_data=False,
        verbose=False,
    )
    onnx = importlib.import_module("onnx")
    written = onnx.load(path)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    onnx.helper.set_model_props(written, texts)
    onnx.save(written, path)


def _load_onnx(path: Path) -> Program:
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS = {
    "torch_export": Format(".pt2", _write_torch, _load_torch),
    "onnx": Format(".onnx", _write_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
