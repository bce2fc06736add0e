"""The words of a command."""

from pathlib import Path

import pytest

from fusionrun.commands.options import recipe_and_overrides
from fusionrun.study.recipe import RecipeError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_recipe_may_stand_anywhere_among_the_overrides() -> None:
    for words in (["r", "a=1", "b=2"], ["a=1", "r", "b=2"], ["a=1", "b=2", "r"]):
        assert recipe_and_overrides(words) == ("r", ["a=1", "b=2"])
    assert recipe_and_overrides(["a=1"]) == (None, ["a=1"])


def test_a_files_name_may_hold_an_equals_sign() -> None:
    Path("lr=0.1.yaml").write_text("")
    assert recipe_and_overrides(["a=1", "lr=0.1.yaml"]) == ("lr=0.1.yaml", ["a=1"])


def test_an_override_may_be_longer_than_any_files_name() -> None:
    long = f"rows=[{'x' * 5000}]"
    assert recipe_and_overrides([long, "r"]) == ("r", [long])


def test_two_recipes_are_one_too_many() -> None:
    with pytest.raises(RecipeError, match=r"found 2 recipes \(r, s\), expected one"):
        recipe_and_overrides(["r", "a=1", "s"])
