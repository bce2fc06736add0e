"""Frozen dataclasses from what YAML and JSON files hold, every value of the declared type.

The one reader of recipes, manifests and results: a schema is a dataclass, which its writer fills
and `read_json` gives back. A field that a file lacks has its default, so files written before it
existed stay readable; one that was renamed names the file's own word as its metadata's `key`.
"""

import contextlib
import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar, cast

from fusionrun.common.file_paths import FilePath, expanded
from fusionrun.common.text import nearest, one_line, shown

T = TypeVar("T")

# YAML 1.1 takes them for true and false, YAML 1.2 and people who name things for text
SWITCH_WORDS = frozenset({"yes", "no", "on", "off"})
_PLAIN = frozenset({str, int, float, bool, type(None)})


class FieldError(ValueError):
    """A value doesn't fit; `path` grows as the error travels up to the file's name."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def require(holds: bool, name: str, found: object, expected: str) -> None:
    """Raise FieldError for the field `name` unless it `holds`; for `__post_init__` of schemas."""
    if not holds:
        raise FieldError(name, f"found {shown(found)}, expected {expected}")


def require_positive(config: object, *names: str) -> None:
    """As `require`, of fields that are above 0 or None."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, name, value, "a number above 0")


def require_not_negative(config: object, *names: str) -> None:
    """As `require`, of fields that are 0, above, or None."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 0, name, value, "0 or more")


def build(kind: type[T], tree: Any, path: str = "", *, strict: bool = True) -> T:
    """The dataclass `kind` from a mapping; unknown keys are refused where `strict`, else left out.

    Raises FieldError with the dotted path of what was found.
    """
    return cast(T, _build(kind, tree, path, strict))


def read_json(path: Path, kind: type[T]) -> T:
    """The dataclass `kind` that the JSON file at `path` holds; keys it doesn't know are left out.

    Raises OSError when the file can't be read, FieldError when it holds something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FieldError("", f"is not JSON: {one_line(error)}") from None
    return build(kind, tree, strict=False)


def plain(value: Any) -> Any:
    """Dataclasses, mappings, tuples and paths as the dicts, lists and texts of YAML and JSON."""
    if type(value) in _PLAIN:  # nearly all there is in a status that is written every second
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        specs = _by_key(type(value))
        return {key: plain(getattr(value, spec.name)) for key, spec in specs.items()}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, PurePath) else value


def with_paths(value: Any, change: Callable[[FilePath], str], hint: Any = None) -> Any:
    """The same dataclass with every field of type FilePath changed, in whatever it holds too."""
    if value is None:
        return None
    if hint is FilePath:
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        fields = dataclasses.fields(value)
        changed = {
            f.name: with_paths(getattr(value, f.name), change, hints[f.name]) for f in fields
        }
        return dataclasses.replace(value, **changed)
    inner = typing.get_args(hint)
    if FilePath not in inner:
        return value
    if isinstance(value, Mapping):
        return {key: change(item) for key, item in value.items()}
    return change(value)  # FilePath | None


def flatten(value: object, prefix: str = "") -> dict[str, Any]:
    """Nested dataclasses or mappings as {dotted path: plain value}."""
    value = plain(value)
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def kind_of(value: object) -> str:
    """What a value of a file is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@cache
def _by_key(kind: type[Any]) -> dict[str, "dataclasses.Field[Any]"]:
    """A dataclass's fields by their names in a file."""
    return {spec.metadata.get("key", spec.name): spec for spec in dataclasses.fields(kind)}


def _build(kind: Any, tree: Any, path: str, strict: bool) -> object:
    """One dataclass from a mapping, every key known and every value of the declared type."""
    specs = _by_key(kind)
    if not isinstance(tree, dict):
        names = ", ".join(specs)
        raise FieldError(path, f"found {kind_of(tree)}, expected fields of: {names}")
    hints = _hints(kind)
    for key in tree if strict else ():
        if key not in specs:
            problem = f"unknown key {shown(key)}; {nearest(str(key), specs)}"
            raise FieldError(_join(path, str(key)), problem)
    values: dict[str, object] = {}
    for key, spec in specs.items():
        if key in tree:
            values[spec.name] = _convert(hints[spec.name], tree[key], _join(path, key), strict)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise FieldError(_join(path, key), "found nothing, expected a value")
    try:
        return kind(**values)
    except FieldError as error:
        raise FieldError(_join(path, error.path), error.problem) from None


def _convert(hint: Any, value: Any, path: str, strict: bool) -> object:
    """`value` as the type `hint` says; raises FieldError when it is something else."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts: list[Any] = [part for part in typing.get_args(hint) if part is not type(None)]
        if value is None and len(parts) < len(typing.get_args(hint)):
            return None
        if value is None:
            raise FieldError(path, "found nothing, expected a value")
        # of several kinds that of the same shape says best what is wrong
        shape = tuple if isinstance(value, list) else type(value)
        parts = [each for each in parts if typing.get_origin(each) is shape] or parts
        words = [each for each in parts if typing.get_origin(each) is Literal]
        *others, hint = [*words, *(each for each in parts if each not in words)]
        for other in others:
            with contextlib.suppress(FieldError):
                return _convert(other, value, path, strict)
        try:
            return _convert(hint, value, path, strict)
        except FieldError as error:
            if error.path != path or hint in words:
                raise
            named = [str(option) for each in words for option in typing.get_args(each)]
            raise FieldError(path, " or ".join([error.problem, *named])) from None
    if origin is Literal:
        options = typing.get_args(hint)
        if "off" in options and (value is False or str(value).lower() == "off"):
            value = "off"
        if value not in options:
            raise FieldError(path, f"found {shown(value)}; {nearest(str(value), options)}")
        return cast(object, value)
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise FieldError(path, f"found {kind_of(value)}, expected a list")
        inner = typing.get_args(hint)[0]
        items = (_convert(inner, item, f"{path}.{i}", strict) for i, item in enumerate(value))
        return cast(object, origin(items))
    if origin is dict:
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise FieldError(path, f"found {kind_of(value)}, expected a mapping")
        inner = typing.get_args(hint)[1]
        return {
            str(key): _convert(inner, item, _join(path, str(key)), strict)
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        # `data:` with nothing below it is an empty section
        return _build(hint, {} if value is None else value, path, strict)
    if hint is FilePath:
        try:
            return expanded(cast(str, _convert_scalar(str, value, path, strict)))
        except ValueError as error:
            raise error if isinstance(error, FieldError) else FieldError(path, str(error)) from None
    if hint is Any:
        if strict:
            _refuse_switch_words(value, path)
        return value
    return _convert_scalar(hint, value, path, strict)


def _refuse_switch_words(value: Any, path: str) -> None:
    """An argument of any type could mean a boolean, and `no` as text is true."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_switch_words(item, _join(path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_switch_words(item, f"{path}.{index}")
    elif isinstance(value, str) and value.lower() in SWITCH_WORDS:
        raise FieldError(path, f"found {value!r} (text), expected true or false")


def _convert_scalar(hint: type, value: Any, path: str, strict: bool) -> object:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    expected = names[hint]
    if hint is str and isinstance(value, (bool, int, float)):
        expected += ", which is written in quotes"
    problem = f"found {shown(value)} ({kind_of(value)}), expected {expected}"
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise FieldError(path, problem) from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise FieldError(path, problem)
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(path, f"found {value!r}, expected a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise FieldError(path, f"found {shown(value)}, expected a whole number of 64 bits")
    odd = isinstance(value, str) and any(c < " " or "\ud800" <= c <= "\udfff" for c in value)
    if odd and strict:
        # no path can hold the one and no UTF-8 file the other
        raise FieldError(path, f"found {shown(value)}, expected text of printable characters")
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
