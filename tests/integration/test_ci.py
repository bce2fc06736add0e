""".ci/run: what runs side by side there hides nothing of each other."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.tiny import ROOT

# stands for Python: makes an "environment" of itself, and is pytest in two processes
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"-m venv "*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
  *" tests/integration") echo "$$" >integration.pid; echo "integration tests at work"
    [[ $INTEGRATION != hangs ]] || exec sleep 60
    exit "$INTEGRATION" ;;
  *"-m pytest"*) echo "others at work"; sleep 0.5; exit "$OTHERS" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (".ci/run", "tests/run.sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "tools"  # no apt-get among them
    tools.mkdir()
    for tool in ("bash", "cp", "dirname", "mkdir", "mktemp", "readlink", "rm", "sed", "sleep"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "python3").write_text(PYTHON)
    (tools / "python3").chmod(0o755)
    return tmp_path


def start(checkout: Path, integration: object, others: int) -> subprocess.Popen[str]:
    variables = {"PATH": str(checkout / "tools"), "TMPDIR": str(checkout)}
    variables |= {"INTEGRATION": str(integration), "OTHERS": str(others)}
    return subprocess.Popen(
        ["bash", ".ci/run"],
        cwd=checkout,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("integration", "others", "expected"), [(0, 0, 0), (1, 0, 1), (0, 2, 2), (3, 1, 3)]
)
def test_whichever_fails_fails_it(
    checkout: Path, integration: int, others: int, expected: int
) -> None:
    process = start(checkout, integration, others)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == expected, output
    assert "integration: integration tests at work" in output and "others at work" in output
    said = f"exit status {integration} of the integration tests, {others} of all others"
    assert said in output.splitlines()[-1]


def test_one_that_is_ended_while_tests_hang_has_said_what_they_did_and_leaves_none(
    checkout: Path,
) -> None:
    process = start(checkout, "hangs", 0)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any("integration tests at work" in line for line in lines)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode != 0
    hanging = int((checkout / "integration.pid").read_text())
    end = time.monotonic() + 10
    while Path(f"/proc/{hanging}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{hanging}").exists()
    assert not list(checkout.glob("tmp.*"))
