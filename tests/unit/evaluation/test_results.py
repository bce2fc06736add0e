"""The final table: numbers where they were measured, means where seeds differ."""

import csv
import io
import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from fusionrun.evaluation.matrix import fusion_matrices
from fusionrun.evaluation.results import Result, words_of
from fusionrun.evaluation.results_tables import results_tables, seeds_table, write_results
from fusionrun.evaluation.row_names import RowName
from fusionrun.evaluation.schema import Difference
from fusionrun.study.paths import Layout
from fusionrun.tables.headline import GAIN, Margin
from fusionrun.tables.table import Images, Table


def result(model: str = "resnet", seed: int = 42, **numbers: float) -> Result:
    top1 = {
        "fused": 80.0,
        "best_expert": 70.0,
        "mean_probabilities": 75.0,
        "mean_logits": 74.0,
        "before_best_expert": 71.0,
        "before_mean_probabilities": 78.5,
        "before_mean_logits": 77.0,
    }
    top1 |= numbers
    points = top1["fused"] - top1["mean_probabilities"]
    return Result(
        **name(model, seed),
        epoch=3,
        val_accuracy=81.0,
        top1=top1,
        differences={
            "mean_probabilities": Difference(points, points - 2, points + 2, 9, 4, 0.25),
            "best_expert": Difference(10.0, 7.5, 12.5, 20, 10, 0.01),
        },
        images=Images(10_000, 1_000),
    )


def name(model: str, seed: int, fusion: str = "concatenation") -> dict[str, Any]:
    alike = {"fusion": fusion, "variant": f"{fusion}-seed{seed}"}
    return {"task": f"task-{seed}", "model": model, **alike, "seed": seed, "alpha": 1.0}


def without(key: str, *, seed: int = 42) -> Result:
    known = result(seed=seed)
    return replace(known, top1={k: v for k, v in known.top1.items() if k != key}, differences={})


def lines(table: Table) -> list[dict[str, str]]:
    headings = [column.heading for column in table.columns]
    return [dict(zip(headings, (c.text for c in line), strict=True)) for line in table.lines()]


def drawn(rows: list[Result], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(results_tables(rows, width))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_gain_is_over_averaging_whatever_else_is_better() -> None:
    assert result().gain == 5.0
    assert result(before_mean_probabilities=85.0).gain == 5.0
    assert result(mean_probabilities=85.0).gain == -5.0
    assert without("fused").gain is None and without("mean_probabilities").gain is None


def test_what_an_older_version_measured_has_no_interval() -> None:
    known = result()
    assert known.over("mean_probabilities") == Margin(5.0, 3.0, 7.0)
    older = replace(known, differences={})
    assert older.over("mean_probabilities") == Margin(5.0)
    assert "`evaluate` adds it" in words_of([known, older])[0]
    assert "`evaluate` adds it" not in words_of([known])[0]


def test_rows_that_differ_in_their_seed_are_summarised() -> None:
    fused = [80.0, 82.0, 90.0]
    rows = [result(seed=seed, fused=value) for seed, value in enumerate(fused)]
    (summary,) = lines(seeds_table([result("densenet"), *rows]))
    assert (summary["model"], summary["seeds"]) == ("resnet", "3")
    deviation = statistics.stdev(fused)
    assert summary["fused"] == f"{sum(fused) / 3:.2f} ± {deviation:.2f}"
    assert summary[GAIN] == f"{sum(fused) / 3 - 75:+.2f} ± {deviation:.2f}"
    assert summary["best expert"] == "70.00 ± 0.00"
    assert summary["seeds of"] == "fusion training"


def test_a_network_without_experts_has_seeds_of_its_training() -> None:
    rows = [replace(result(seed=seed), fusion="single") for seed in (1, 2)]
    (summary,) = lines(seeds_table(rows))
    assert summary["seeds of"] == "training"


def test_no_summary_of_one_seed_or_of_what_was_not_measured() -> None:
    assert not seeds_table([result(), without("fused", seed=7)]).items
    assert not seeds_table([result(), replace(result(seed=7), alpha=0.5)]).items
    (summary,) = lines(seeds_table([result(), without("mean_logits", seed=7)]))
    assert summary["mean logits"] == "n/a"


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_the_tables_fit_and_break_no_word(width: int) -> None:
    """The fused model, the mean of probabilities and the gain never go."""
    rows = [result(seed=1), result(seed=2), result("improved_wide_resnet")]
    text = drawn(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert {"80.00", "75.00", "+5.00", "(+3.00", "improved_wide_resnet"} <= set(text.split())
    assert "n/a" not in text and "Mean ± standard deviation over seeds" in text
    assert "lies above zero in 3 of 3 rows" in " ".join(text.split())


FUSIONS = (
    *("multiplicative", "multiplicativeAddition", "TransformerBase", "concatenation"),
    *("simpleAddition", "multiplicativeShifted"),
)


def test_a_grid_has_a_matrix_that_folds_between_fusions(tmp_path: Path) -> None:
    rows = [
        replace(result(model, i, fused=60.0 + i), fusion=fusion)
        for i, (model, fusion) in enumerate(itertools.product(("densenet", "resnet"), FUSIONS))
    ]
    failed = replace(rows[3], top1={}, differences={})
    rows[3] = failed
    control = replace(rows[0], control="frozen", fusion="multiplicative-frozen")
    text = drawn([*rows, control], 80)
    assert max(map(len, text.splitlines())) <= 80
    matrix = text[text.index("Model x fusion") : text.index("Does fusion itself help")]
    for fusion in FUSIONS:
        assert matrix.split().count(fusion) == 1  # whole
    write_results(Layout(tmp_path), [*rows, control])
    markdown = Layout(tmp_path).results("md").read_text()
    (heading,) = [line for line in markdown.splitlines() if all(f in line for f in FUSIONS)]
    assert heading == f"| model | {' | '.join(FUSIONS)} |"
    (line,) = [
        line
        for line in markdown.splitlines()
        if line.startswith("| densenet |") and "n/a" in line and line.count("|") == 2 + len(FUSIONS)
    ]
    assert line.split(" | ")[1:3] == ["60.00 (-15.00)", "61.00 (-14.00)"]
    assert line.split(" | ")[4] == "n/a"


@pytest.mark.parametrize("pairs", ["af ag", "af bf", "af bg", "af bg ch"])
def test_no_matrix_of_one_line_or_one_column_or_a_diagonal(pairs: str) -> None:
    cells = [(RowName(**name(m, 1, fusion=f)), 80.0, 1.0) for m, f in pairs.split()]
    assert fusion_matrices(cells, Images()) == []


def test_a_matrix_is_of_one_alpha_and_its_cells_means_over_seeds() -> None:
    def cell(model: str, fusion: str, seed: int, alpha: float, fused: float) -> Any:
        return RowName(**{**name(model, seed, fusion), "alpha": alpha}), fused, fused - 70

    cells = [
        cell(model, fusion, seed, alpha, 80.0 + 10 * seed)
        for model, fusion in itertools.product(("a", "b"), ("f", "g"))
        for seed, alpha in ((1, 1.0), (2, 1.0), (1, 0.5))
    ]
    both, half = fusion_matrices(cells, Images(60))
    assert both.title.endswith(", alpha 1") and half.title.endswith(", alpha 0.5")
    assert lines(both)[0] == {"model": "a", "f": "95 ± 7\n(+25)", "g": "95 ± 7\n(+25)"}
    assert lines(half)[1] == {"model": "b", "f": "90\n(+20)", "g": "90\n(+20)"}
    assert "±" in both.note and "±" not in half.note


def test_the_files_hold_every_column_and_csv_every_digit(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    rows = [result(seed=1, fused=200 / 3), result(seed=2), Result(**name("resnext", 3))]
    write_results(layout, rows)
    table = list(csv.DictReader(layout.results("csv").open()))
    assert table[0]["fused"] == str(200 / 3) and table[2]["fused"] == "n/a"
    assert float(table[1]["gain"]) == 5.0 and float(table[1]["gain_low"]) == 3.0
    assert table[2]["gain"] == table[2]["vs_best_expert_high"] == "n/a"
    markdown = layout.results("md").read_text()
    assert markdown.count("| resnet | concatenation |") == 3  # two rows and their summary
    assert "Mean ± sample standard deviation" in markdown


@pytest.mark.parametrize("width", [80, 120])
def test_mixed_rows_say_what_they_are(tmp_path: Path, width: int) -> None:
    """Below the table, in every file, and with the best expert by name."""
    members = ("densenet 0", "resnet 1", "improved_wide_resnet 2", "resnext 3")
    mixed = replace(result("mixed-1a2b3c4d"), members=members, best_expert=2)
    rows = [replace(result(), best_expert=1), mixed]
    layout = Layout(tmp_path)
    write_results(layout, rows)
    listed, best = ", ".join(members), "improved_wide_resnet expert 2"
    note = f"mixed-1a2b3c4d: {listed}; best on validation: {best} (concatenation-seed42)"
    text = drawn(rows, width)
    assert max(map(len, text.splitlines())) <= width and "mixed-1a2b3c4d" in text.split()
    assert " ".join(text.split()).count(note) == 1
    assert layout.results("md").read_text().count(note) == 1
    table = list(csv.DictReader(layout.results("csv").open()))
    assert [line["members"] for line in table] == ["", listed]
    assert [line["best_expert_name"] for line in table] == ["resnet expert 1", best]
    root = ElementTree.parse(layout.results("svg")).getroot()
    chart = " ".join(e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}text"))
    assert f"mixed-1a2b3c4d: {listed}." in chart


@pytest.mark.parametrize("width", [80, 120])
def test_experts_that_the_recipe_did_not_train_are_named(tmp_path: Path, width: int) -> None:
    """Once for all rows that begin with them, and in each line of the file for programs."""
    other = "resnet 0, resnet 1: trained with other settings (seed: 1 there, 2 in this recipe)"
    rows = [replace(result(seed=k), other_experts=(other,)) for k in (1, 2)]
    layout, rows = Layout(tmp_path), [*rows, result(seed=3)]
    write_results(layout, rows)
    note = f"Experts that this recipe didn't train, of 2 of 3 rows: {other}"
    assert " ".join(drawn(rows, width).split()).count(note) == 1
    assert layout.results("md").read_text().count(note) == 1
    table = list(csv.DictReader(layout.results("csv").open()))
    assert [line["other_experts"] for line in table] == [other, other, ""]


def test_rows_of_other_experts_can_be_told_apart(tmp_path: Path) -> None:
    """By a column that is there where they are; their seeds are summarised each for itself."""
    layout = Layout(tmp_path)
    rows = [replace(result(seed=k), expert_seed=of) for of in (None, 0) for k in (1, 2)]
    write_results(layout, rows)
    markdown = layout.results("md").read_text()
    head = "| model | fusion | seed | alpha | experts' seed |"
    assert head in markdown and markdown.count("| the study's |") == 2
    assert markdown.count("| 1 | 1 | 0 |") == markdown.count("| 2 | 1 | 0 |") == 1
    table = list(csv.DictReader(layout.results("csv").open()))
    assert [line["expert_seed"] for line in table] == ["", "", "0", "0"]
    write_results(layout, rows[:2])
    assert "experts' seed" not in layout.results("md").read_text()


@pytest.mark.parametrize(("images", "shown"), [(60, "80"), (1_000, "80.0"), (10_000, "80.00")])
def test_no_more_digits_than_the_images_carry(tmp_path: Path, images: int, shown: str) -> None:
    row = replace(result(), images=Images(images, 250))
    write_results(Layout(tmp_path), [row])
    (line,) = [x for x in Layout(tmp_path).results("md").read_text().splitlines() if "resnet" in x]
    assert f"| {shown} |" in line and "81 |" in line  # 250 images of validation carry none
    assert shown in drawn([row], 140).split()


def test_little_validation_is_warned_of(tmp_path: Path) -> None:
    row = replace(result(), images=Images(60, 40))
    write_results(Layout(tmp_path), [row])
    for text in (drawn([row], 100), Layout(tmp_path).results("md").read_text()):
        assert "Warning: validation has 40 images" in text
    assert "Warning" not in drawn([result()], 100)


@pytest.mark.parametrize("recipe", ["per_type", "shared"])
def test_types_side_by_side_say_by_whose_recipe(tmp_path: Path, recipe: str) -> None:
    """A study of one type, with its controls and a single network, has none to compare."""
    row = replace(result(), fusion_recipe=recipe)
    control = replace(row, fusion="concatenation-frozen", control="frozen")
    rows = [row, control, replace(row, fusion="single")]
    assert "fusion.recipe" not in drawn(rows, 200)
    rows.append(replace(row, fusion="multiplicative"))
    write_results(Layout(tmp_path), rows)
    for text in (drawn(rows, 400), Layout(tmp_path).results("md").read_text()):
        assert text.count(f"(fusion.recipe: {recipe})") == 1


def test_the_chart_says_what_the_table_says(tmp_path: Path) -> None:
    """Well-formed, each row with its number, those without one too; a control is no row of it."""
    layout = Layout(tmp_path)
    older = replace(result("densenet"), differences={})
    rows = [result(), older, Result(**name("a<b>&c", 3)), replace(result(), control="frozen")]
    write_results(layout, rows)
    root = ElementTree.parse(layout.results("svg")).getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("resnet + concatenation-seed42") == 1
    assert "+5.00 (+3.00 to +7.00)" in texts and "+5.00" in texts
    assert texts[texts.index("a<b>&c + concatenation-seed3") + 1] == "n/a"
    assert GAIN in str(texts[0])
    whiskers = [x for x in root.iter() if x.get("class") == "whisker ahead"]
    assert len(whiskers) == 1  # the older one has none
    dots = {x.get("class") for x in root.iter("{http://www.w3.org/2000/svg}circle")}
    assert dots == {"dot ahead", "hollow open"}
