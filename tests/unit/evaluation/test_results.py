"""The final table: numbers where they were measured, means where seeds differ."""

import csv
import io
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fusionrun.evaluation.results import COLUMNS, Result, results_tables, seeds_table, write_results
from fusionrun.study.paths import Layout
from fusionrun.tables.table import Table


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
    return Result(**name(model, seed), epoch=3, val_accuracy=81.0, top1={**top1, **numbers})


def name(model: str, seed: int) -> dict[str, Any]:
    alike = {"fusion": "concatenation", "variant": f"concatenation-seed{seed}"}
    return {"task": f"task-{seed}", "model": model, **alike, "seed": seed, "alpha": 1.0}


def without(key: str, *, seed: int = 42) -> Result:
    known = result(seed=seed)
    return replace(known, top1={k: v for k, v in known.top1.items() if k != key})


def lines(table: Table) -> list[dict[str, str]]:
    headings = [column.heading for column in table.columns]
    return [dict(zip(headings, (c.text for c in line), strict=True)) for line in table.lines()]


def test_the_gain_is_over_the_best_alternative_of_all() -> None:
    assert result().gain == 1.5
    assert result(before_mean_probabilities=85.0).gain == -5.0
    assert without("before_mean_probabilities").gain == 3.0
    assert without("fused").gain is None


def test_rows_that_differ_in_their_seed_are_summarised() -> None:
    fused = [80.0, 82.0, 90.0]
    rows = [result(seed=seed, fused=value) for seed, value in enumerate(fused)]
    (summary,) = lines(seeds_table([result("densenet"), *rows]))
    assert (summary["model"], summary["seeds"]) == ("resnet", "3")
    deviation = statistics.stdev(fused)
    assert summary["fused"] == f"{sum(fused) / 3:.2f} ± {deviation:.2f}"
    assert summary["gain"] == f"{sum(fused) / 3 - 78.5:+.2f} ± {deviation:.2f}"
    assert summary["best expert"] == "70.00 ± 0.00"


def test_no_summary_of_one_seed_or_of_what_was_not_measured() -> None:
    assert not seeds_table([result(), without("fused", seed=7)]).items
    assert not seeds_table([result(), replace(result(seed=7), alpha=0.5)]).items
    (summary,) = lines(seeds_table([result(), without("mean_logits", seed=7)]))
    assert summary["mean logits"] == "n/a"


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_the_tables_fit(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    rows = [result(seed=1), result(seed=2), result("improved_wide_resnet")]
    console.print(results_tables(rows, width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "80.00" in text and "+1.50" in text and "n/a" not in text
    assert "Mean ± standard deviation over seeds" in text


def test_the_files_hold_every_column(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    rows = [result(seed=1), result(seed=2), Result(**name("resnext", 3))]
    write_results(layout, rows)
    table = list(csv.DictReader(layout.results("csv").open()))
    assert list(table[0]) == list(COLUMNS)
    assert table[0]["fused"] == "80.00" and table[2]["fused"] == "n/a"
    markdown = layout.results("md").read_text()
    assert markdown.count("| resnet | concatenation |") == 3  # two rows and their summary
    assert "Mean ± sample standard deviation" in markdown
    assert layout.results("svg").read_text().startswith("<svg")
