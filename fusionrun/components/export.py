"""`export SOURCE`: what was saved as one file for others, proven to be equal.

A program runs without fusionrun; safetensors hold the weights for whoever loads them.
"""

import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fusionrun.common.image_classifier import NO_OUTPUT, ImageClassifier, has_output
from fusionrun.common.version import __version__
from fusionrun.components.store import (
    Component,
    ComponentInfo,
    join,
    load_expert,
    parts_of,
    save_component,
    save_whole,
    state_hash,
)
from fusionrun.study.recipe import RecipeError

# of the largest logit: how far an exported program may be from the model. Other kernels add up in
# another order, which measured up to 2e-6
TOLERANCE = 1e-5
BATCHES = (1, 5)  # images, of the comparison
SEED = 0  # of its images
SAFETENSORS = ".safetensors"
ABOUT_FILE = "fusionrun.json"  # in a .pt2: torch.export.load(path, extra_files={ABOUT_FILE: ""})


class ExportError(Exception):
    """The model can't be exported; the message says why and what to do."""


class Deployed(nn.Module):
    """Images (N, 3, H, W), float32 scaled to 0..1 -> logits (N, C), a row's fused ones."""

    def __init__(self, model: ImageClassifier, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values).view(1, 3, 1, 1)) for values in (mean, std)
        )

    def forward(self, images: Tensor) -> Tensor:
        # a program takes what can be computed with: bytes in 0..255 would be answered as 0..1
        torch.ops.aten._assert_tensor_metadata.default(images, dtype=torch.float32)
        return self.model.class_logits((images - self.mean) / self.std)


Program = Callable[[Tensor], Tensor]
Shapes = dict[str, dict[int, Any]]


@dataclass(frozen=True)
class Format:
    """Of programs."""

    suffix: str
    write: Callable[[Deployed, Tensor, Path, Mapping[str, Any]], None]
    load: Callable[[Path], Program]
    needs: tuple[str, ...] = ()  # packages


def export(source: Path, format_name: str, output: Path | None) -> tuple[Path, str]:
    """(the file written, what it is) of a row's folder or of a component's file.

    By default it stands in that folder, or beside that file. It is read again: weights must be
    those that were saved, and a program must answer random batches of BATCHES images as the
    network does. Raises RecipeError for packages that are lacking, CheckpointError, ExportError,
    OSError; then nothing was written.
    """
    program = FORMATS.get(format_name)
    suffix, needs = (program.suffix, program.needs) if program else (SAFETENSORS, ("safetensors",))
    lacking = [name for name in needs if importlib.util.find_spec(name) is None]
    if lacking:
        raise RecipeError(f"{format_name} needs more packages: pip install {' '.join(lacking)}")
    parts = dict(parts_of(source))
    path = output or (source.parent if source.is_file() else source)
    if path.is_dir() or not path.suffix:
        path /= f"{source.stem if source.is_file() else 'model'}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, torch.no_grad():
        written = Path(folder) / f"model{suffix}"
        try:
            if program is None:
                words = _write_weights(parts, written)
            else:
                words = _write_program(parts, written, format_name)
        except ExportError as error:
            raise ExportError(f"{path}: not written: {error}") from error
        written.replace(path)
    return path, words


def _write_weights(parts: Mapping[str, Component], path: Path) -> str:
    """All components in one file, by their names in the model; in words."""
    first, *others = parts.values()
    if others:
        save_whole(path, parts)
    else:
        save_component(path, first.weights, first.info)
    written = [(part.info, state_hash(part.weights)) for _, part in parts_of(path)]
    if written != [(part.info, state_hash(part.weights)) for part in parts.values()]:
        raise ExportError("read again, it holds something else than was saved")
    tensors = sum(len(part.weights) for part in parts.values())
    is_expert = not others and first.info.component == "expert"
    reader = "load_model" if others else "load_expert" if is_expert else "assemble"
    return f"{tensors} tensors, read again equal to those saved; {reader} reads it"


def _write_program(parts: Mapping[str, Component], path: Path, format_name: str) -> str:
    """The network of these components, which answers as it does; in words."""
    first, *others = parts.values()
    if not others and first.info.component != "expert":
        raise ExportError(
            f"{first.path} takes no images (found {first.info.component}); export its row's folder"
        )
    network = join(parts.items()) if others else load_expert(first.path)
    info = parts["global_head"].info if "global_head" in parts else first.info
    size, classes = info.image_size, info.num_classes
    model = Deployed(network, info.mean, info.std).eval()
    generator = torch.Generator().manual_seed(SEED)
    batches = [torch.rand(n, 3, size, size, generator=generator) for n in BATCHES]
    experts = [part.info for part in parts.values() if part.info.component == "expert"]
    program = FORMATS[format_name]
    try:
        program.write(model, batches[-1], path, about(info, experts, network))
    except OSError:
        raise
    except Exception as error:  # exporters have one of their own for all that they can't follow
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"{format_name} can't follow the model: {reason}") from error
    difference, tolerance = compare(program.load(path), model, batches)
    if not difference <= tolerance:
        raise ExportError(
            f"loaded again, its logits differ by up to {difference:.1e} from those of the "
            f"components, where {tolerance:.1e} is allowed"
        )
    return (
        f"images (N, 3, {size}, {size}) scaled to 0..1 -> logits (N, {classes}); largest "
        f"difference from the saved model {difference:.1e} (allowed {tolerance:.1e})"
    )


def about(
    info: ComponentInfo, experts: Sequence[ComponentInfo], network: nn.Module
) -> dict[str, Any]:
    """What whoever runs the program of the `network` needs to know of it."""
    size = info.image_size
    return {
        "classes": info.classes,  # in the logits' order
        "input": f"images (N, 3, {size}, {size}), RGB, float32 scaled to 0..1; normalised inside",
        "output": f"logits (N, {info.num_classes})"
        + (f", {NO_OUTPUT:g} of the classes that it wasn't trained on" if info.own_classes else ""),
        "image_size": size,
        "mean": info.mean,  # of the normalisation inside
        "std": info.std,
        "model": info.model,
        "fusion": info.fusion,
        "experts": [f"{each.model} {each.expert}" for each in experts],
        "weights": state_hash(network.state_dict()),  # as in manifest.json
        "made_by": f"fusionrun {__version__}",
    }


def compare(program: Program, model: Deployed, batches: list[Tensor]) -> tuple[float, float]:
    """(largest difference of their logits on the batches, largest that is allowed)."""
    expected = [model(images) for images in batches]
    found = [program(images) for images in batches]
    # an expert of its own classes says NO_OUTPUT of the others, beside which all else is small
    answered = [torch.where(has_output(logits), logits, 0) for logits in expected]
    largest = max(float(logits.abs().max()) for logits in answered)
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


FORMATS = {  # of programs
    "torch_export": Format(".pt2", _write_torch, _load_torch),
    "onnx": Format(".onnx", _write_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
