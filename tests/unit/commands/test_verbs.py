"""The table of verbs."""

from pathlib import Path

import pytest

import fusionrun.commands
from fusionrun.cli import main


def test_every_file_is_a_verb_and_every_verb_has_its_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """launch.sh takes its first word for a verb where such a file is."""
    folder = Path(fusionrun.commands.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "options"}
    for verb in files:
        assert main([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: fusionrun {verb} ")
    assert main(["options", "--help"]) == 2
    named = capsys.readouterr().err.split("choose from ")[1].split(")")[0]
    assert {name.strip(" '") for name in named.split(",")} == files
