"""The next command, as it is typed here."""

import sys

import pytest

from fusionrun.common.invocation import command, same_command


@pytest.mark.parametrize(
    ("argv", "environ", "verb", "again"),
    [
        (
            ["/usr/bin/fusionrun", "train", "my study.yaml", "fusion.epochs=3"],
            {},
            "fusionrun",
            "fusionrun train 'my study.yaml' fusion.epochs=3",
        ),
        (
            ["/lib/fusionrun/__main__.py", "train", "demo"],
            {},
            "python -m fusionrun",
            "python -m fusionrun train demo",
        ),
        (
            ["/lib/fusionrun/__main__.py", "train", "demo", "--only", "resnet/*"],
            {"FUSIONRUN_CALLED_AS": "bash ../launch.sh", "RANKS": "2"},
            "bash ../launch.sh",
            "RANKS=2 bash ../launch.sh demo --only 'resnet/*'",
        ),
        (
            ["/lib/fusionrun/__main__.py", "train"],
            {"FUSIONRUN_CALLED_AS": "bash launch.sh"},
            "bash launch.sh",
            "bash launch.sh",
        ),
        (["/lib/ipykernel_launcher.py", "-f", "x.json"], {}, "python -m fusionrun", ""),
    ],
)
def test_by_who_called(
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    environ: dict[str, str],
    verb: str,
    again: str,
) -> None:
    for name in ("FUSIONRUN_CALLED_AS", "RANKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", argv)
    assert (command(), same_command()) == (verb, again)
