"""Recipes as files: strict YAML with overrides in, the resolved recipe out."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fusionrun.common.text import one_line
from fusionrun.common.typed_fields import FieldError, build, kind_of, plain
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import Recipe, RecipeError

MAX_VALUES = 10_000  # values in a recipe; hundreds of rows need a few thousand


def load_recipe(
    path: Path, overrides: Iterable[str] = (), preset: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, then apply `preset` (dotted path -> value) and `key=value` overrides.

    Raises RecipeError, whose message names the file or override, the dotted path, what was found
    and what was expected.
    """
    return make_recipe(read_yaml(path), str(path), overrides, preset)


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
        return build(Recipe, tree)
    except FieldError as error:
        source = _source_of(error.path, sources) or name
        where = f"{error.path}: " if error.path else ""
        raise RecipeError(f"{source}: {where}{error.problem}") from None


def load_stored(output_dir: Path, overrides: Iterable[str] = ()) -> tuple[Recipe, str]:
    """(recipe of the study in `output_dir`, wherever that folder is now; its file's name).

    Raises RecipeError.
    """
    path = Layout(output_dir).recipe
    return load_recipe(path, overrides, {"output_dir": str(output_dir)}), str(path)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to the same value."""
    tree = plain(recipe)
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=False, allow_unicode=True)


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
        tree = plain(yaml.load(text, Loader=_StrictLoader))
        repr(tree)  # ValueError for a number of thousands of digits, which no message could show
        return tree
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: is not valid YAML: {one_line(error)}") from None
    # PyYAML lets Python's own errors through, e.g. for `!!bool perhaps` and the date 2026-13-01
    except (RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise RecipeError(f"{source}: is not valid YAML: {problem}") from None


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
    return key.strip(), _parse_yaml(value, f"override {text!r}")


def _assign(
    tree: dict[str, Any], key: str, value: Any, sources: dict[str, str], *, source: str
) -> None:
    """Set the dotted path `key` in `tree`; numbers index into lists."""
    *parents, last = key.split(".")
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
