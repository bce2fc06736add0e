"""A recipe by name, from any folder."""

from pathlib import Path

import pytest

from fusionrun.study.recipe import RecipeError
from fusionrun.study.shipped_recipes import find_recipe, shipped_recipes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("word", ["demo", "demo.yaml", "configs/demo.yaml", "configs/demo"])
def test_a_shipped_one_is_found_from_any_folder(word: str) -> None:
    assert find_recipe(word) == shipped_recipes()["demo"]
    assert find_recipe(word).read_text().startswith("# Trains four small rows")


def test_a_file_in_this_folder_wins() -> None:
    Path("demo").mkdir()  # no recipe
    assert find_recipe("demo") == shipped_recipes()["demo"]
    Path("demo.yaml").write_text("mine")
    for word in ("demo", "demo.yaml", "configs/demo.yaml"):
        assert find_recipe(word) == Path("demo.yaml")
    Path("configs").mkdir()
    Path("configs/demo.yaml").write_text("mine, too")
    assert find_recipe("configs/demo.yaml") == Path("configs/demo.yaml")
    assert find_recipe("demo") == Path("demo.yaml")


def test_any_other_file_is_itself() -> None:
    Path("mine.yaml").write_text("")
    assert find_recipe("mine.yaml") == Path("mine.yaml")


@pytest.mark.parametrize("word", ["demmo", "demmo.yaml", "configs/demmo.yaml"])
def test_a_wrong_name_is_told_the_nearest_and_all(word: str) -> None:
    with pytest.raises(RecipeError, match=f"{word}: no such recipe; did you mean 'demo'") as error:
        find_recipe(word)
    assert all(name in str(error.value) for name in shipped_recipes())
