"""Every verb: stopped, unread, on a full disk, in an ASCII locale, in a launch's leftovers."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionrun import cli
from fusionrun.cli import main
from tests.integration.test_read_only_study import assemble_words, contents
from tests.tiny import copy_study, write_recipe

pytestmark = pytest.mark.slow

ROW = "resnet_fusions/simpleAddition"
# of each verb: its words, and what it is doing when it is stopped
VERBS: dict[str, tuple[list[str], str]] = {
    "prepare": (["prepare", "tiny.yaml"], "fusionrun.study.context.load_images"),
    "doctor": (
        ["doctor", "tiny.yaml", "--seconds=0.1"],
        "fusionrun.doctor.study_checks.open_context",
    ),
    "preview": (
        ["preview", "study", "--seeds=1", "--epochs=1"],
        "fusionrun.evaluation.preview.preview_fusion",
    ),
    "evaluate": (["evaluate", "study"], "fusionrun.evaluation.evaluate.compare_row"),
    "robustness": (
        ["robustness", "study", "--images=6"],
        "fusionrun.robustness.row_under_test.RowUnderTest.measure",
    ),
    "report": (["report", "study"], "fusionrun.report.write.compose"),
    "assemble": (["assemble"], "fusionrun.components.save_assembled.write_manifest"),
    "export": (["export", f"study/{ROW}"], "fusionrun.components.export.compare"),
    "watch": (["watch", "study"], "fusionrun.monitor.watch.summary_lines"),
}


@pytest.fixture(scope="module")
def measured(trained_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and a study that was evaluated."""
    folder = tmp_path_factory.mktemp("every_verb")
    study = copy_study(trained_study, folder / "study", rows=["resnet/simpleAddition"])
    assert main(["evaluate", str(study)]) == 0
    write_recipe(folder)
    return folder


def words_of(verb: str, folder: Path, output: str) -> list[str]:
    """The verb's command line, which writes nothing but `output` below the folder."""
    words = list(VERBS[verb][0])
    if verb == "assemble":
        words = assemble_words(folder / "study", folder)
    if verb in ("prepare", "doctor"):
        return [*words, f"output_dir={output}"]
    return words if verb == "watch" else [*words, "--output", output]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("verb", VERBS)
def test_a_stopped_verb_says_so_in_a_line(
    measured: Path,
    verb: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(measured)

    def stop(*arguments: object, **more: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError("nobody heard the signal")

    before = contents(measured)
    words = words_of(verb, measured, "stopped")
    monkeypatch.setattr(VERBS[verb][1], stop)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert main(words) == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"fusionrun: stopped ({number.name})"
    assert "Traceback" not in said
    left = {name for name in contents(measured).keys() - before.keys() if "assembled" not in name}
    assert not [name for name in left if ".tmp" in name or name.endswith((".pt2", "manifest.json"))]


def into_closed_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def into_nothing() -> None:
    os.close(1)
    os.close(2)


def into_full_disk() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)


def into_ascii() -> None:
    os.environ["PYTHONIOENCODING"] = "ascii"


OUTPUTS = [into_closed_pipe, into_nothing, into_full_disk, into_ascii]


@pytest.mark.parametrize("redirect", OUTPUTS)
@pytest.mark.parametrize("verb", [*VERBS, "help", "wrong"])
def test_who_reads_the_output_changes_nothing(
    measured: Path, tmp_path: Path, verb: str, redirect: Callable[[], None]
) -> None:
    """As a process of its own, but for the seconds that torch takes to import."""
    expected, words = 0, []
    if verb == "help":
        words = ["evaluate", "--help"]
    elif verb == "wrong":
        expected, words = 2, ["evaluate", "nowhere"]
    else:
        words = words_of(verb, measured, str(tmp_path / "written"))
    error = tmp_path / "error.txt"
    child = os.fork()
    if child == 0:
        try:
            start_anew(words, measured, error, redirect)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == expected, error.read_text()
    assert "Traceback" not in error.read_text() and "Errno" not in error.read_text()


def start_anew(words: list[str], cwd: Path, error: Path, redirect: Callable[[], None]) -> None:
    """What Python does before it runs the console script, whose standard error is a file."""
    import io
    import sys

    import torch

    torch.set_num_threads(1)
    os.chdir(cwd)
    os.dup2(os.open(error, os.O_WRONLY | os.O_CREAT), 2)
    redirect()
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")

    def stream(number: int) -> io.TextIOWrapper | None:
        try:
            os.fstat(number)
        except OSError:
            return None
        file = io.FileIO(number, "w", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(file), encoding=encoding, line_buffering=True)

    sys.argv = ["fusionrun", *words]
    sys.stdout, sys.stderr = stream(1), stream(2)  # type: ignore[assignment]
    cli.script()


@pytest.mark.parametrize("left", [{"RANK": "3"}, {"RANK": "x"}, {"RANK": "1", "WORLD_SIZE": "2"}])
def test_a_shell_inside_a_launch_is_no_rank_of_it(
    measured: Path, tmp_path: Path, left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun --pty bash and a debugger under torchrun hand their RANK on."""
    exit_file = tmp_path / "status"
    for name, value in {**left, "FUSIONRUN_EXIT_FILE": str(exit_file)}.items():
        monkeypatch.setenv(name, value)
    page = tmp_path / "page.html"
    assert main(["report", str(measured / "study"), "--output", str(page)]) == 0
    assert page.exists() and not exit_file.exists()
