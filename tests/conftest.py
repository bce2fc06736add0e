"""Shared by all tests: one torch thread, and the tiny studies that are trained once a session."""

import signal
from pathlib import Path

import pytest
import torch

from tests.tiny import OWN_PARTS, train_tiny


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard() -> None:
    """Also under nohup or behind a shell's `&`: what is ignored there each launch would ignore."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """So that small networks on few cores don't trip over it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of TINY, finished by one process: to read, or to copy with `copy_study`."""
    return train_tiny(tmp_path_factory.mktemp("tiny_study"))


@pytest.fixture(scope="session")
def trained_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a finished study to measure: to read, or to copy with `copy_study`.

    Three rows share resnet's two experts, TransformerBase, simpleAddition and one network on
    everything; a fourth is densenet + multiplicative, whose features TransformerBase can't take.
    """
    fusions = {"resnet": ("TransformerBase", "simpleAddition", "single")}
    fusions |= {"densenet": ("multiplicative",)}
    rows = [f"{{model: {m}, fusion: {f}}}" for m, names in fusions.items() for f in names]
    sizes = ("data.num_classes=6", "data.train_images=240", "data.test_images=60")
    folder = tmp_path_factory.mktemp("trained_study")
    return train_tiny(folder, f"rows=[{', '.join(rows)}]", *sizes) / "out"


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's my_parts.py in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text(OWN_PARTS[0])
    return tmp_path / "my_parts.py"
