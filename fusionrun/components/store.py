"""Trained components: saved one by one, loaded alone or put together again.

    from fusionrun.components.store import load_expert, load_model
    expert = load_expert("runs/demo/resnet_fusions/concatenation/experts/expert_0_best.pth")
    model = load_model("runs/demo/resnet_fusions/concatenation")

Each file names its architecture, its arguments and the normalisation of its inputs, so nothing
else is needed; what doesn't fit is refused with what was found and what was expected.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionrun.common.image_classifier import TrainedOn
from fusionrun.common.plugins import where_now
from fusionrun.common.text import shown
from fusionrun.common.typed_fields import FieldError, build
from fusionrun.components.manifest import (
    FORMAT,
    Manifest,
    component_paths,
    describe,
    read_manifest,
    verify,
    write_manifest,
)
from fusionrun.components.mismatch import mismatch
from fusionrun.experts import Expert, build_expert
from fusionrun.fusions import FusionModel, FusionModule, build_fusion
from fusionrun.study.paths import RowFiles
from fusionrun.study.recipe import SINGLE
from fusionrun.training.checkpoint import CheckpointError, load, peek, save

KINDS = ("expert", "fusion_module", "global_head")
SAVED_BY = "fusionrun"


@dataclass(frozen=True)
class ComponentInfo:
    """What a component's file says of it, beside its weights."""

    component: str  # expert, fusion_module, global_head
    model: str
    arguments: dict[str, Any]  # of the architecture
    num_classes: int
    feature_dim: int
    num_experts: int
    classes: list[str]
    mean: list[float]  # normalisation of inputs scaled to 0..1
    std: list[float]
    image_size: int
    epoch: int
    val_accuracy: float  # percent: the expert's own, or of the fused model
    fusion: str = ""
    expert: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # that it was trained with


def save_component(
    path: Path, module: nn.Module | Mapping[str, Tensor], info: ComponentInfo
) -> None:
    """Write a module's (or a state dict's) weights and what they are, atomically."""
    state = module.state_dict() if isinstance(module, nn.Module) else module
    weights = {name: value.detach().cpu() for name, value in state.items()}
    save(path, {"saved_by": SAVED_BY, "format": FORMAT, **asdict(info), "state_dict": weights})


def component_info(payload: Mapping[str, Any], path: str | Path) -> ComponentInfo | None:
    """What a file of ours says of itself; None for a file that doesn't say that it is ours.

    Version 0.1 wrote no `saved_by`: its sign is the format's number beside a component's kind.
    Raises CheckpointError for a file of ours that isn't whole, or is a newer version's.
    """
    by, number, kind = (payload.get(key) for key in ("saved_by", "format", "component"))
    older = isinstance(number, int) and isinstance(kind, str) and kind in KINDS
    if not (isinstance(by, str) and by == SAVED_BY) and not older:
        return None
    if number != FORMAT:
        raise CheckpointError(
            f"{path}: was saved by another version of fusionrun (format {shown(number)}), this one "
            f"reads format {FORMAT}"
        )
    if not isinstance(payload.get("state_dict"), dict):
        raise CheckpointError(f"{path}: state_dict: found no weights, expected a state dict")
    try:
        return build(ComponentInfo, payload, strict=False)
    except FieldError as error:
        raise CheckpointError(f"{path}: {error}") from None


def peek_info(path: Path) -> ComponentInfo | None:
    """What the file at `path` says of itself, unverified; None where it isn't ours and whole."""
    payload = peek(path) if path.is_file() else None
    try:
        return None if payload is None else component_info(payload, path)
    except CheckpointError:
        return None


def load_component(path: str | Path, component: str) -> tuple[ComponentInfo, dict[str, Tensor]]:
    """(what the file says of itself, weights). Raises CheckpointError for another kind of file."""
    payload = load(Path(path))
    info = component_info(payload, path)
    if info is None:
        keys = ", ".join(sorted(str(key)[:80] for key in payload)[:4])
        raise CheckpointError(
            f"{path}: not saved by fusionrun (its keys: {keys}, ...), so that nothing says which "
            f"network it is of; expected a component of kind {component!r}. Rows start from such "
            f"experts: experts.checkpoint_dir"
        )
    if info.component != component:
        raise CheckpointError(
            f"{path}: found a component of kind {shown(info.component)}, expected {component!r}"
        )
    return info, payload["state_dict"]


def load_expert(path: str | Path, plugins: Collection[str] = ()) -> Expert:
    """The expert saved at `path`, on the CPU in evaluation mode.

    `plugins`, each FILE.py:NAME, tell where a user's own parts lie by now. Raises CheckpointError.
    """
    info, weights = load_component(path, "expert")
    with _fitting(path):
        expert = build_expert(where_now(info.model, plugins), info.num_classes, **info.arguments)
    load_checked_state(expert, weights, path)
    expert.know(TrainedOn(tuple(info.classes), tuple(info.mean), tuple(info.std), info.image_size))
    return expert.eval()


def load_fusion_module(path: str | Path, plugins: Collection[str] = ()) -> FusionModule:
    """The fusion module saved at `path`: features (N, E, D) -> (N, D). Raises CheckpointError."""
    info, weights = load_component(path, "fusion_module")
    with _fitting(path):
        fusion = build_fusion(where_now(info.fusion, plugins), info.num_experts, info.feature_dim)
    load_checked_state(fusion, weights, path)
    return fusion.eval()


def load_global_head(path: str | Path) -> nn.Linear:
    """The head saved at `path`: fused features (N, D) -> logits (N, C). Raises CheckpointError."""
    info, weights = load_component(path, "global_head")
    with _fitting(path):
        head = nn.Linear(info.feature_dim, info.num_classes)
    load_checked_state(head, weights, path)
    return head.eval()


def load_model(directory: str | Path, plugins: Collection[str] = ()) -> FusionModel:
    """The fusion model whose components lie in `directory`, verified against its manifest.

    Raises CheckpointError when a file is missing, changed since it was saved, or doesn't fit.
    """
    files = RowFiles(Path(directory), csv=Path())
    manifest = read_manifest(files.manifest)
    if manifest.fusion == SINGLE:
        raise CheckpointError(f"{directory}: holds a single network; load_expert({files.network})")
    verify(files, manifest, component_paths(files, manifest.num_experts))
    experts = [load_expert(files.expert(k), plugins) for k in range(manifest.num_experts)]
    fusion = load_fusion_module(files.fusion_module, plugins)
    head = load_global_head(files.global_head)
    with _fitting(files.manifest):
        model = FusionModel(experts, fusion, manifest.num_classes)
    load_checked_state(model.global_head, head.state_dict(), files.global_head)
    return model.eval()


def load_single(directory: str | Path, plugins: Collection[str] = ()) -> Expert:
    """As `load_model`, of a row that is one network."""
    files = RowFiles(Path(directory), csv=Path())
    verify(files, read_manifest(files.manifest), {"network": files.network})
    return load_expert(files.network, plugins)


@contextlib.contextmanager
def _fitting(path: str | Path) -> Iterator[None]:
    """What a constructor won't take came from the file at `path`: a CheckpointError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_checked_state(module: nn.Module, weights: Mapping[str, Any], path: str | Path) -> None:
    """Load `weights` into `module`, or raise CheckpointError naming what doesn't fit."""
    problem = mismatch(module, weights)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    bad = [n for n, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        named = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise CheckpointError(f"{path}: has numbers that are not finite in {named}")
    module.load_state_dict(dict(weights))


def save_model(
    files: RowFiles,
    model: FusionModel,
    info: ComponentInfo,
    expert_accuracies: Sequence[float],
    manifest: Mapping[str, Any],
) -> None:
    """Write every component of `model`, then the manifest that vouches for them, last."""
    for k, expert in enumerate(model.experts):
        accuracy = expert_accuracies[k]
        own = replace(info, component="expert", expert=k, val_accuracy=accuracy)
        save_component(files.expert(k), expert, own)
    fusion = replace(info, component="fusion_module")
    save_component(files.fusion_module, model.fusion, fusion)
    save_component(files.global_head, model.global_head, replace(info, component="global_head"))
    _vouch(files, info, manifest, component_paths(files, len(model.experts)))


def save_single(
    files: RowFiles, network: nn.Module, info: ComponentInfo, manifest: Mapping[str, Any]
) -> None:
    """As `save_model` for a row that is one network; it loads as an expert."""
    save_component(files.network, network, replace(info, component="expert"))
    _vouch(files, info, manifest, {"network": files.network})


def _vouch(
    files: RowFiles, info: ComponentInfo, manifest: Mapping[str, Any], paths: Mapping[str, Path]
) -> None:
    known = asdict(info)
    del known["component"]
    found = Manifest(**{**known, **manifest}, components=describe(files, paths))
    write_manifest(files.manifest, found)


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes of a state dict: equal for bit-identical weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
