"""The table of mistakes fits today's code; `python -m tests.mutants` makes them."""

import ast
from pathlib import Path

import pytest

from tests.mutants.__main__ import fate_of, main
from tests.mutants.table import MUTANTS, Mutant
from tests.tiny import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_is_python(mutant: Mutant) -> None:
    healthy = (ROOT / mutant.path).read_text()
    changed = mutant.applied(healthy)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(healthy))


def test_the_tests_that_must_see_them_exist() -> None:
    for mutant in MUTANTS:
        assert mutant.tests
        for path, _, test in (each.partition("::") for each in mutant.tests):
            assert (ROOT / path).is_file(), f"{mutant.name}: {path}"
            assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{mutant.name}: {test}"


def test_names_are_of_one_mutant_each() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


TESTS = """
from fusionrun.sums import add

def test_it_adds():
    assert add(2, 2) == 4
"""


@pytest.mark.parametrize(
    ("new", "killed_by"),
    [
        ("a - b", "tests/test_sums.py::test_it_adds"),
        ("a * b", ""),  # survives
        ("a +* b", ""),  # can't be imported, which proves nothing
    ],
)
def test_only_a_test_that_fails_kills(tmp_path: Path, new: str, killed_by: str) -> None:
    for name, text in (("fusionrun/sums.py", SUMS), ("tests/test_sums.py", TESTS)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "fusionrun/__init__.py").touch()  # or an installed package would be the one
    mutant = Mutant("sums", "sums.py", "a + b", new, ("tests/test_sums.py",), "sums are wrong")
    assert fate_of(mutant, tmp_path).killed_by == killed_by
    assert (tmp_path / "fusionrun/sums.py").read_text() == SUMS


SUMS = "def add(a, b):\n    return a + b\n"


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["one-sidde"])
    assert ended.value.code == 2
    assert "one-sided" in capsys.readouterr().err
