"""The components that a manifest names: found, verified, checked against each other, joined."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fusionrun.common.text import nearest
from fusionrun.components.manifest import (
    Manifest,
    component_paths,
    file_hash,
    read_manifest,
    verify,
)
from fusionrun.components.store import (
    ComponentInfo,
    load_checked_state,
    load_component,
    load_expert,
    load_fusion_module,
    load_global_head,
)
from fusionrun.fusions import FusionModel, FusionModule
from fusionrun.study.paths import RowFiles
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import read_yaml
from fusionrun.training.checkpoint import CheckpointError

# a manifest's keys, and what each takes
KEYS = {
    "experts": "a row's folder or a list of expert files",
    "fusion": "a row's folder or a file",
    "global_head": "a row's folder or a file",
    "evaluate": "a study's output directory",
}
LOADERS = {
    "expert": load_expert,
    "fusion_module": load_fusion_module,
    "global_head": load_global_head,
}
# what components say of themselves and must agree on
SHARED = ("num_classes", "classes", "feature_dim", "image_size", "mean", "std")


@dataclass(frozen=True)
class Plan:
    """What the user's manifest asks for."""

    path: Path  # of the manifest
    experts: str | list[str]  # a row's folder, or files
    fusion: str  # a row's folder, or a file
    global_head: str  # likewise
    evaluate: str | None  # a study's output directory


@dataclass(frozen=True)
class Part:
    """A component that the plan names."""

    field: str  # of the plan
    path: Path
    info: ComponentInfo  # what the file says of itself
    sha256: str
    row: str | None  # whose manifest vouches for the file
    settings: Mapping[str, Any]  # that it was trained with; empty: unknown
    module: nn.Module


def read_plan(path: Path) -> Plan:
    """Raises RecipeError for anything but KEYS, each once and with what it takes."""
    tree = read_yaml(path, "manifest", "experts and fusion")
    for key in tree:
        if key not in KEYS:
            raise RecipeError(f"{path}: unknown key {key!r}; {nearest(str(key), KEYS)}")
    values = {**dict.fromkeys(KEYS), "global_head": tree.get("fusion"), **tree}
    for key, expected in KEYS.items():
        value = values[key]
        if key == "evaluate" and value is None:
            continue
        paths = value if key == "experts" and isinstance(value, list) and value else [value]
        if not all(map(_is_path, paths)):
            raise RecipeError(f"{path}: {key}: found {value!r}, expected {expected}")
    return Plan(path, **values)


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


@contextlib.contextmanager
def blame(plan: Plan, field: str) -> Iterator[None]:
    """What can't be used is the mistake of the manifest's field that names it: a RecipeError."""
    try:
        yield
    # RuntimeError: the home of an unknown user; ValueError: modules that don't fit each other
    except (CheckpointError, RecipeError, OSError, RuntimeError, ValueError) as error:
        raise RecipeError(f"{plan.path}: {field}: {error}") from None


def find_parts(plan: Plan) -> list[Part]:
    """The experts, the fusion module, the global head. Raises RecipeError."""
    if isinstance(plan.experts, list):
        files = [Path(text) for text in plan.experts]
    else:
        with blame(plan, "experts"):
            files = _experts_of_row(plan.experts)
    named = [(f"experts.{k}", path, "expert") for k, path in enumerate(files)]
    with blame(plan, "fusion"):
        named.append(("fusion", _file(plan.fusion, "fusion_module"), "fusion_module"))
    with blame(plan, "global_head"):
        named.append(("global_head", _file(plan.global_head, "global_head"), "global_head"))
    parts = []
    for field, path, kind in named:
        with blame(plan, field):
            parts.append(_load(field, path.expanduser(), kind))
    return parts


def _experts_of_row(text: str) -> list[Path]:
    files, manifest = _row(text)
    return [files.expert(k) for k in range(manifest.num_experts)]


def _file(text: str, component: str) -> Path:
    """`text` itself, or the component of the row that it names."""
    if Path(text).expanduser().is_file():
        return Path(text)
    files, _ = _row(text)
    return component_paths(files, 0)[component]


def _row(text: str) -> tuple[RowFiles, Manifest]:
    """(files, manifest) of the row whose folder that is. Raises CheckpointError."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise CheckpointError(f"{folder}: found {found} there, expected a row's folder")
    files = RowFiles(folder, csv=Path())
    return files, read_manifest(files.manifest)


def _load(field: str, path: Path, kind: str) -> Part:
    info, _ = load_component(path, kind)
    manifest = _verified(path)
    return Part(
        field=field,
        path=path,
        info=info,
        sha256=file_hash(path),
        row=manifest.row if manifest else None,
        settings=info.settings or (manifest.settings if manifest else {}),
        module=LOADERS[kind](path),
    )


def _verified(path: Path) -> Manifest | None:
    """The manifest of the row that has this file as a component; None where there is none.

    Raises CheckpointError when the file isn't as that manifest describes it.
    """
    path = path.absolute()
    files = RowFiles(path.parent.parent, csv=Path())
    if not files.manifest.is_file():
        return None
    manifest = read_manifest(files.manifest)
    for name, entry in manifest.components.items():
        if files.directory / entry.file == path:
            verify(files, manifest, {name: path})
            return manifest
    return None


def join(plan: Plan, parts: Sequence[Part]) -> FusionModel:
    """The model, in evaluation mode. Raises RecipeError where the parts don't fit together."""
    *experts, fusion, head = parts
    first = experts[0]
    for part in parts:
        with blame(plan, part.field):
            expected = {name: getattr(first.info, name) for name in SHARED}
            check_equal(part.path, vars(part.info), expected, f"as in {first.path}")
    with blame(plan, fusion.field):
        expected = {"num_experts": len(experts)}
        check_equal(fusion.path, vars(fusion.info), expected, "as many as `experts` names")
        assert isinstance(fusion.module, FusionModule)
        modules = [part.module for part in experts]
        model = FusionModel(modules, fusion.module, first.info.num_classes)
    with blame(plan, head.field):
        load_checked_state(model.global_head, head.module.state_dict(), head.path)
    return model.eval()


def check_equal(
    source: Path, found: Mapping[str, Any], expected: Mapping[str, Any], why: str
) -> None:
    """Raise CheckpointError, naming the first thing in which `source` isn't as expected."""
    there, here = _flat(found, expected), _flat(expected, expected)
    for name in here:
        if there.get(name) != here[name]:
            problem = f"{name}: found {there.get(name)!r}, expected {here[name]!r}, {why}"
            raise CheckpointError(f"{source}: {problem}")


def _flat(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """{name, or name.index in a list: value}; a list's length comes before what's in it."""
    flat: dict[str, Any] = {}
    for name in names:
        value = values[name]
        if isinstance(value, list):
            flat |= {f"{name}.{index}": item for index, item in enumerate(value)}
        else:
            flat[name] = value
    return flat
