"""Recipes that come with fusionrun, which a command finds by name from any folder."""

from contextlib import suppress
from pathlib import Path

from fusionrun.common.file_paths import expanded
from fusionrun.common.text import nearest
from fusionrun.study.recipe import RecipeError


def shipped_recipes() -> dict[str, Path]:
    """{name: file}: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(word: str) -> Path:
    """The recipe that `word` names: what lies there in this folder, else the shipped one.

    A shipped one is called demo, demo.yaml or configs/demo.yaml. Raises RecipeError when it is
    neither.
    """
    try:
        word = expanded(word)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    shipped = shipped_recipes()
    name = word.removeprefix("configs/").removesuffix(".yaml")
    if name in shipped:
        here = [Path(word), Path(f"{name}.yaml")]
        return next((path for path in here if path.is_file()), shipped[name])
    with suppress(OSError):  # what is wrong with a name that can't be one, reading it says
        if not Path(word).exists():
            raise RecipeError(f"{word}: no such recipe; {nearest(name, shipped)}, or a file")
    return Path(word)
