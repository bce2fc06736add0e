"""What a rank says is kept, in bounds, and its last words are found."""

import subprocess
import sys
from pathlib import Path

import pytest

from fusionrun.launch.rank_log import bound_size, last_words, remove_if_empty
from tests.tiny import environment

DIES = """
import ctypes, os, sys
from pathlib import Path
from fusionrun.launch.rank_log import redirect_output
redirect_output(Path(sys.argv[1]))
if sys.argv[2]:
    os.write(2, sys.argv[2].encode())
if sys.argv[3] == "segfault":
    ctypes.string_at(0)
elif sys.argv[3] == "killed":
    os.kill(os.getpid(), 9)
"""


def died(path: Path, words: str, how: str) -> str:
    """The last words of a process that says `words` and dies; nothing comes out elsewhere."""
    start = path.stat().st_size if path.exists() else 0
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(path), words, how],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout + done.stderr == ""
    return last_words(path, start)


def test_last_words(tmp_path: Path) -> None:
    path = tmp_path / "logs/rank-1.log"
    assert died(path, "", "killed") == ""
    assert died(path, "libdriver: ECC error\n", "killed") == "libdriver: ECC error"
    assert died(path, "", "killed") == ""  # those of the one before aren't its own
    assert died(path, "", "segfault") == "Fatal Python error: Segmentation fault"
    assert died(path, "what(): lost\nframe #0: f()\n", "segfault") == "what(): lost"
    text = path.read_text()
    assert text.count("started again, pid") == 3 and "libdriver" in text  # restarts add to it


def test_a_log_stays_small_and_keeps_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionrun.launch.rank_log.LARGEST", 1000)
    monkeypatch.setattr("fusionrun.launch.rank_log.KEPT", 100)
    path = tmp_path / "rank-1.log"
    bound_size(path)
    assert not path.exists()
    with path.open("a") as writer:
        for number in range(200):
            print(f"line {number}", file=writer, flush=True)
        bound_size(path)
        print("line 200", file=writer, flush=True)
    lines = path.read_text().splitlines()
    assert 5 < len(lines) < 15
    assert lines == [f"line {number}" for number in range(201 - len(lines), 201)]
    assert last_words(path, 5000) == "line 200"  # what was there before has been cut


def test_who_said_nothing_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "rank-1.log"
    remove_if_empty(path)
    path.touch()
    remove_if_empty(path)
    assert not path.exists()
    path.write_text("x")
    remove_if_empty(path)
    assert path.exists()


KEEPS = """
import os, sys
from pathlib import Path
from fusionrun.launch.rank_log import keep_errors
keep_errors(Path(sys.argv[1]))
print("fusionrun: said by Python", file=sys.stderr)
os.write(2, b"libdriver: ECC error\\n")
print("on stdout")
sys.stdout.flush()
os.kill(os.getpid(), 11)
"""


def test_of_the_rank_with_the_terminal_what_native_code_says_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "logs/rank-0.log"
    done = subprocess.run(
        [sys.executable, "-c", KEEPS, str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -11
    assert (done.stdout, done.stderr) == ("on stdout\n", "fusionrun: said by Python\n")
    kept = path.read_text()
    assert "said by Python\nlibdriver: ECC error\nFatal Python error" in kept
    assert last_words(path, 0) == "libdriver: ECC error"


def test_what_died_before_it_had_a_folder_is_kept_too(tmp_path: Path) -> None:
    torchruns = [tmp_path / f"torchrun/attempt_{number}/1/stderr.log" for number in range(2)]
    for path in torchruns:
        path.parent.mkdir(parents=True)
    torchruns[0].write_text("ImportError: libcudart.so\n")
    log = tmp_path / "out/logs/rank-1.log"
    with torchruns[1].open("wb") as file:
        file.write(b"a warning of this one\n")
        file.flush()
        subprocess.run(
            [sys.executable, "-c", DIES, str(log), "its own\n", ""],
            env=environment(),
            stderr=file,
            timeout=60,
            check=True,
        )
    assert log.read_text() == "ImportError: libcudart.so\na warning of this one\nits own\n"
    assert [path.read_text() for path in torchruns] == ["", ""]
