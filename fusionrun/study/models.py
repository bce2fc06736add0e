"""What a recipe says of an architecture below `models`: its arguments, and how it is trained."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from fusionrun.common.plugins import is_backbone
from fusionrun.common.typed_fields import FieldError, build, flatten, require
from fusionrun.experts import INPUTS, argument_defaults, argument_names
from fusionrun.experts.backbone import RESERVED
from fusionrun.study.recipe import Recipe


@dataclass(frozen=True)
class ModelSettings:
    """How experts of an architecture are trained; all else below `models.<name>` builds them."""

    # begin an expert's own training from the library's weights (true) or those of a file
    pretrained: bool | str | None = None
    frozen_stages: int = 0  # the first so many stages of the trunk never learn
    lr: float | None = None  # of an expert's own training; null: experts.lr
    row_lr: float | None = None  # of the experts in rows; null: fusion.experts_lr

    def __post_init__(self) -> None:
        require(self.frozen_stages >= 0, "frozen_stages", self.frozen_stages, "0 or more")
        for name in ("lr", "row_lr"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a number above 0")


DECIDED = (RESERVED - {"pretrained"}) | {"name"}  # of what a library's constructor takes
SETTINGS = tuple(field.name for field in fields(ModelSettings))


def settings_of(recipe: Recipe, model: str) -> ModelSettings:
    """How `model` is trained. Raises FieldError, from the setting's name on."""
    tree = recipe.models.get(model, {})
    own = _own_names(recipe, model)
    if is_backbone(model) and (decided := sorted(DECIDED & tree.keys())):
        raise FieldError(decided[0], "found a value, expected none: fusionrun decides it")
    settings = build(ModelSettings, {n: tree[n] for n in SETTINGS if n in tree and n not in own})
    if settings.pretrained is True and not is_backbone(model):
        raise FieldError("pretrained", "found true, expected a file: no library has weights of it")
    return settings


def arguments_of(recipe: Recipe, model: str) -> dict[str, Any]:
    """What `model` is built with, its input's size and normalisation among it."""
    own = _own_names(recipe, model)
    tree = recipe.models.get(model, {})
    return {name: value for name, value in tree.items() if name in own or name not in SETTINGS}


def without_pretrained(recipe: Recipe) -> Recipe:
    """The recipe for steps whose numbers don't matter: they begin with random weights."""
    models = {
        model: {name: value for name, value in tree.items() if name != "pretrained"}
        for model, tree in recipe.models.items()
    }
    return replace(recipe, models=models)


def known_names(recipe: Recipe, model: str) -> list[str] | None:
    """All that may stand below `models.<model>`; None where the library alone knows."""
    if is_backbone(model):
        return None
    return [*_own_names(recipe, model), *INPUTS, *SETTINGS]


def identity_fields(recipe: Recipe, model: str, *, alone: bool, in_rows: bool) -> dict[str, Any]:
    """What decides the numbers of experts that train alone, and in rows: {models.<model>.*}.

    Rows begin from experts that are there, whose weights they are compared by.
    """
    settings, unused = settings_of(recipe, model), set[str]()
    unused |= set() if alone else {"lr", "pretrained"}
    unused |= set() if in_rows else {"row_lr"}
    tree = {
        name: value
        for name, value in recipe.models.get(model, {}).items()
        if name not in unused or name in _own_names(recipe, model)
    }
    if "pretrained" not in unused and isinstance(settings.pretrained, str):
        tree["pretrained"] = described_file(Path(settings.pretrained))
    for name in ("pretrained", "normalisation"):
        if name not in _own_names(recipe, model) and not tree.get(name, True):
            del tree[name]  # false and null are the defaults
    return flatten(tree, f"models.{model}")


def identity_defaults(recipe: Recipe, models: Iterable[str]) -> dict[str, Any]:
    """Of all that `identity_fields` can have; an absent field is one of these.

    Without dropout: where the recipe has none, an expert that trains alone has one of its own.
    """
    found: dict[str, Any] = {}
    for model in models:
        settings = {"normalisation": "data", "image_size": None, **flatten(ModelSettings())}
        own = argument_defaults(recipe.plugins.get(model, model))
        found |= flatten(
            {n: v for n, v in {**settings, **own}.items() if n != "dropout"}, f"models.{model}"
        )
    return found


def described_file(path: Path) -> str:
    """A file of weights by its name and content, not by where it lies; by its name where it's gone.

    In the form that plug-ins have, see study/identity.py.
    """
    try:
        stat = path.stat()
        return f"{path.name} (source {_hash(path, stat.st_mtime_ns, stat.st_size)})"
    except OSError:
        return path.name


@cache
def _hash(path: Path, changed: int, size: int) -> str:
    """Of the file as it was when it was `changed`: every task asks, and it may be large."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _own_names(recipe: Recipe, model: str) -> Collection[str]:
    """The architecture's own arguments: one called as a setting stays its own."""
    return () if is_backbone(model) else argument_names(recipe.plugins.get(model, model))
