"""The figures in the documents: what makes them measures truly, and the demo's are of this code."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fusionrun.common.typed_fields import build, plain
from fusionrun.evaluation.over_seeds import Spread, TypeComparison
from fusionrun.evaluation.preview_results import FusionPreview, ModelPreview
from tests import figures, generated_docs, measured
from tests.tiny import TINY

ONE_ROW = TINY.replace("experts: {count: 2, epochs: 2", "experts: {count: 2, epochs: 1").replace(
    "fusion: {epochs: 3", "fusion: {epochs: 1"
)
RECORD = measured.Record(
    recipe="configs/some.yaml",
    processor="CPU",
    cores=2,
    torch="2.14.1",
    seconds=127.4,
    rows=(
        measured.Accuracies("resnet", "concatenation", 50.0, 45.0, 51.0, 50.5, 48.0),
        measured.Accuracies("densenet", "multiplicative", 40.0, 45.0, 46.0, 46.5, 44.0, -9.0, -3.0),
    ),
    test_images=10_000,
)


def test_a_recipe_is_measured_as_a_user_runs_it(tmp_path: Path) -> None:
    recipe = tmp_path / "one.yaml"
    recipe.write_text(ONE_ROW)
    words = ["rows=[{model: resnet, fusion: concatenation}]", "controls=[frozen]"]
    folder = tmp_path / "work"
    folder.mkdir()
    record, snapshot = figures.measure(recipe, words, folder)
    with (folder / "out/results.csv").open(newline="") as file:
        row, control = csv.DictReader(file)
    assert control["fusion_type"] == "concatenation-frozen"  # beside the point here
    (found,) = record.rows
    assert (found.model, found.fusion_type) == ("resnet", "concatenation")
    assert (found.fused, found.gain) == (float(row["fused"]), float(row["gain"]))
    assert record.recipe == "configs/one.yaml" and record.seconds > 1
    assert snapshot is not None and "concatenation" in figures.picture(snapshot)


def test_differences_are_told_beyond_the_tolerances() -> None:
    first, second = RECORD.rows
    near = first.fused - figures.ROW_TOLERANCE / 2
    far = second.fused + max(figures.ROW_TOLERANCE, 2 * figures.MEAN_TOLERANCE) + 1
    assert figures.differences(RECORD, RECORD) == []
    as_near = replace(RECORD, rows=(replace(first, fused=near), second))
    assert figures.differences(RECORD, as_near) == []
    as_far = replace(RECORD, rows=(first, replace(second, fused=far)))
    row, mean = figures.differences(RECORD, as_far)
    assert row.startswith("densenet multiplicative, fused: recorded 40.00, found 57.00")
    assert mean.startswith("mean, fused: recorded 45.00, found 53.50")
    assert len(figures.differences(RECORD, as_near, exact=True)) == 2
    (rows,) = figures.differences(RECORD, replace(RECORD, rows=(first,)))
    assert rows.startswith("rows: recorded ")


def test_a_recipes_header_is_what_was_recorded() -> None:
    text = "# Trains.\n#\n# Time:   old\n# Result: old\n#\n# old\noutput_dir: out\n# Time: kept\n"
    found = generated_docs.with_figures(text, RECORD)
    assert found.startswith("# Trains.\n#\n# Time:   2 min 7 s on 2 cores of")
    assert found.endswith("\noutput_dir: out\n# Time: kept\n")
    row = ["#", "resnet", "concatenation", "50.00", "51.00", "-1.00", "45.00"]
    assert row in [line.split() for line in found.splitlines()]
    assert "# The gain over averaging is positive in 0 of 2 rows" in found
    assert "old" not in found


def test_what_was_measured_of_fusion_types_becomes_tables() -> None:
    ahead = Spread(1.25, 0.5, 0.25, 2.25)
    types = [
        TypeComparison(
            *("resnet", fusion, 1.0, 3, "fusion training"),
            validation=50.0,
            fused=Spread(50.0, 1.0),
            gain=ahead,
            best_other=other,
            difference=None if fusion == "gated" else ahead,
            p_value=0.01,
            p_holm=0.02,
        )
        for fusion, other in (("gated", "concatenation"), ("concatenation", "gated"))
    ]
    beside = tuple(
        measured.Control("resnet", fusion, 42, control, 50.0, 60.0, -12.0, -8.0)
        for fusion, controls in (("gated", measured.CONTROLS), ("concatenation", ["single"]))
        for control in controls
    )
    seen = ModelPreview(
        "resnet", "", 100, 48.0, 45.0, (FusionPreview("gated", mean=47.0, deviation=0.3),)
    )
    record = measured.FusionTypes("CPU", 2, "2.14.1", 4000, 600, tuple(types), beside, (seen,))
    assert read_again(record) == record
    assert "| gated | 50.0 ± 1.0; +1.2 ± 0.5 (+0.2 to +2.2) |" in measured.fusion_types(record)
    assert "| gated | n/a |" in measured.against_best(record)
    told = "| concatenation | gated: +1.2 ± 0.5 (+0.2 to +2.2), p 0.020 |"
    assert told in measured.against_best(record)
    *_, line = measured.controls(record).splitlines()
    cells = " | ".join(["60.00 (-12.0 to -8.0)"] * len(measured.CONTROLS))
    assert line == f"| resnet | gated | 42 | 50.00 | {cells} |"
    *_, mean, gated = measured.frozen_features(record).splitlines()
    assert (mean, gated) == ("| mean of probabilities | 48.0 |", "| gated | 47.0 ± 0.3 |")


def read_again(record: measured.FusionTypes) -> measured.FusionTypes:
    return build(measured.FusionTypes, json.loads(json.dumps(plain(record))))


@pytest.mark.figures
def test_the_demos_figures_are_this_codes() -> None:
    assert figures.check(["demo"], None) == 0
