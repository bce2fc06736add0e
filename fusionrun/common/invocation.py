"""How this program was called, so that messages can name the next command as it is typed here."""

import os
import shlex
import sys
from pathlib import Path


def command() -> str:
    """What stands before a verb: `bash launch.sh`, `fusionrun` or `python -m fusionrun`."""
    if called := os.environ.get("FUSIONRUN_CALLED_AS"):  # by launch.sh
        return called
    return "fusionrun" if Path(sys.argv[0]).name == "fusionrun" else "python -m fusionrun"


def same_command() -> str:
    """The `train` command that runs, to be typed again; "" where it was none, as in a notebook."""
    if sys.argv[1:2] != ["train"]:
        return ""
    words = sys.argv[2:] if "FUSIONRUN_CALLED_AS" in os.environ else sys.argv[1:]
    ranks = f"RANKS={os.environ['RANKS']} " if os.environ.get("RANKS") else ""
    return f"{ranks}{command()} {shlex.join(words)}".rstrip()
