"""Paths as people write them."""

from pathlib import Path

import pytest

from fusionrun.common.file_paths import expanded, expanded_path, literal


def test_a_variable_that_is_empty_is_as_bad_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`$SCRATCH/runs` would be /runs."""
    monkeypatch.setenv("SCRATCH", "")
    with pytest.raises(ValueError, match="SCRATCH is empty"):
        expanded("$SCRATCH/runs")


def test_a_variable_may_hold_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", "~/runs")
    assert expanded_path(Path("$RUNS/x")) == Path("/home/me/runs/x")


@pytest.mark.parametrize("path", ["a", "~", "~/x", "$HOME", "a$", "$$", "/a/${b}", "./x"])
def test_literal_is_the_inverse(path: str) -> None:
    assert Path(expanded(literal(path))) == Path(path)
