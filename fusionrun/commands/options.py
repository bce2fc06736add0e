"""What several verbs share: their parsers' type, the recipe among their words, the console."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from fusionrun.study.recipe import RecipeError

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

OVERRIDES = "key=value overrides any field of the recipe by its dotted path, e.g. fusion.epochs=3"


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


def make_console() -> Console:
    """The terminal as it is, or a log file that is wide enough for the tables."""
    return Console() if sys.stdout.isatty() else Console(width=140, color_system=None)
