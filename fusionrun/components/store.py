"""Trained components: saved one by one, loaded alone or put together again.

    from fusionrun.components.store import load_expert, load_model
    expert = load_expert("runs/demo/resnet_fusions/concatenation/experts/expert_0_best.pth")
    model = load_model("runs/demo/resnet_fusions/concatenation")

Each file names its architecture, its arguments and the normalisation of its inputs, so nothing
else is needed; what doesn't fit is refused with what was found and what was expected.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

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
from fusionrun.components.mismatch import unusable
from fusionrun.experts import Expert, build_expert
from fusionrun.experts.ensemble import Ensemble
from fusionrun.fusions import FusionModel, FusionModule, build_fusion
from fusionrun.study.paths import RowFiles
from fusionrun.training.checkpoint import CheckpointError, load, peek, save, save_safetensors

KINDS = ("expert", "adapters", "fusion_module", "global_head")
MODEL = "model"  # a file of all of them
SAVED_BY = "fusionrun"


@dataclass(frozen=True)
class ComponentInfo:
    """What a component's file says of it, beside its weights."""

    component: str  # expert, adapters, fusion_module, global_head
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
    own_classes: list[int] = field(default_factory=list)  # an expert's that alone have outputs
    micro_batch: int | None = None  # images whose batch statistics it had; None: whole batches


class Component(NamedTuple):
    """A component as it was saved."""

    path: Path
    info: ComponentInfo
    weights: dict[str, Tensor]


def save_component(
    path: Path, module: nn.Module | Mapping[str, Tensor], info: ComponentInfo
) -> None:
    """Write a module's (or a state dict's) weights and what they are, atomically.

    A path that ends in .safetensors is written so, which takes the package safetensors; its header
    has the hash of the weights, since the format has no checksums.
    """
    state = module.state_dict() if isinstance(module, nn.Module) else module
    weights = {name: value.detach().cpu() for name, value in state.items()}
    payload = {"saved_by": SAVED_BY, "format": FORMAT, **asdict(info), "state_dict": weights}
    if path.suffix == ".safetensors":
        save_safetensors(path, {**payload, "weights": state_hash(weights)})
    else:
        save(path, payload)


def component_info(payload: Mapping[str, Any], path: str | Path) -> ComponentInfo | None:
    """What a file of ours says of itself; None for a file that doesn't say that it is ours.

    Raises CheckpointError for a file of ours that isn't whole, is a newer version's, or holds a
    whole model.
    """
    if not _is_ours(payload, path):
        return None
    if payload.get("component") == MODEL:
        raise CheckpointError(f"{path}: holds a whole model (load_model), expected a component")
    return _info(payload, path)


def _is_ours(payload: Mapping[str, Any], path: str | Path) -> bool:
    """Whether a file says that it is ours. Raises CheckpointError where it isn't whole or newer.

    Version 0.1 wrote no `saved_by`: its sign is the format's number beside a component's kind.
    """
    by, number, kind = (payload.get(key) for key in ("saved_by", "format", "component"))
    older = isinstance(number, int) and isinstance(kind, str) and kind in KINDS
    if not (isinstance(by, str) and by == SAVED_BY) and not older:
        return False
    if number != FORMAT:
        raise CheckpointError(
            f"{path}: was saved by another version of fusionrun (format {shown(number)}), this one "
            f"reads format {FORMAT}"
        )
    if not isinstance(payload.get("state_dict"), dict):
        raise CheckpointError(f"{path}: state_dict: found no weights, expected a state dict")
    known = payload.get("weights")
    if isinstance(known, str) and known != state_hash(payload["state_dict"]):
        raise CheckpointError(f"{path}: is damaged (its weights aren't those that were saved)")
    return True


def _info(said: Any, path: str | Path) -> ComponentInfo:
    try:
        return build(ComponentInfo, said, strict=False)
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
    return _expert(Component(Path(path), *load_component(path, "expert")), plugins)


def load_fusion_module(path: str | Path, plugins: Collection[str] = ()) -> FusionModule:
    """The fusion module saved at `path`: features (N, E, D) -> (N, D). Raises CheckpointError."""
    return _fusion_module(Component(Path(path), *load_component(path, "fusion_module")), plugins)


def load_global_head(path: str | Path) -> nn.Module:
    """The head saved at `path`: fused features (N, D) -> logits (N, C). Raises CheckpointError.

    One without weights, of a fusion that reads logits, passes on what it is given.
    """
    info, weights = load_component(path, "global_head")
    with _fitting(path):
        head = nn.Linear(info.feature_dim, info.num_classes) if weights else nn.Identity()
    load_checked_state(head, weights, path)
    return head.eval()


def load_model(path: str | Path, plugins: Collection[str] = ()) -> FusionModel | Ensemble:
    """The fusion model whose components lie in the folder `path`, verified against its manifest.

    Or of the file `path` that `export --format safetensors` made of such a folder. Of a full
    ensemble, its networks as one model. Raises CheckpointError when a file is missing, changed
    since it was saved, or doesn't fit.
    """
    return join(parts_of(Path(path)), plugins)


def load_single(directory: str | Path, plugins: Collection[str] = ()) -> Expert:
    """As `load_model`, of a row that is one network."""
    files = RowFiles(Path(directory), csv=Path())
    verify(files, read_manifest(files.manifest), {"network": files.network})
    return load_expert(files.network, plugins)


def parts_of(path: Path) -> Iterator[tuple[str, Component]]:
    """(component's name in a manifest, the component) of a row's folder, each verified.

    Or of one file: a component's, or a whole model's that `save_whole` wrote. Raises
    CheckpointError.
    """
    if path.is_file():
        yield from _parts_of_file(path)
        return
    files = RowFiles(path, csv=Path())
    manifest = read_manifest(files.manifest)
    adapted = "adapters" in manifest.components
    paths = component_paths(files, manifest.num_experts, adapted=adapted, fusion=manifest.fusion)
    verify(files, manifest, paths)
    for name, component in paths.items():
        kind = name if name in KINDS else "expert"
        yield name, Component(component, *load_component(component, kind))


def _parts_of_file(path: Path) -> Iterator[tuple[str, Component]]:
    kind = (peek(path) or {}).get("component")
    if not isinstance(kind, str) or kind != MODEL:
        kind = kind if isinstance(kind, str) and kind in KINDS else "expert"
        yield kind, Component(path, *load_component(path, kind))
        return
    payload = load(path)
    said_of = payload.get("components")
    if not _is_ours(payload, path) or not isinstance(said_of, dict) or not said_of:
        raise CheckpointError(f"{path}: is no model that fusionrun exported")
    for name, said in said_of.items():
        prefix = _prefix(name)
        weights = {
            key.removeprefix(prefix): value
            for key, value in payload["state_dict"].items()
            if key.startswith(prefix)
        }
        yield name, Component(path, _info(said, path), weights)


def save_whole(path: Path, parts: Mapping[str, Component]) -> None:
    """Write a model's components as one safetensors file, atomically; `load_model` reads it.

    The weights have their names in the model's state dict; what each component says of itself
    stands in the header, with the hash of all weights. Raises OSError.
    """
    state = {
        f"{_prefix(name)}{key}": value
        for name, part in parts.items()
        for key, value in part.weights.items()
    }
    about = {
        "saved_by": SAVED_BY,
        "format": FORMAT,
        "component": MODEL,
        "components": {name: asdict(part.info) for name, part in parts.items()},
        "weights": state_hash(state),
    }
    save_safetensors(path, {**about, "state_dict": state})


def _prefix(name: str) -> str:
    """What a component's tensors are called by in the model's state dict."""
    kind, _, k = name.rpartition("_")
    return {"expert": f"experts.{k}.", "fusion": "fusion."}.get(kind, f"{name}.")


def join(
    parts: Iterable[tuple[str, Component]], plugins: Collection[str] = ()
) -> FusionModel | Ensemble:
    """The model of these components, in evaluation mode. Raises CheckpointError."""
    experts, others = [], {}
    for name, part in parts:  # one after the other: no second model's worth of weights is held
        if part.info.component == "expert":
            experts.append(_expert(part, plugins))
        else:
            others[name] = part
    if len(experts) > 1 and not others:
        return Ensemble(experts).eval()
    if not {"fusion_module", "global_head"} <= others.keys():
        found = f"a single network; load_expert({part.path})" if experts else "a part of a model"
        raise CheckpointError(f"{part.path}: holds {found}")
    fused, head = others["fusion_module"], others["global_head"]
    with _fitting(fused.path):
        model = FusionModel(experts, _fusion_module(fused, plugins), fused.info.num_classes)
    load_checked_state(model.global_head, head.weights, head.path)
    adapters = others.get("adapters")
    if adapters is not None:
        load_checked_state(model.adapters, adapters.weights, adapters.path)
    elif model.is_adapted:
        sizes = [getattr(expert, "feature_dim", None) for expert in model.experts]
        raise CheckpointError(
            f"{fused.path}: takes features of size {fused.info.feature_dim}, found experts with "
            f"{sizes} and no adapters beside them"
        )
    return model.eval()


def _expert(part: Component, plugins: Collection[str]) -> Expert:
    info = part.info
    with _fitting(part.path):
        expert = build_expert(where_now(info.model, plugins), info.num_classes, **info.arguments)
        if info.own_classes:
            expert.answer_only(info.own_classes)
    load_checked_state(expert, part.weights, part.path)
    expert.know(TrainedOn(tuple(info.classes), tuple(info.mean), tuple(info.std), info.image_size))
    return expert.eval()


def _fusion_module(part: Component, plugins: Collection[str]) -> FusionModule:
    info = part.info
    with _fitting(part.path):
        fusion = build_fusion(where_now(info.fusion, plugins), info.num_experts, info.feature_dim)
    load_checked_state(fusion, part.weights, part.path)
    return fusion.eval()


@contextlib.contextmanager
def _fitting(path: str | Path) -> Iterator[None]:
    """What a constructor won't take came from the file at `path`: a CheckpointError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_checked_state(module: nn.Module, weights: Mapping[str, Any], path: str | Path) -> None:
    """Load `weights` into `module`, or raise CheckpointError naming what doesn't fit."""
    problem = unusable(module, weights)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    module.load_state_dict(dict(weights))


def save_model(
    files: RowFiles,
    model: FusionModel,
    info: ComponentInfo,
    experts: Sequence[ComponentInfo],
    manifest: Mapping[str, Any],
) -> None:
    """Write every component of `model`, then the manifest that vouches for them, last.

    `info` is of the model, and `experts` of each of its experts.
    """
    for k, (expert, own) in enumerate(zip(model.experts, experts, strict=True)):
        save_component(files.expert(k), expert, replace(own, component="expert", expert=k))
    if model.is_adapted:
        save_component(files.adapters, model.adapters, replace(info, component="adapters"))
    fusion = replace(info, component="fusion_module")
    save_component(files.fusion_module, model.fusion, fusion)
    save_component(files.global_head, model.global_head, replace(info, component="global_head"))
    paths = component_paths(files, len(model.experts), adapted=model.is_adapted)
    _vouch(files, info, manifest, paths)


def save_single(
    files: RowFiles, network: nn.Module, info: ComponentInfo, manifest: Mapping[str, Any]
) -> None:
    """As `save_model` for a row that is one network; it loads as an expert."""
    save_component(files.network, network, replace(info, component="expert"))
    _vouch(files, info, manifest, {"network": files.network})


def save_ensemble(
    files: RowFiles,
    ensemble: Ensemble,
    networks: Sequence[ComponentInfo],
    manifest: Mapping[str, Any],
) -> None:
    """As `save_model`, of networks that answer together; each is saved, and loads, as an expert."""
    paths = component_paths(files, len(networks), fusion=networks[0].fusion)
    for network, info, path in zip(ensemble.experts, networks, paths.values(), strict=True):
        save_component(path, network, info)
    _vouch(files, replace(networks[0], expert=None), manifest, paths)


def _vouch(
    files: RowFiles, info: ComponentInfo, manifest: Mapping[str, Any], paths: Mapping[str, Path]
) -> None:
    known = asdict(info)
    del known["component"], known["own_classes"]
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
