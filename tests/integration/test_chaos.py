"""A study that is killed again and again ends as one that nobody disturbed."""

from pathlib import Path

import pytest

from tests.chaos import Chaos, undisturbed
from tests.tiny import csv_numbers, row_weights, write_recipe

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, object]:
    return undisturbed(tmp_path_factory.mktemp("chaos") / "undisturbed")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_kills_change_nothing(
    tmp_path: Path, expected: tuple[object, object], seed: int
) -> None:
    write_recipe(tmp_path)
    chaos = Chaos(tmp_path, seed, kills=3)
    chaos.run(patience=150)
    assert sum(chaos.done.values()) > 0
    assert (row_weights(tmp_path), csv_numbers(tmp_path)) == expected
    assert not list((tmp_path / "out").rglob("*.tmp"))
