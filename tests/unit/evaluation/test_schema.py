"""evaluation.json's classes: what a file says, and back word for word."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from fusionrun.common.typed_fields import FieldError, build, plain
from fusionrun.evaluation.row_names import RowName, members_of, mixed_notes
from fusionrun.evaluation.schema import Evaluation, FailedRow, RowResult
from tests.unit.report.test_report import CLASSES, make_evaluation

FAILED = {
    "task": "task-4-resnet-concatenation",
    "model": "resnet",
    "fusion": "concatenation",
    "variant": "concatenation",
    "control": None,
    "seed": 42,
    "alpha": 1.0,
    "epoch": None,
    "problem": "fusion_module_best.pth: no such file\nit was there when the row ended",
}


UNKNOWN = (None, [], "per_type", "fusion training")  # what earlier versions' files don't say


def assert_kept(tree: Any, found: Any) -> None:
    """All that `tree` says is found as it was, and beside it nothing but what it doesn't say."""
    if isinstance(tree, dict):
        assert [
            found[name] for name in found.keys() - tree.keys() if found[name] not in UNKNOWN
        ] == []
        for name, value in tree.items():
            assert_kept(value, found[name])
    elif isinstance(tree, list):
        assert len(tree) == len(found)
        for value, again in zip(tree, found, strict=True):
            assert_kept(value, again)
    else:
        assert tree == found


def test_the_files_words_go_in_and_come_out() -> None:
    tree = make_evaluation(CLASSES)
    tree["rows"].append(FAILED)
    found = build(Evaluation, json.loads(json.dumps(tree)), strict=False)
    assert_kept(tree, plain(found))
    assert [type(entry) for entry in found.entries] == [RowResult] * 4 + [FailedRow]
    assert [row.problem for row in found.failures] == [FAILED["problem"]]


def test_what_is_left_out_has_its_default_and_what_is_not_known_is_left_aside() -> None:
    tree = make_evaluation(CLASSES)
    tree["rows"][0]["later"] = 1
    (first, *_) = build(Evaluation, tree, strict=False).rows
    assert first.control is None
    with pytest.raises(FieldError, match=r"rows\.0\.later: unknown key"):
        build(Evaluation, tree)


def test_a_row_without_a_problem_must_be_whole() -> None:
    tree = make_evaluation(CLASSES)
    tree["rows"].append({**FAILED, "problem": ""})
    with pytest.raises(FieldError, match=r"rows\.4\.epoch: found None"):
        build(Evaluation, tree, strict=False)


def name(fusion: str, control: str | None = None, **changes: Any) -> RowName:
    known = {"task": "t", "model": "resnet", "variant": fusion, "seed": 1, "alpha": 0.5}
    return RowName(**{**known, "fusion": fusion, "control": control, **changes})


@pytest.mark.parametrize(
    ("control", "answer"),
    [
        (name("concatenation-frozen", "frozen"), True),
        (name("concatenation-detached", "detached"), True),
        (name("single"), True),
        (name("single", alpha=1.0), True),  # it has none
        (name("single", seed=2), False),
        (name("single", model="densenet"), False),
        (name("concatenation-frozen", "frozen", seed=2), False),
        (name("concatenation-frozen", "frozen", alpha=1.0), False),
        (name("concatenation-frozen", "frozen", expert_seed=2), False),
        (name("simpleAddition-frozen", "frozen"), False),
        (name("concatenation"), False),
    ],
)
def test_a_control_differs_in_nothing_but_what_it_controls(control: RowName, answer: bool) -> None:
    row = name("concatenation")
    assert control.is_control_of(row) is answer
    assert not control.is_control_of(name("concatenation-frozen", "frozen"))
    assert not control.is_control_of(name("single"))
    alike = replace(control, expert_seed=2)
    assert alike.is_control_of(name("concatenation", expert_seed=2)) is (
        answer or control.expert_seed == 2
    )


def test_experts_are_called_by_their_architecture() -> None:
    mixed = name("concatenation", model="mixed-a", members=("densenet 0", "timm:vit_x.y 1"))
    assert [mixed.expert_name(k) for k in (0, 1)] == ["densenet expert 0", "timm:vit_x.y expert 1"]
    assert mixed.best_expert_name is None
    assert replace(mixed, best_expert=1).best_expert_name == "timm:vit_x.y expert 1"
    assert name("concatenation", best_expert=1).best_expert_name == "resnet expert 1"
    assert members_of([name("single"), mixed]) == {"mixed-a": "densenet 0, timm:vit_x.y 1"}


def test_mixed_rows_are_explained_once_with_the_best_of_each() -> None:
    known = {"model": "mixed-a", "members": ("densenet 0", "resnet 1")}
    rows = [
        name("concatenation", best_expert=1, **known),
        name("simpleAddition", best_expert=0, **known),
        name("multiplicative", best_expert=1, **known),
        name("concatenation-frozen", "frozen", best_expert=0, **known),
        name("TransformerBase", **known),  # not measured
        name("concatenation", best_expert=0),
    ]
    assert mixed_notes(rows) == [
        "mixed-a: densenet 0, resnet 1; best on validation: resnet expert 1 (concatenation, "
        "multiplicative), densenet expert 0 (simpleAddition)"
    ]
    assert mixed_notes(rows[-2:-1]) == ["mixed-a: densenet 0, resnet 1"]
    assert mixed_notes(rows[-1:]) == []


def test_it_needs_no_torch() -> None:
    code = "import sys, fusionrun.evaluation.schema; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
