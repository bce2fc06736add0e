"""One table drawn four ways: the same words, nothing that a format would read as its own."""

import csv
import io
from operator import itemgetter

import pytest
from rich.console import Console

from fusionrun.tables.csv import csv_text
from fusionrun.tables.headline import Margin
from fusionrun.tables.latex import latex_table
from fusionrun.tables.markdown import escape, markdown_table
from fusionrun.tables.table import FORMATS, Cell, Column, Images, Table
from fusionrun.tables.terminal import folded, terminal_table

ITEMS = [
    {"name": "one", "top1": 71.234, "other": 70.0, "gain": -1.5},
    {"name": "[two]|_x_", "top1": 60.0, "other": 65.5, "gain": None},
]
TABLE = Table(
    "Accuracy [percent]",
    [
        Column("row", "text", lambda item: item["name"]),
        Column("top-1", "percent", lambda item: item["top1"], contest=True, dispensable=2),
        Column("the other one", "percent", lambda item: item["other"], contest=True),
        Column("gain", "points", lambda item: item["gain"], dispensable=1),
    ],
    ITEMS,
    "Percent of [all] images.",
)


def drawn(table: Table, width: int | None = None) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(terminal_table(table, width))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_cells_are_written_and_the_highest_stands_out() -> None:
    assert list(TABLE.lines()) == [
        [Cell("one"), Cell("71.23", strong=True), Cell("70.00"), Cell("-1.50")],
        [Cell("[two]|_x_"), Cell("60.00"), Cell("65.50", strong=True), Cell("n/a")],
    ]


def test_one_value_alone_beats_nobody() -> None:
    table = Table("", TABLE.columns, [{**ITEMS[0], "other": None}])
    assert not any(cell.strong for cell in next(table.lines()))


def test_a_cell_can_bring_its_own_style() -> None:
    cell = Cell("failed", style="bold red")
    table = Table("", [Column("state", "text", lambda item: item)], [cell])
    assert next(table.lines()) == [cell]
    assert "failed" in drawn(table) and "failed" in markdown_table(table)


@pytest.mark.parametrize(
    ("format", "value", "text"),
    [
        ("percent", 12.345, "12.35"),
        ("count", 1234567, "1,234,567"),
        ("plain", 0.5, "0.5"),
        ("whole", 20191123, "20191123"),
        ("p", 0.00099, "< 0.001"),
        ("p", 0.001, "0.001"),
    ],
)
def test_formats(format: str, value: float, text: str) -> None:
    assert FORMATS[format](value) == text


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (Images(), ["71.25", "71.25", "-1.50", "-1.50\n(-2.25 to +0.00)"]),
        (Images(60, 2_000), ["71", "71.2", "-2", "-2\n(-2 to +0)"]),
    ],
)
def test_accuracies_have_the_digits_that_their_images_carry(
    images: Images, expected: list[str]
) -> None:
    margin = Margin(-1.5, -2.25, -0.001)
    values = {"accuracy": 71.25, "validation": 71.25, "points": -1.5, "margin": margin}
    columns = [Column(name, name, itemgetter(name)) for name in values]
    (line,) = Table("", columns, [values], images=images).lines()
    assert [cell.text for cell in line] == expected


def test_the_terminal_shows_brackets_as_they_are() -> None:
    text = drawn(TABLE)
    for word in ("Accuracy [percent]", "[two]|_x_", "Percent of [all] images.", "n/a", "71.23"):
        assert word in text
    assert "the other one" not in text  # a heading of numbers is a word a line


@pytest.mark.parametrize(
    ("width", "kept"), [(200, {"top-1", "gain"}), (30, {"top-1"}), (20, set()), (1, set())]
)
def test_what_it_can_do_without_goes_first(width: int, kept: set[str]) -> None:
    text = drawn(TABLE, width)
    assert {word for word in ("top-1", "gain") if word in text} == kept
    assert "row" in text and "other" in text


def test_a_narrow_terminal_stacks_names_and_repeats_them() -> None:
    """In every part of a table whose numbers don't fit beside each other."""
    columns = [Column(name, "name", itemgetter(i)) for i, name in enumerate(("model", "fusion"))]
    columns.append(Column("control", "text", itemgetter(2)))
    columns += [Column(f"number {i}", "whole", itemgetter(3)) for i in range(6)]
    items = [("densenet", "concatenation", control, 1234567) for control in ("frozen", "detached")]
    wide, narrow = (drawn(Table("", columns, items), width) for width in (120, 50))
    assert wide.count("densenet") == 2 and "densenet  concatenation  frozen" in wide
    parts = narrow.count("number")
    assert parts == 6 and max(map(len, narrow.splitlines())) <= 50
    tables = narrow.count("model")
    assert tables > 1
    for word in ("densenet", "concatenation"):
        assert narrow.count(word) == 2 * tables
    assert narrow.count("frozen") == narrow.count("detached") == tables


LONG = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (LONG, ["timm:vit_tiny_patch16_", "224.augreg_in21k_ft_in1k"]),
        (f"{LONG}\nconcatenation", [*folded(LONG).split("\n"), "concatenation"]),
        ("multiplicativeAddition-detached", ["multiplicativeAddition-detached"]),
        ("x" * 40, ["x" * 40]),  # nowhere to fold
        ("", [""]),
    ],
)
def test_long_names_fold_behind_their_punctuation(name: str, lines: list[str]) -> None:
    assert folded(name).split("\n") == lines
    table = Table("", [Column("model", "name", itemgetter(0))], [(name,)])
    assert markdown_table(table).splitlines()[2] == f"| {escape(name)} |"  # on the terminal alone


def test_markdown_aligns_and_escapes() -> None:
    assert markdown_table(TABLE).splitlines() == [
        "| row | top-1 | the other one | gain |",
        "| --- | --: | --: | --: |",
        "| one | **71.23** | 70.00 | -1.50 |",
        r"| \[two\]\|\_x\_ | 60.00 | **65.50** | n/a |",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("improved_wide_resnet", "improved_wide_resnet"),
        ("p < 0.001", "p < 0.001"),
        ("<b>", r"\<b>"),
        ("two\nlines", "two lines"),
    ],
)
def test_only_what_markdown_would_read_is_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_latex_has_every_cell() -> None:
    text = latex_table(TABLE)
    assert r"\begin{longtable}{lrrr}" in text
    assert r"{one} & {\bfseries 71.23} & {70.00} & {$-$1.50} \\" in text


def test_csv_has_one_header_for_all_lines() -> None:
    text = csv_text([{"a": 1, "b": "x,y"}, {"b": 2, "c": 3}])
    assert list(csv.reader(io.StringIO(text))) == [
        ["a", "b", "c"],
        ["1", "x,y", ""],
        ["", "2", "3"],
    ]
    assert csv_text([], ["a"]) == "a\n"
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        csv_text([{"z": 1}], ["a"])
