"""Corrected p-values, and what they let one say."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionrun.evaluation.many_comparisons import corrected, corrected_types, holm
from fusionrun.evaluation.over_seeds import Spread, TypeComparison
from fusionrun.evaluation.schema import (
    Difference,
    FailedRow,
    MethodResult,
    RowResult,
)
from tests.unit.evaluation.test_comparison import make_evaluation, make_failure, make_row


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # as R's p.adjust has it
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_by_hand(p_values: list[float], expected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_does(p: list[float], level: float) -> None:
    """Holm's own words: from the smallest, reject while p <= level / hypotheses left."""
    rejected = 0
    for step, each in enumerate(sorted(p)):
        if each * (len(p) - step) > level:
            break
        rejected += 1
    found = holm(p)
    assert sum(each <= level for each in found) == rejected
    assert all(before <= after <= 1 for before, after in zip(p, found, strict=True))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_only_p_values_are_corrected(wrong: float) -> None:
    with pytest.raises(ValueError, match="expected p-values between 0 and 1, found"):
        holm([0.5, wrong])


def with_p(row: RowResult, p: float, points: float = 5.0, **others: float) -> RowResult:
    """The same, with `p` against every method, but for the `others`."""

    def changed(method: MethodResult) -> MethodResult:
        if method.difference is None:
            return method
        difference = replace(
            method.difference, points=points, p_value=others.get(method.key, p), p_holm=None
        )
        return replace(method, difference=difference)

    return replace(row, methods=tuple(map(changed, row.methods)))


def differences(entry: RowResult | FailedRow) -> dict[str, Difference]:
    assert isinstance(entry, RowResult)
    return {m.key: m.difference for m in entry.methods if m.difference}


def test_the_answer_is_corrected_over_rows_and_the_rest_over_everything() -> None:
    """Controls' own rows and failures are no questions."""
    asked = [with_p(make_row(seed), p) for seed, p in ((1, 0.001), (2, 0.02))]
    control = replace(with_p(make_row(3), 0.001), control="frozen", task="control")
    failure = make_failure(4, "broken")
    first, second, unasked, broken = corrected([*asked, control, failure])
    assert isinstance(first, RowResult) and isinstance(second, RowResult)
    assert (first.gain_p_holm, second.gain_p_holm) == (0.002, 0.02)
    compared = len(differences(first))
    for entry, expected in ((first, 0.001 * 2 * compared), (second, 0.02 * compared)):
        found = [difference.p_holm for difference in differences(entry).values()]
        assert found == pytest.approx([expected] * compared)
    assert (unasked, broken) == (control, failure)


def test_a_row_that_is_even_with_one_alternative_doesnt_beat_them_all() -> None:
    best = with_p(make_row(1), 1e-6)
    even = with_p(make_row(2), 1e-6, weighted=0.5)
    behind = with_p(make_row(3), 1e-6, points=-5.0)

    def said(*rows: RowResult) -> str:
        return make_evaluation(*corrected(rows)).verdict

    family = f"all {3 * len(differences(best))} comparisons"
    assert (
        "1 row of 3 beats every alternative and control compared with, after Holm's correction "
        f"over {family}: resnet + concatenation-seed1."
    ) in said(best, even, behind)
    assert "over 3 rows (p below 0.05) it is ahead in 2 and behind in 1." in said(
        best, even, behind
    )
    assert "No row beats every alternative and control" in said(even, behind)
    assert "over 1 row" not in said(best) and "1 row of 1 beats every" in said(best)


def test_a_control_that_is_better_is_an_alternative_too() -> None:
    """Whoever is beaten by one network beats not everything."""
    row = with_p(make_row(1), 1e-6)
    ours = replace(row.methods[1], key="single", label="control: one network", stage="control")
    difference = ours.difference
    assert difference is not None
    single = replace(ours, difference=replace(difference, points=-1.0, p_value=0.4))
    beaten = replace(row, methods=(*row.methods, single))
    assert "1 row of 1 beats every" in make_evaluation(*corrected([row])).verdict
    assert "No row beats every" in make_evaluation(*corrected([beaten])).verdict


def test_without_correction_nothing_is_said_of_it() -> None:
    """As in a file of an older version."""
    assert "Holm" not in make_evaluation(with_p(make_row(1), 1e-9)).verdict


def test_types_are_corrected_over_those_that_were_compared() -> None:
    one = TypeComparison(
        *("resnet", "a", 1.0, 3, "experts", 50.0),
        fused=Spread(50.0, 1.0),
        gain=Spread(1.0, 1.0),
        best_other="b",
        difference=None,
        p_value=0.01,
    )
    found = corrected_types([one, replace(one, p_value=None), replace(one, p_value=0.5)])
    assert [each.p_holm for each in found] == [0.02, None, 0.5]
