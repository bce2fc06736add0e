"""What several verbs share: their parsers' type, the recipe among their words, the console."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from fusionrun.common.file_paths import expanded_path
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import require_movable

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

OVERRIDES = "key=value overrides any field of the recipe by its dotted path, e.g. fusion.epochs=3"
PLACES = (
    "the study's folder; key=value says where things lie by now (data.root, data.cache_dir, "
    "data.splits_dir, experts.checkpoint_dir) and how the hardware is used (runtime.*)"
)
OUTPUT = "where to write; default: to the study. One that is read-only stays as it is"


def recipe_and_overrides(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe among a command's words, which may stand anywhere, and the `key=value` words.

    Raises RecipeError when there are several recipes.
    """

    def is_file(word: str) -> bool:
        try:
            return Path(word).is_file()
        except OSError:  # an override can be longer than any file's name
            return False

    recipes = [word for word in words if "=" not in word or is_file(word)]
    if len(recipes) > 1:
        raise RecipeError(f"found {len(recipes)} recipes ({', '.join(recipes)}), expected one")
    return recipes[0] if recipes else None, [word for word in words if word not in recipes]


def path(text: str) -> Path:
    """The type of options that name a file or folder: what `--output=~/x` and `$RUNS` stand for."""
    try:
        return expanded_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def folders_and_overrides(words: Sequence[str], command: str) -> tuple[list[Path], list[str]]:
    """The output directories among a command's words, and the `key=value` words.

    Raises RecipeError when there is none, or a field isn't one that may be another by now.
    """
    folders = [word for word in words if "=" not in word or Path(word).is_dir()]
    if not folders:
        raise RecipeError(f"{command} needs an OUTPUT_DIR")
    overrides = [word for word in words if word not in folders]
    for text in overrides:
        require_movable(text)
    try:
        return [expanded_path(word) for word in folders], overrides
    except ValueError as error:
        raise RecipeError(f"{command}: OUTPUT_DIR: {error}") from None


def study_and_overrides(words: Sequence[str], command: str) -> tuple[Path, list[str]]:
    """As `folders_and_overrides`, of one folder only. Raises RecipeError when there are several."""
    folders, overrides = folders_and_overrides(words, command)
    if len(folders) > 1:
        found = ", ".join(map(str, folders))
        raise RecipeError(f"{command}: found {len(folders)} folders ({found}), expected one")
    return folders[0], overrides


def make_console() -> Console:
    """The terminal as it is, or a log file that is wide enough for the tables."""
    return Console() if sys.stdout.isatty() else Console(width=140, color_system=None)
