"""Names that users and their scripts rely on stay as they are, but for what CHANGELOG.md says."""

import pytest

from tests.contract import golden


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return golden.helps() | golden.outputs(tmp_path_factory.mktemp("golden"))


NAMES = sorted(path.name for path in golden.GOLDEN.glob("*.txt"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_written_down(made: dict[str, str], name: str) -> None:
    """If the change is meant: `python -m tests.contract.golden`, and say it in CHANGELOG.md."""
    assert made[name].splitlines() == (golden.GOLDEN / name).read_text().splitlines()


def test_nothing_is_left_out(made: dict[str, str]) -> None:
    assert sorted(made) == NAMES


def test_keys_are_those_of_every_item() -> None:
    tree = {"a": [{"b": 1}, {"b": 2, "c": {}}], "d": [1, 2], "e": {"f": None}}
    assert sorted(set(golden.keys(tree))) == ["a[].b", "a[].c", "d", "e.f"]
