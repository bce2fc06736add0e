"""A study that is killed again and again ends as one that nobody disturbed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionrun.components.manifest import read_manifest
from fusionrun.training.checkpoint import ResumeFile
from tests.chaos import Chaos, undisturbed
from tests.tiny import FUSIONS, csv_numbers, environment, row_weights, write_recipe

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, object]:
    return undisturbed(tmp_path_factory.mktemp("chaos") / "undisturbed")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_kills_change_nothing(
    tmp_path: Path, expected: tuple[object, object], seed: int
) -> None:
    """Nor whether experts were trained alone, as undisturbed, or side by side."""
    write_recipe(tmp_path)
    chaos = Chaos(tmp_path, seed, kills=3)
    chaos.words += (f"experts.together={seed}",)
    chaos.run(patience=150)
    assert sum(chaos.done.values()) > 0
    assert (row_weights(tmp_path), csv_numbers(tmp_path)) == expected
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_killed_while_a_slow_disk_takes_a_state_it_resumes_bit_for_bit(
    tmp_path: Path, tiny_study: Path
) -> None:
    """Training is steps ahead then; on disk a whole state stands at every moment."""
    command = [sys.executable, "-m", "tests.faulty", "slow_disk", "train", write_recipe(tmp_path)]
    command += [f"rows=[{{model: resnet, fusion: {FUSIONS['resnet']}}}]", "logs.tensorboard=false"]
    chance, out = random.Random(1), tmp_path / "out"
    for kill in range(2):
        left = set(out.rglob("*.tmp"))  # by the launch before
        launch = subprocess.Popen(command, cwd=tmp_path, env=environment())
        seen: set[Path] = set()
        while len(seen) <= 3 * kill and launch.poll() is None:  # states that are being written
            seen |= set(out.rglob(".*checkpoint.pth.*.tmp")) - left
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.3))
        launch.kill()
        assert launch.wait() == -signal.SIGKILL  # it was at work
        for path in out.rglob("*checkpoint.pth"):
            state, problem = ResumeFile(path).load()
            assert state is not None and problem == ""
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, timeout=60)
    manifest = f"out/resnet_fusions/{FUSIONS['resnet']}/manifest.json"
    assert read_manifest(tmp_path / manifest).weights == row_weights(tiny_study)[manifest]
    csvs = csv_numbers(tmp_path)
    assert csvs and csvs == {name: csv_numbers(tiny_study)[name] for name in csvs}
    assert not list(out.rglob("*.tmp"))
