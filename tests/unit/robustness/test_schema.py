"""robustness.json keeps its words on disk: what was written before is read, and written again."""

import json
from pathlib import Path
from typing import Any

import pytest

from fusionrun.common.typed_fields import FieldError, plain, read_json
from fusionrun.evaluation.schema import FailedRow
from fusionrun.robustness.schema import Robustness, RobustnessRow

NAME = {
    "model": "resnet",
    "fusion": "concatenation",
    "variant": "concatenation",
    "control": None,
    "seed": 42,
    "alpha": 1.0,
}
SUITE = {
    "corruptions": [{"name": "fog", "top1": [50.0, 40.0, 30.0, 20.0, 10.0], "mean": 30.0}],
    "mean": None,
    "kept": None,
}
OLD = {  # as the first edition wrote it
    "format": 1,
    "study": "out/recipe.yaml",
    "output_dir": "out",
    "evaluated": "2026-11-26 03:21:03",
    "data": {
        "name": "synthetic",
        "classes": ["0", "1"],
        "test_images": 32,
        "val_images": 8,
        "image_size": 16,
    },
    "device": "cpu",
    "threads": 1,
    "versions": {"fusionrun": "0.1.0", "torch": "2.14.1"},
    "images": 16,
    "seed": 2019,
    "corrupted": None,
    "foreign": [{"name": "clouds", "about": "smooth random clouds", "images": 16}],
    "notes": ["16 of 32 test images, chosen evenly over the classes"],
    "rows": [
        {"task": "task-0", **NAME, "epoch": None, "problem": "no such manifest"},
        {
            "task": "task-1",
            **NAME,
            "epoch": 3,
            "problem": "",
            "contenders": [
                {
                    "key": "fused",
                    "label": "fused",
                    "clean": 60.0,
                    "noise": [{"sigma": 0.05, "top1": 55.0}],
                    "made": SUITE,
                    "published": None,
                }
            ],
            "detection": [
                {
                    "set": "clouds",
                    "contender": "fused",
                    "score": "energy",
                    "auroc": 80.0,
                    "aupr_in": 70.0,
                    "aupr_out": 75.0,
                    "fpr_at_95_tpr": None,
                }
            ],
        },
    ],
}


def read(folder: Path, tree: dict[str, Any]) -> Robustness:
    path = folder / "robustness.json"
    path.write_text(json.dumps(tree))
    return read_json(path, Robustness)


def test_what_was_written_before_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, OLD)
    failed, tested = found.entries
    assert isinstance(failed, FailedRow) and isinstance(tested, RobustnessRow)
    assert (failed.task, failed.problem) == ("task-0", "no such manifest")
    assert found.failures == (failed,) and found.rows == (tested,)
    assert [of.name for of in found.ood_sets] == ["clouds"]
    fused = tested.method("fused")
    assert fused is not None and fused.suite("published") is None
    assert fused.made is not None and fused.suite("made") is fused.made
    assert fused.made.corruptions[0].top1 == (50, 40, 30, 20, 10)
    assert [(of.method, of.auroc) for of in tested.ood] == [("fused", 80)]
    assert tested.method("single") is None
    assert (tested.label("fused"), tested.label("single")) == ("fused", "single")


def test_it_is_written_in_the_same_words(tmp_path: Path) -> None:
    written = json.loads(json.dumps(plain(read(tmp_path, OLD))))
    assert written["data"].pop("notes") == []  # what was written before has none
    for row in written["rows"]:
        assert row.pop("members") == [] and row.pop("best_expert") is None  # nor these
        assert row.pop("expert_seed") is None
    assert written.pop("fusion_recipe") == "per_type"
    assert written == OLD


def test_a_wrong_field_is_named_by_its_word_on_disk(tmp_path: Path) -> None:
    rows: Any = OLD["rows"]
    wrong = {**rows[1], "contenders": [{"key": "fused"}]}
    with pytest.raises(FieldError, match=r"rows\.1\.contenders\.0\.label: found nothing"):
        read(tmp_path, {**OLD, "rows": [rows[0], wrong]})
