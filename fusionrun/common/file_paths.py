"""Files and folders as people write them in recipes and on command lines."""

import os
import re
from pathlib import Path
from typing import NewType

# text that `expanded` has read; a field of this type is a path wherever it stands
FilePath = NewType("FilePath", str)

_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\}|)")


def expanded(text: str | os.PathLike[str]) -> FilePath:
    """With `~`, `~user`, `$NAME` and `${NAME}` as a shell reads them; `$$` is a dollar sign.

    The shell itself leaves the one in `--output=~/x` and whatever a recipe holds alone. Raises
    ValueError, with what is wrong alone, for a variable that isn't set and an unknown user.
    """

    def value(found: re.Match[str]) -> str:
        if found[1]:
            return "$"
        name = found[2] or found[3]
        if not name:
            expected = "$NAME or ${NAME} of a variable, or $$ for a dollar sign"
            raise ValueError(f"found {os.fspath(text)!r}, expected {expected}")
        if not os.environ.get(name):
            state = "is empty" if name in os.environ else "is not set"
            raise ValueError(f"found {os.fspath(text)!r}, but the variable {name} {state}")
        return os.environ[name]

    path = os.path.expanduser(_VARIABLE.sub(value, os.fspath(text)))  # noqa: PTH111 (`./~x` stays)
    if path.startswith("~"):
        name = path.partition("/")[0]
        raise ValueError(f"found {path!r}, but {name} is nobody's home; ./{path} is a file's name")
    return FilePath(path)


def literal(path: str | os.PathLike[str]) -> str:
    """What `expanded` reads as just this path."""
    text = os.fspath(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


def expanded_path(text: str | os.PathLike[str]) -> Path:
    """As `expanded`, of a path that is used at once."""
    return Path(expanded(text))
