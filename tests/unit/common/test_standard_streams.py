"""Whoever reads the output, or doesn't, changes nothing of what is done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import environment

PROGRAM = """
import sys
from fusionrun.common.standard_streams import forgive
forgive()
for _ in range(1000):
    print("21 \u00b1 1 \u2500 caf\\udce9" * 10)
    print("told", file=sys.stderr, flush=True)
sys.stdout.flush()
opened = open({path!r}, "w")
opened.write(str(opened.fileno()))
opened.close()
sys.exit(7)
"""


@pytest.mark.parametrize("where", [">&- 2>&-", ">/dev/full 2>/dev/full", ">/dev/null", "| true"])
@pytest.mark.parametrize("locale", ["C.UTF-8", "ascii"])
def test_the_status_is_the_programs(tmp_path: Path, where: str, locale: str) -> None:
    path = tmp_path / "opened"
    (tmp_path / "program.py").write_text(PROGRAM.format(path=str(path)))
    more = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} program.py {where}; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=environment(**(more if locale == "ascii" else {})),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7
    assert set(done.stderr.split()) <= {"told"}
    # a file of ours must not become what C code takes for standard output
    assert int(path.read_text()) > 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_can_be_written_is_written(tmp_path: Path, unbuffered: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(path=os.devnull))
    command = [sys.executable, "program.py"]
    environ = environment(PYTHONUNBUFFERED=unbuffered)
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True)
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 1000 and lines[0].startswith("21 ± 1 ─ caf?21")
    assert done.stderr.decode() == "told\n" * 1000


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing(
    tmp_path: Path, unbuffered: str
) -> None:
    """ssh and node.js do so to a terminal that they share with us."""
    (tmp_path / "program.py").write_text(PROGRAM.format(path=os.devnull))
    read, write = os.pipe()
    os.set_blocking(write, False)
    child = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED=unbuffered),
        stdout=write,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read, "rb") as file:
        assert len(file.read().splitlines()) == 1000
    assert child.wait() == 7
