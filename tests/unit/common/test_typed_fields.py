"""Dataclasses from what files hold: types, defaults, and errors that name the field."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from fusionrun.common.typed_fields import FieldError, build, flatten, plain, read_json, require


@dataclass(frozen=True)
class Inner:
    name: str
    share: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "share", self.share, "0 to 1")


@dataclass(frozen=True)
class Outer:
    count: int
    inner: list[Inner] = field(default_factory=list)
    kind: Literal["on", "off"] = "on"
    sizes: dict[str, int] = field(default_factory=dict)
    note: str | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    most: Literal["auto"] | int = "auto"
    least: float | Literal["auto"] | None = None


FULL = Outer(3, [Inner("a", 0.25)], "off", {"x": 1}, "said", (1.0, 2.0))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "full.json"
    path.write_text(json.dumps(plain(FULL)))
    assert read_json(path, Outer) == FULL


def test_a_file_of_another_version_is_read(tmp_path: Path) -> None:
    """What it lacks has its default, what it has beyond that is left out."""
    path = tmp_path / "older.json"
    path.write_text('{"count": 3, "inner": [{"name": "a", "new": [1]}], "newer": {}}')
    assert read_json(path, Outer) == Outer(3, [Inner("a")])


@pytest.mark.parametrize(
    ("tree", "path", "problem"),
    [
        ({}, "count", "found nothing, expected a value"),
        ({"count": "3"}, "count", "expected a whole number"),
        ({"count": True}, "count", "expected a whole number"),
        ({"count": 2**63}, "count", "64 bits"),
        ({"count": 1, "inner": {}}, "inner", "found a mapping, expected a list"),
        ({"count": 1, "inner": [{"name": 1}]}, "inner.0.name", "expected text"),
        (
            {"count": 1, "inner": [{"name": "a"}, {"name": "b", "share": 2}]},
            "inner.1.share",
            "0 to",
        ),
        ({"count": 1, "pair": [1, float("nan")]}, "pair.1", "a finite number"),
        ({"count": 1, "kind": "of"}, "kind", "did you mean 'off'?"),
        ({"count": 1, "sizes": [1]}, "sizes", "found a list, expected a mapping"),
        ({"count": 1, "sizes": {"x": "y"}}, "sizes.x", "expected a whole number"),
        ({"count": 1, "most": "of"}, "most", "found 'of' (text), expected a whole number or auto"),
        ({"count": 1, "least": "of"}, "least", "found 'of' (text), expected a number or auto"),
        ({"count": 1, "cuont": 1}, "cuont", "did you mean 'count'?"),
        ([], "", "found a list, expected fields of: count, inner"),
    ],
)
def test_errors_name_the_field(tree: Any, path: str, problem: str) -> None:
    with pytest.raises(FieldError) as error:
        build(Outer, tree)
    assert error.value.path == path and problem in error.value.problem


@pytest.mark.parametrize("content", ["", "{", "[1"])
def test_what_is_not_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(FieldError, match="is not JSON"):
        read_json(tmp_path / "x.json", Outer)


def test_flat_names() -> None:
    flat = flatten(FULL)
    assert flat["sizes.x"] == 1 and flat["inner"] == [{"name": "a", "share": 0.25}]
