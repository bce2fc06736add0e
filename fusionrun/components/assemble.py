"""One model of components that different rows or runs trained: found, verified, joined, saved."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fusionrun.common.file_paths import expanded_path
from fusionrun.common.text import clipped, nearest, problem_of, shown
from fusionrun.components.manifest import (
    Manifest,
    component_paths,
    file_hash,
    manifest_of,
    read_manifest,
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
LOADERS: Mapping[str, Callable[[Path], nn.Module]] = {
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


@dataclass(frozen=True)
class Assembled:
    """The model, in evaluation mode, and what it is made of."""

    plan: Plan
    experts: list[Part]
    fusion: Part
    global_head: Part
    model: FusionModel

    @property
    def parts(self) -> list[Part]:
        """In the order of `component_paths`."""
        return [*self.experts, self.fusion, self.global_head]


def read_plan(path: Path) -> Plan:
    """Raises RecipeError for anything but KEYS, each once and with what it takes."""
    tree = read_yaml(path, "manifest", "experts and fusion")
    for key in tree:
        if key not in KEYS:
            raise RecipeError(f"{path}: unknown key {shown(key)}; {nearest(str(key), KEYS)}")
    values = {**dict.fromkeys(KEYS), "global_head": tree.get("fusion"), **tree}
    for key, expected in KEYS.items():
        value = values[key]
        if key == "evaluate" and value is None:
            continue
        paths = value if key == "experts" and isinstance(value, list) and value else [value]
        if not all(isinstance(each, str) and each.strip() and each.isprintable() for each in paths):
            raise RecipeError(f"{path}: {key}: found {shown(value)}, expected {expected}")
    return Plan(path, **values)


@contextlib.contextmanager
def blame(plan: Plan, field: str) -> Iterator[None]:
    """What can't be used is the mistake of the manifest's field that names it: a RecipeError."""
    try:
        yield
    # ValueError: an unset variable or an unknown user, modules that don't fit each other
    except (CheckpointError, RecipeError, OSError, ValueError) as error:
        raise RecipeError(f"{plan.path}: {field}: {clipped(problem_of(error))}") from None


def require_new(folder: Path) -> None:
    """Raise RecipeError unless there is nothing in `folder` that a model could overwrite."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder}: is there already; expected a new or an empty folder")


def assemble(plan: Plan) -> Assembled:
    """Put the model together. Raises RecipeError, naming the plan's field, for what doesn't fit."""
    with blame(plan, "experts"):
        if isinstance(plan.experts, list):
            files = [Path(text) for text in plan.experts]
        else:
            row, manifest = _row(plan.experts)
            files = [row.expert(k) for k in range(manifest.num_experts)]
    experts = [_load(plan, f"experts.{k}", path, "expert") for k, path in enumerate(files)]
    fusion = _load(plan, "fusion", _file(plan, "fusion", "fusion_module"), "fusion_module")
    head = _load(plan, "global_head", _file(plan, "global_head", "global_head"), "global_head")
    first = experts[0]
    for part in (*experts, fusion, head):
        with blame(plan, part.field):
            expected = {name: getattr(first.info, name) for name in SHARED}
            check_equal(part.path, vars(part.info), expected, f"as in {first.path}")
    with blame(plan, "fusion"):
        expected = {"num_experts": len(experts)}
        check_equal(fusion.path, vars(fusion.info), expected, "as many as `experts` names")
        assert isinstance(fusion.module, FusionModule)
        modules = [part.module for part in experts]
        model = FusionModel(modules, fusion.module, first.info.num_classes)
    with blame(plan, "global_head"):
        load_checked_state(model.global_head, head.module.state_dict(), head.path)
    return Assembled(plan, experts, fusion, head, model.eval())


def _file(plan: Plan, field: str, component: str) -> Path:
    """What the field names itself, or that component of the row that it names."""
    text = getattr(plan, field)
    with blame(plan, field):
        path = expanded_path(text)
        return path if path.is_file() else component_paths(_row(text)[0], 0)[component]


def _row(text: str) -> tuple[RowFiles, Manifest]:
    """(files, manifest) of the row whose folder that is. Raises CheckpointError."""
    folder = expanded_path(text)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise CheckpointError(f"{folder}: found {found} there, expected a row's folder")
    files = RowFiles(folder, csv=Path())
    return files, read_manifest(files.manifest)


def _load(plan: Plan, field: str, path: Path, kind: str) -> Part:
    with blame(plan, field):
        path = expanded_path(path)
        info, _ = load_component(path, kind)
        manifest = manifest_of(path)
        return Part(
            field=field,
            path=path,
            info=info,
            sha256=file_hash(path),
            row=manifest.row if manifest else None,
            settings=info.settings or (manifest.settings if manifest else {}),
            module=LOADERS[kind](path),
        )


def check_equal(
    source: Path, found: Mapping[str, Any], expected: Mapping[str, Any], why: str
) -> None:
    """Raise CheckpointError, naming the first thing in which `source` isn't as expected."""
    there, here = _flat(found, expected), _flat(expected, expected)
    for name in here:
        if there.get(name) != here[name]:
            problem = f"found {shown(there.get(name))}, expected {shown(here[name])}, {why}"
            raise CheckpointError(f"{source}: {name}: {problem}")


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
