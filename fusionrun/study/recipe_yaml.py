"""Recipes as files: strict YAML with overrides in, the resolved recipe out."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from fusionrun.common.file_paths import FilePath, expanded, literal
from fusionrun.common.plugins import is_backbone
from fusionrun.common.text import clipped, one_line
from fusionrun.common.typed_fields import FieldError, build, kind_of, plain, with_paths
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import Recipe, RecipeError

# fields that may be others when a finished study is measured: where things lie
MOVABLE = (
    "data.root",
    "data.cache_dir",
    "data.splits_dir",
    "data.download",
    "experts.checkpoint_dir",
    "experts.pattern",
)
MAX_VALUES = 10_000  # values in a recipe; hundreds of rows need a few thousand


def load_recipe(
    path: Path, overrides: Iterable[str] = (), preset: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, then apply `preset` (dotted path -> value) and `key=value` overrides.

    One that a study keeps is that of the study as it lies now: training goes on after a move.
    Raises RecipeError, whose message names the file or override, the dotted path, what was found
    and what was expected.
    """
    tree = read_yaml(path)
    layout = Layout(path.parent)
    if path.name == layout.recipe.name and layout.state.is_dir():
        tree = _stored_tree(layout)
    return make_recipe(tree, str(path), overrides, preset)


def make_recipe(
    tree: dict[str, Any],
    name: str,
    overrides: Iterable[str] = (),
    preset: Mapping[str, Any] | None = None,
) -> Recipe:
    """As `load_recipe`, of what the file `name` holds; `tree` is changed."""
    sources: dict[str, str] = {}
    for key, value in (preset or {}).items():
        _assign(tree, key, value, sources, source="command line")
    for text in overrides:
        key, value = _parse_override(text)
        _assign(tree, key, value, sources, source=f"override {text!r}")
    try:
        return _with_weights(build(Recipe, tree), expanded)
    except FieldError as error:
        source = _source_of(error.path, sources) or name
        where = f"{one_line(error.path)}: " if error.path else ""  # a key is any text
        raise RecipeError(f"{source}: {where}{error.problem}") from None


def load_stored(output_dir: Path, overrides: Iterable[str] = ()) -> tuple[Recipe, str]:
    """(recipe of the study in `output_dir`, wherever that folder is now; its file's name).

    `overrides` may say where things lie now and how the hardware is used. Raises RecipeError.
    """
    overrides = list(overrides)
    for text in overrides:
        require_movable(text)
    layout = Layout(output_dir)
    name = str(layout.recipe)
    return make_recipe(_stored_tree(layout), name, overrides), name


def require_movable(override: str) -> None:
    """Raise RecipeError for a field that says what a finished study is."""
    key = _parse_override(override)[0]
    if key in MOVABLE or key.startswith(("runtime.", "plugins.")):
        return
    advice = "it is what it was trained with; only `train`, into another output_dir, changes that"
    if key == "output_dir":
        advice = "name its folder itself, and --output DIR to write elsewhere"
    raise RecipeError(
        f"override {override!r}: of a study that is there already, found {key}, expected "
        f"{', '.join(MOVABLE)}, plugins.NAME or a field of runtime; {advice}"
    )


def _stored_tree(layout: Layout) -> dict[str, Any]:
    """The fields of the recipe that a study keeps, with its paths as they are now."""
    stored = make_recipe(read_yaml(layout.recipe), str(layout.recipe))
    tree: dict[str, Any] = plain(_with_paths(_found_again(stored, layout.output_dir), literal))
    return {**tree, "output_dir": literal(layout.output_dir)}


def _found_again(stored: Recipe, output_dir: Path) -> Recipe:
    """The recipe with its paths as they are now that the study lies in `output_dir`.

    What lay below the study moved with it; what lay beside it did so if it isn't where it was.
    """
    here, then = Path(output_dir).absolute(), Path(stored.output_dir)
    base = Path.cwd()
    if not then.is_absolute():  # before paths were stored whole: of the launch's working directory
        if here.parts[-len(then.parts) :] == then.parts:
            base = Path(*here.parts[: -len(then.parts)])
        then = base / then

    def now(path: FilePath) -> str:
        place = os.path.normpath(base / path)
        moved = os.path.normpath(here / os.path.relpath(place, then))
        below = Path(place).is_relative_to(then)
        return moved if below or (_exists(moved) and not _exists(place)) else place

    return _with_paths(stored, now)


def _exists(path: str) -> bool:
    """Of a file, a folder, or a plug-in's FILE.py:NAME."""
    return os.path.exists(path) or os.path.exists(path.rpartition(":")[0])  # noqa: PTH110


def dump_for_study(recipe: Recipe) -> str:
    """As `dump_recipe`, with whole paths: the study can be measured from any folder."""
    return dump_recipe(_with_paths(recipe, os.path.abspath))


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to the same value."""
    tree = plain(_with_paths(recipe, literal))
    return yaml.dump(
        tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True
    )


def _with_paths(recipe: Recipe, change: Callable[[FilePath], str]) -> Recipe:
    """The recipe with every path changed."""
    return _with_weights(cast(Recipe, with_paths(recipe, change)), change)


def _with_weights(recipe: Recipe, change: Callable[[FilePath], str]) -> Recipe:
    """The recipe with the files changed that models.*.pretrained names.

    A plug-in's own argument of this name may be any word, which has no ending.
    """
    models = {model: dict(tree) for model, tree in recipe.models.items()}
    for model, tree in models.items():
        found = tree.get("pretrained")
        if isinstance(found, str) and Path(found).suffix:
            try:
                tree["pretrained"] = change(FilePath(found))
            except ValueError as error:
                raise FieldError(f"models.{model}.pretrained", str(error)) from None
    return replace(recipe, models=models)


# what a plain word means, in this order: as in YAML 1.2, in which `no`, `off` and dates are text
PLAIN_WORDS = (
    ("tag:yaml.org,2002:null", r"null|Null|NULL|"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)"),
    ("tag:yaml.org,2002:merge", r"<<"),
    # 007, 0o7, 0x1F, 0b1, 1_000, 1:30: not the same number to all readers of YAML, or to people
    (
        "!ambiguous",
        r"~|[-+]?(0[0-9_]+|0[xob][0-9A-Fa-f_]+|[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?"
        r"|[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?)",
    ),
    ("tag:yaml.org,2002:float", r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"),
    ("tag:yaml.org,2002:float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
)


class _Ambiguous(str):
    """A plain word that people and readers of YAML take for different things."""


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, which refuses keys written twice and aliases that multiply."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # here and not where mappings are constructed: by then `<<` has merged others into them
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is written twice", key.start_mark
                    )
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """The safe one; text that either reading of YAML takes for something else gets quotes."""


def _construct_ambiguous(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Ambiguous:
    return _Ambiguous(loader.construct_scalar(node))


_RESOLVERS = {None: [(tag, re.compile(rf"(?:{words})\Z")) for tag, words in PLAIN_WORDS]}
_StrictLoader.yaml_implicit_resolvers = _RESOLVERS
_Dumper.yaml_implicit_resolvers = {**yaml.SafeDumper.yaml_implicit_resolvers, **_RESOLVERS}
_StrictLoader.add_constructor("!ambiguous", _construct_ambiguous)


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Nodes below `node` with every alias written out; ValueError above MAX_VALUES.

    A few lines of aliases of aliases can stand for billions of values, which whatever copies or
    prints the tree would meet one by one.
    """
    if id(node) not in counts:
        counts[id(node)] = MAX_VALUES  # what an alias of itself finds
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        counts[id(node)] = 1 + sum(_count_nodes(part, counts) for part in parts)
    if counts[id(node)] > MAX_VALUES:
        raise ValueError(f"found more than {MAX_VALUES} values, or an alias inside itself")
    return counts[id(node)]


def _parse_yaml(text: str, source: str) -> Any:
    """`text` as plain values, of which no two share a part: an override changes one place only."""
    try:
        found = yaml.load(text, Loader=_StrictLoader)
        _refuse_ambiguous(found, source)
        tree = plain(found)
        repr(tree)  # ValueError for a number of thousands of digits, which no message could show
        return tree
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: is not valid YAML: {one_line(error)}") from None
    # PyYAML lets Python's own errors through, e.g. for `!!bool perhaps` and the date 2026-13-01
    except (RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise RecipeError(f"{source}: is not valid YAML: {problem}") from None


def _refuse_ambiguous(tree: Any, source: str, path: str = "") -> None:
    """Raise RecipeError for the first word that isn't the same to everybody."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            _refuse_ambiguous(key, source, path)
            _refuse_ambiguous(value, source, f"{path}{key}.")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            _refuse_ambiguous(value, source, f"{path}{index}.")
    elif isinstance(tree, _Ambiguous):
        place = f"{source}: {path[:-1]}: " if path else f"{source}: "
        if tree == "~":
            raise RecipeError(f"{place}found ~; write null, or $HOME for your home folder")
        meant = yaml.safe_load(tree)
        taken = f", which YAML reads as {meant}" if isinstance(meant, (int, float)) else ""
        raise RecipeError(
            f"{place}found {clipped(tree)}{clipped(taken)}; write a number in plain decimal "
            f"digits, or text in quotes: '{clipped(tree)}'"
        )


def read_yaml(
    path: Path, what: str = "recipe", keys: str = "output_dir and rows"
) -> dict[str, Any]:
    """The mapping that a YAML file holds, no key twice. Raises RecipeError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such {what}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder, expected a YAML {what}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not text in UTF-8, expected a YAML {what}") from None
    except OSError as error:
        raise RecipeError(f"{path}: can't be read: {error.strerror}") from None
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: found {kind_of(tree)}, expected keys such as {keys}")
    return tree


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override {text!r}: expected key=value, e.g. fusion.epochs=3")
    if not value.strip() and key.strip() in MOVABLE:  # what a shell makes of key=$UNSET
        raise RecipeError(f"override {text!r}: found nothing after =, expected a path or null")
    if key.strip() == "experts.pattern" and value.startswith("{"):  # which YAML has for mappings
        return key.strip(), value
    return key.strip(), _parse_yaml(value, f"override {text!r}")


def _assign(
    tree: dict[str, Any], key: str, value: Any, sources: dict[str, str], *, source: str
) -> None:
    """Set the dotted path `key` in `tree`; numbers index into lists."""
    *parents, last = _names_in(key, value, tree)
    place: Any = tree
    for depth, name in enumerate(parents):
        place = _enter(place, name, ".".join(parents[: depth + 1]), source)
    if isinstance(place, list):
        place[_list_index(place, last, key, source)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        problem = f"{'.'.join(parents)} is {kind_of(place)}, which has no fields"
        raise RecipeError(f"{source}: {problem}")
    sources.pop(key, None)  # the last one set stands last
    sources[key] = source


def _names_in(key: str, value: Any, tree: Mapping[str, Any]) -> list[str]:
    """The names that lead to a field; that of another library's network may hold dots itself.

    models.timm:NAME=... is all of its settings, where a mapping is set; else the last name is one
    of them.
    """
    names = key.split(".")
    if names[0] != "models" or not is_backbone(".".join(names[1:2])):
        return names
    known = tree.get("models") or {}
    for end in range(len(names), 1, -1):
        if isinstance(known, dict) and (model := ".".join(names[1:end])) in known:
            return ["models", model, *names[end:]]
    end = len(names) if isinstance(value, dict) or len(names) == 2 else len(names) - 1
    return ["models", ".".join(names[1:end]), *names[end:]]


def _enter(place: Any, name: str, path: str, source: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, name, path, source)]
    if not isinstance(place, dict):
        raise RecipeError(f"{source}: {path}: found {kind_of(place)} above it, which has no fields")
    if place.get(name) is None:
        place[name] = {}
    return place[name]


def _list_index(place: list[Any], name: str, path: str, source: str) -> int:
    valid = [str(index) for index in range(len(place))]
    if name not in valid:
        limits = f"an index from 0 to {len(place) - 1}" if place else "nothing: the list is empty"
        raise RecipeError(f"{source}: {path}: found {name!r}, expected {limits}")
    return valid.index(name)


def _source_of(path: str, sources: dict[str, str]) -> str | None:
    """The last override that set `path`, something above it or something below it."""
    for key, source in reversed(sources.items()):
        if key == path or path.startswith(f"{key}.") or key.startswith(f"{path}."):
            return source
    return None
