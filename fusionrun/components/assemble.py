"""One model of components that different rows or runs trained: found, verified, joined, saved."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

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
    "adapters": "a row's folder or a file",
    "evaluate": "a study's output directory",
}
# what components say of themselves and must agree on
SHARED = ("num_classes", "classes", "image_size", "mean", "std")


@dataclass(frozen=True)
class Plan:
    """What the user's manifest asks for."""

    path: Path  # of the manifest
    experts: str | list[str]  # a row's folder, or files
    fusion: str  # a row's folder, or a file
    global_head: str  # likewise
    adapters: str | None  # likewise; None: those of the fusion's row, else of the experts'
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
    adapters: Part | None  # where the experts' features aren't of the fusion's size
    fusion: Part
    global_head: Part
    model: FusionModel

    @property
    def parts(self) -> list[Part]:
        """In the order of `component_paths`."""
        adapters = [] if self.adapters is None else [self.adapters]
        return [*self.experts, *adapters, self.fusion, self.global_head]


def read_plan(path: Path) -> Plan:
    """Raises RecipeError for anything but KEYS, each once and with what it takes."""
    tree = read_yaml(path, "manifest", "experts and fusion")
    for key in tree:
        if key not in KEYS:
            raise RecipeError(f"{path}: unknown key {shown(key)}; {nearest(str(key), KEYS)}")
    values = {**dict.fromkeys(KEYS), "global_head": tree.get("fusion"), **tree}
    for key, expected in KEYS.items():
        value = values[key]
        if key in ("adapters", "evaluate") and value is None:
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
    experts = [
        _load(plan, f"experts.{k}", path, "expert", load_expert) for k, path in enumerate(files)
    ]
    path = _file(plan, "fusion", "fusion_module")
    fusion = _load(plan, "fusion", path, "fusion_module", load_fusion_module)
    path = _file(plan, "global_head", "global_head")
    head = _load(plan, "global_head", path, "global_head", load_global_head)
    for part in (*experts, fusion, head):
        _require_shared(plan, part, experts[0])
    with blame(plan, "global_head"):
        expected = {"feature_dim": fusion.info.feature_dim}
        check_equal(head.path, vars(head.info), expected, f"as in {fusion.path}")
    with blame(plan, "fusion"):
        expected = {"num_experts": len(experts)}
        check_equal(fusion.path, vars(fusion.info), expected, "as many as `experts` names")
        assert isinstance(fusion.module, FusionModule)
        modules = [part.module for part in experts]
        model = FusionModel(modules, fusion.module, fusion.info.num_classes)
    with blame(plan, "global_head"):
        load_checked_state(model.global_head, head.module.state_dict(), head.path)
    adapters = None
    if model.is_adapted:
        path = _adapters_file(plan, experts, fusion)
        adapters = _load(plan, "adapters", path, "adapters", partial(_load_adapters, model))
        _require_shared(plan, adapters, experts[0])
    elif plan.adapters is not None:
        size = fusion.info.feature_dim
        raise RecipeError(
            f"{plan.path}: adapters: none are needed, all features are of the fusion's size {size}"
        )
    return Assembled(plan, experts, adapters, fusion, head, model.eval())


def _require_shared(plan: Plan, part: Part, first: Part) -> None:
    with blame(plan, part.field):
        expected = {name: getattr(first.info, name) for name in SHARED}
        check_equal(part.path, vars(part.info), expected, f"as in {first.path}")


def _file(plan: Plan, field: str, component: str) -> Path:
    """What the field names itself, or that component of the row that it names."""
    text = getattr(plan, field)
    with blame(plan, field):
        path = expanded_path(text)
        return (
            path if path.is_file() else component_paths(_row(text)[0], 0, adapted=True)[component]
        )


def _adapters_file(plan: Plan, experts: Sequence[Part], fusion: Part) -> Path:
    """What the plan's `adapters` names, or what comes along with its rows.

    Raises RecipeError, naming the first expert that doesn't meet the fusion, where none come.
    """
    if plan.adapters is not None:
        return _file(plan, "adapters", "adapters")
    for text in (plan.fusion, plan.experts):
        if isinstance(text, str) and expanded_path(text).is_dir():
            files, manifest = _row(text)
            if "adapters" in manifest.components:
                return files.adapters
    for part in experts:
        with blame(plan, part.field):
            why = f"as in {fusion.path}, or a row in `adapters` that has learned to adapt them"
            check_equal(part.path, vars(part.info), {"feature_dim": fusion.info.feature_dim}, why)
    raise AssertionError("an expert of another size")


def _load_adapters(model: FusionModel, path: Path) -> nn.Module:
    """Those saved at `path`, in the model. Raises CheckpointError where experts need others."""
    _, weights = load_component(path, "adapters")
    found, expected = (_sizes(of) for of in (weights, model.adapters.state_dict()))
    if found != expected:
        raise CheckpointError(f"{path}: adapts {found}; here the fusion needs {expected}")
    load_checked_state(model.adapters, weights, path)
    return model.adapters


def _sizes(adapters: Mapping[str, Tensor]) -> str:
    """In words: expert 0 from 64 to 128, expert 2 from 32 to 128."""
    weights = {
        name.partition(".")[0]: value for name, value in adapters.items() if value.dim() == 2
    }
    return ", ".join(f"expert {k} from {w.shape[1]} to {w.shape[0]}" for k, w in weights.items())


def _row(text: str) -> tuple[RowFiles, Manifest]:
    """(files, manifest) of the row whose folder that is. Raises CheckpointError."""
    folder = expanded_path(text)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise CheckpointError(f"{folder}: found {found} there, expected a row's folder")
    files = RowFiles(folder, csv=Path())
    return files, read_manifest(files.manifest)


def _load(plan: Plan, field: str, path: Path, kind: str, load: Callable[[Path], nn.Module]) -> Part:
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
            module=load(path),
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
