"""Names that users and their scripts rely on stay as they are, but for what CHANGELOG.md says."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fusionrun.tables.headline import GAIN, GAIN_KEY, Margin, digits
from tests.contract import golden

# what the answer and the comparisons beside it were called before they had one name each
OLDER_NAMES = (
    *(
        "over the best alternative",
        "over mean prob",
        "over the best expert",
        "its best alternative",
    ),
    *("gain over best", "beats", "loses to", "cheap alternative in", "| gain |", ">gain<"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, str]:
    return golden.helps() | golden.pictures() | golden.outputs(folder)


NAMES = sorted(path.name for path in golden.GOLDEN.glob("*.txt"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_written_down(made: dict[str, str], name: str) -> None:
    """If the change is meant: `python -m tests.contract.golden`, and say it in CHANGELOG.md."""
    assert made[name].splitlines() == (golden.GOLDEN / name).read_text().splitlines()


def test_nothing_is_left_out(made: dict[str, str]) -> None:
    assert sorted(made) == NAMES


@pytest.mark.parametrize(
    "name",
    [
        *("results.md", "results.svg", "evaluation.md", "preview.md", "robustness.md"),
        *("report.html", "report.md", "report.tex", "report.csv"),
    ],
)
def test_the_answer_has_one_name_everywhere(made: dict[str, str], folder: Path, name: str) -> None:
    text = " ".join((folder / "out" / name).read_text().split())
    text = text.replace("beats every alternative", "")  # said after correction: another question
    assert GAIN in text.lower()
    assert [older for older in OLDER_NAMES if older in text] == []


def test_the_chart_has_the_numbers_of_the_evaluation(made: dict[str, str], folder: Path) -> None:
    root = ElementTree.parse(folder / "out/results.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    tree = json.loads((folder / "out/evaluation.json").read_text())
    shown = digits(tree["data"]["test_images"])
    asked = [row for row in tree["rows"] if not row["control"]]
    assert len(asked) == 2
    for row in asked:
        gain = Margin(*(row[GAIN_KEY][key] for key in ("points", "low", "high")))
        name = texts.index(f"{row['model']} + {row['variant']}")
        assert texts[name + 1] == gain.text(shown).replace("\n", " ")


def test_keys_are_those_of_every_item() -> None:
    tree = {"a": [{"b": 1}, {"b": 2, "c": {}}], "d": [1, 2], "e": {"f": None}}
    assert sorted(set(golden.keys(tree))) == ["a[].b", "a[].c", "d", "e.f"]
