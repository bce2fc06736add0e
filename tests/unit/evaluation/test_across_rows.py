"""Means over seeds with two kinds of luck, and fusion types against each other."""

import itertools
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusionrun.evaluation.across_rows import across_rows
from fusionrun.evaluation.answers import Right
from fusionrun.evaluation.comparison import Compared
from fusionrun.evaluation.many_comparisons import holm
from fusionrun.evaluation.over_seeds import OverSeeds, TypeComparison
from fusionrun.evaluation.statistics.significance import mcnemar
from fusionrun.evaluation.tables import markdown
from tests.unit.evaluation.test_comparison import N, make_evaluation, make_failure, make_row

MARGINS = ("gain_over_averaging", "vs_best_expert", "vs_best_alternative")


def answers(skill: float, seed: int) -> Tensor:
    """(N,) bool, right as often as that."""
    return torch.rand(N, generator=torch.Generator().manual_seed(seed)) < skill


def compared(fusion: str, seed: int, skill: float = 0.6, **names: Any) -> Compared:
    result = make_row(1)
    experts = names.get("expert_seed") or 0
    variant = f"{fusion}-seed{seed}-experts{experts}-{names.get('control')}"
    named = replace(result, fusion=fusion, seed=seed, variant=variant, task=variant)
    draw = 1000 * seed + 17 * experts + len(fusion)
    others = {key: answers(0.5, draw + 1 + i) for i, key in enumerate(MARGINS)}
    return Compared(
        replace(named, **names), Right(answers(skill, draw), others, validation=100 * skill)
    )


def groups(*rows: Compared) -> list[OverSeeds]:
    return list(across_rows(rows)["over_seeds"])


def types(*rows: Compared) -> dict[str, TypeComparison]:
    return {each.fusion: each for each in across_rows(rows)["fusion_types"]}


# --- means over seeds ----------------------------------------------------------------------------


def test_the_mean_over_seeds_has_an_interval_of_images_beside_the_deviation() -> None:
    """By hand: per image the mean over seeds, whose samples are then drawn again."""
    rows = [compared("a", seed) for seed in (1, 2, 3)]
    (group,) = groups(*rows, compared("b", 1))
    for key in MARGINS:
        points = [100 * (r.right.fused.double() - r.right.others[key].double()) for r in rows]
        each = np.stack([of.numpy() for of in points])
        found = group.columns[key]
        assert found.mean == pytest.approx(each.mean())
        assert found.deviation == pytest.approx(statistics.stdev(each.mean(axis=1)))
        error = float(each.mean(axis=0).std() / N**0.5)
        assert found.low == pytest.approx(each.mean() - 1.96 * error, abs=0.15 * error)
        assert found.high == pytest.approx(each.mean() + 1.96 * error, abs=0.15 * error)
    assert group.columns["fused"].low is None  # of differences alone


def test_seeds_of_the_same_answers_narrow_no_interval() -> None:
    """Three trainings that came to the same are no three test sets."""
    one = compared("a", 1)
    alike = [Compared(replace(one.result, seed=s, task=f"{s}"), one.right) for s in (1, 2, 3, 4, 5)]
    (group,) = groups(*alike)
    single = types(one, compared("b", 1))["a"].gain
    gain = group.columns["gain_over_averaging"]
    assert gain.deviation == pytest.approx(0, abs=1e-9)
    assert (gain.low, gain.high) == pytest.approx((single.low, single.high), abs=1e-9)


@pytest.mark.parametrize(
    ("seeds", "expert_seeds", "expected"),
    [
        ((1, 2), (None,), [("fusion training", 2)]),
        ((1,), (None, 43), [("experts", 2)]),
        (
            (1, 2),
            (None, 43),
            [("fusion training", 2), ("fusion training", 2), ("fusion training and experts", 4)],
        ),
        ((1,), (None,), []),
    ],
)
def test_it_is_said_whose_seeds_vary(
    seeds: tuple[int, ...], expert_seeds: tuple[int | None, ...], expected: list[tuple[str, int]]
) -> None:
    """Rows that share their experts together, then all: each kind of luck under its own name."""
    rows = [compared("a", s, expert_seed=e) for e, s in itertools.product(expert_seeds, seeds)]
    found = groups(*rows)
    assert [(group.varied, group.seeds) for group in found] == expected
    shared = [group.expert_seed for group in found if group.varied == "fusion training"]
    assert shared == list(expert_seeds)[: len(shared)]
    if found:
        text = markdown(replace(make_evaluation(), over_seeds=tuple(found)))
        assert expected[-1][0] in text and "±: sample standard deviation over seeds" in text


# --- fusion types --------------------------------------------------------------------------------


def test_each_type_stands_against_the_best_other_one_on_validation() -> None:
    rows = [
        compared(f, s, skill)
        for f, skill in (("a", 0.7), ("bb", 0.6), ("ccc", 0.5))
        for s in (1, 2)
    ]
    found = types(
        *rows,
        compared("a", 1, 0.9, control="frozen"),
        compared("x", 1, model="densenet"),
        compared("y", 1, 0.99, alpha=0.5),
    )
    assert {name: each.best_other for name, each in found.items()} == {
        "a": "bb",
        "bb": "a",
        "ccc": "a",
    }
    a, b = ([r.right.fused for r in rows if r.result.fusion == name] for name in ("a", "bb"))
    points = [100 * float(x.double().mean() - y.double().mean()) for x, y in zip(a, b, strict=True)]
    difference = found["a"].difference
    assert difference is not None and difference.low is not None and difference.high is not None
    assert difference.mean == pytest.approx(statistics.fmean(points))
    assert difference.deviation == pytest.approx(statistics.stdev(points))
    assert difference.low < difference.mean < difference.high
    assert found["a"].seeds == 2 and found["a"].varied == "fusion training"
    assert found["a"].p_value == pytest.approx(found["bb"].p_value)
    p_values = [each.p_value for each in found.values() if each.p_value is not None]
    assert [each.p_holm for each in found.values()] == pytest.approx(holm(p_values))


def test_of_one_seed_it_is_mcnemars_test() -> None:
    one, other = compared("a", 1), compared("bb", 1)
    found = types(one, other)
    expected = mcnemar(one.right.fused, other.right.fused).p_value
    assert found["a"].p_value == pytest.approx(expected)
    assert found["a"].p_holm == pytest.approx(min(1.0, 2 * expected))
    assert found["a"].difference is not None and found["a"].difference.deviation is None


def test_only_seeds_that_both_have_are_paired() -> None:
    """A row that failed leaves its seed out; without any in common there is no difference."""
    rows = [compared("a", 1), compared("a", 2), compared("bb", 2), compared("bb", 3)]
    found = across_rows([*rows, make_failure(3, "broken")])
    (a, _) = found["fusion_types"]
    fused = [row.right.fused.double().mean() for row in rows]
    assert a.difference.mean == pytest.approx(100 * float(fused[1] - fused[2]))
    assert a.difference.deviation is None and a.seeds == 2
    apart = types(compared("a", 1), compared("bb", 2))["a"]
    assert apart.difference is apart.p_value is apart.p_holm is None
    experts = types(compared("a", 1, expert_seed=5), compared("bb", 1))["a"]
    assert experts.difference is None
    text = markdown(replace(make_evaluation(), fusion_types=(apart,)))
    assert "| resnet | a | 1 |" in text and "## Fusion types against each other" in text


def test_one_type_alone_makes_no_table() -> None:
    assert types(compared("a", 1), compared("a", 2)) == {}
    assert "Fusion types" not in markdown(make_evaluation(make_row(1)))
