"""A row's manifest: what its folder holds, how that came about and how good it is."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import FieldError, plain, read_json, require
from fusionrun.study.paths import RowFiles
from fusionrun.study.recipe import FULL_ENSEMBLE, SINGLE
from fusionrun.training.checkpoint import CheckpointError

FORMAT = 1  # of manifests, and of the component files beside them


@dataclass(frozen=True)
class ComponentFile:
    """A file that the manifest vouches for."""

    file: str  # from the row's folder on
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` holds; a field that older versions didn't write has its default."""

    format: int = FORMAT
    model: str  # the architecture; mixed-... of different ones
    members: list[str] = field(default_factory=list)  # of a mixed row: densenet 0, resnet 1, ...
    arguments: dict[str, Any] = field(default_factory=dict)  # of the architecture
    num_classes: int
    feature_dim: int | None = None
    num_experts: int
    classes: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)  # normalisation of inputs scaled to 0..1
    std: list[float] = field(default_factory=list)
    image_size: int | None = None
    epoch: int | None = None  # that validation selected; an assembled model has none
    val_accuracy: float | None = None  # percent
    fusion: str
    expert: int | None = None  # as its components' files have it; a row is none
    settings: dict[str, Any]  # that it was trained with
    row: str | None = None
    variant: str | None = None
    control: str | None = None
    seed: int | None = None
    expert_seed: int | None = None  # of its experts' training; None: the recipe's
    alpha: float | None = None
    weights: str | None = None  # hash of all of them
    micro_batch: int | None = None  # images whose batch statistics it had; None: whole batches
    threads: int | None = None
    device: str | None = None
    # that finished it: where, computed with what; `earlier` ones that worked on it, too
    launch: dict[str, Any] = field(default_factory=dict)
    experts_from: list[str] | None = None
    notes: list[str] = field(default_factory=list)  # what was left out, converted or guessed
    # of training it with its experts, and of an answer, counted; older versions didn't
    cost: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any]  # accuracies in percent
    test: dict[str, Any]
    assembled: dict[str, Any] | None = None  # of what, when nothing trained it as a whole
    components: dict[str, ComponentFile]

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, str(FORMAT))
        if self.assembled is None:
            require(self.epoch is not None, "epoch", None, "a whole number")
            require(self.val_accuracy is not None, "val_accuracy", None, "a number")


def read_manifest(path: Path) -> Manifest:
    """A row's manifest. Raises CheckpointError when it's missing or isn't one."""
    try:
        return read_json(path, Manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such manifest; has this row finished?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
    except FieldError as error:
        raise CheckpointError(f"{path}: is not a manifest: {error}") from None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Raises OSError."""
    tree = plain(manifest)
    for name in ("experts_from", "assembled", "members", "cost"):  # which not every model has
        if not tree[name]:
            del tree[name]
    write_json(path, tree)


def describe(files: RowFiles, paths: Mapping[str, Path]) -> dict[str, ComponentFile]:
    """What a manifest says of the component files at `paths`."""
    return {
        name: ComponentFile(
            str(path.relative_to(files.directory)), file_hash(path), path.stat().st_size
        )
        for name, path in paths.items()
    }


def verify(files: RowFiles, manifest: Manifest, paths: Mapping[str, Path]) -> None:
    """Raise CheckpointError for files that aren't those of the manifest; loading misses others."""
    for name, path in paths.items():
        known = manifest.components.get(name)
        if path.is_file() and (known is None or known.sha256 != file_hash(path)):
            raise CheckpointError(
                f"{path}: is not the file that {files.manifest} describes (sha256 differs)"
            )


def manifest_of(component: Path) -> Manifest | None:
    """The manifest of the row that has this file as a component; None where there is none.

    Raises CheckpointError when the file isn't as that manifest describes it.
    """
    path = component.absolute()
    files = RowFiles(path.parent.parent, csv=Path())
    if not files.manifest.is_file():
        return None
    manifest = read_manifest(files.manifest)
    for name, entry in manifest.components.items():
        if files.directory / entry.file == path:
            verify(files, manifest, {name: path})
            return manifest
    return None


def component_paths(
    files: RowFiles, num_experts: int, *, adapted: bool = False, fusion: str = ""
) -> dict[str, Path]:
    """{component's name in the manifest: its file}; `adapted` where experts have adapters.

    Networks in the place of a `fusion` have no heads beside them.
    """
    if fusion == SINGLE:
        return {"network": files.network}
    experts = {f"expert_{k}": files.expert(k) for k in range(num_experts)}
    adapters = {"adapters": files.adapters} if adapted else {}
    heads = {"fusion_module": files.fusion_module, "global_head": files.global_head}
    return experts if fusion == FULL_ENSEMBLE else {**experts, **adapters, **heads}


def file_hash(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
