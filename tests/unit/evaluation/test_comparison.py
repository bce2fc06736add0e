"""From predictions to a row's entry: chosen on validation, measured on the test set."""

import io
import json
import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from fusionrun.common.typed_fields import plain
from fusionrun.evaluation.accuracies import accuracies_by_method
from fusionrun.evaluation.alternatives import FUSED, METHODS, Choice
from fusionrun.evaluation.answers import Answers, best_on_validation
from fusionrun.evaluation.comparison import compare_row
from fusionrun.evaluation.predictions import HeadLogits, Origin, Predictions
from fusionrun.evaluation.schema import (
    Cost,
    DataInfo,
    Evaluation,
    FailedRow,
    MethodResult,
    PathGradients,
    RowResult,
)
from fusionrun.evaluation.statistics import stacking
from fusionrun.evaluation.statistics.metrics import fit_temperature
from fusionrun.evaluation.statistics.seeds import over_seeds
from fusionrun.evaluation.statistics.stacking import fit_stacking
from fusionrun.evaluation.tables import CSV_COLUMNS, long_rows, markdown, show
from fusionrun.study.rows import Member, Row
from fusionrun.training.scores import log_probabilities

N, V, E, C = 400, 150, 3, 7
ORIGIN = Origin("w", ("a", "b", "c"), "d", "s")
SKILL = (1.2, 0.8, 1.5, 1.0)  # of the fused head and the experts


def make_labels(count: int) -> Tensor:
    return torch.randint(0, C, (count,), generator=torch.Generator().manual_seed(count))


def make_logits(count: int, skill: tuple[float, ...], seed: int) -> Tensor:
    """(count, heads, C) float32: noise, and the label's entry raised by each head's skill."""
    noise = torch.randn(
        count, len(skill), C, generator=torch.Generator().manual_seed(seed * 10_000 + count)
    )
    own = torch.eye(C)[make_labels(count)].unsqueeze(1)
    return noise + torch.tensor(skill).view(1, -1, 1) * own


def make_predictions(
    test: tuple[float, ...] = SKILL,
    validation: tuple[float, ...] = SKILL,
    before: tuple[float, ...] = (0.7, 0.9, 1.1),
    val_before: tuple[float, ...] | None = None,
) -> Predictions:
    answers = [
        HeadLogits(make_labels(count), make_logits(count, heads, 1), make_logits(count, old, 2))
        for count, heads, old in ((N, test, before), (V, validation, val_before or before))
    ]
    experts = len(test) - 1
    without = make_logits(N, test[1:], 3).argmax(dim=-1)
    inside = without, torch.ones(experts) / experts, torch.full((experts, 2), 0.25)
    return Predictions(ORIGIN, answers[0], answers[1], *inside)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    right = [
        row.index(max(row)) == label
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
    return 100 * sum(right) / len(right)


COST = Cost(
    parameters=1,
    macs=None,
    train_seconds=None,
    expert_seconds=(),
    latency_ms=None,
    latency_low=None,
    latency_high=None,
    images_per_second=None,
    peak_memory_bytes=None,
)


def compare(predictions: Predictions, seed: int = 1, **names: Any) -> RowResult:
    row = Row(0, "resnet", "concatenation", seed, 1.0, f"concatenation-seed{seed}")
    return compare_row(replace(row, **names), predictions, epoch=3, cost=COST).result


def by_key(row: RowResult) -> dict[str, MethodResult]:
    return {method.key: method for method in row.methods}


def test_the_best_expert_is_chosen_on_validation() -> None:
    """It prefers the tuned expert 0 and the old expert 2, which are worst on the test set."""
    found = make_predictions(
        test=(1.0, 0.3, 2.0, 1.0),
        validation=(1.0, 4.0, 0.5, 1.0),
        before=(2.0, 1.0, 0.3),
        val_before=(0.5, 1.0, 4.0),
    )
    entry = compare(found)
    tuned = [accuracy(found.test.logits[:, 1 + k], found.test.labels) for k in range(E)]
    old = [accuracy(found.test.before[:, k], found.test.labels) for k in range(E)]
    assert by_key(entry)["best_expert"].top1 == pytest.approx(tuned[0]) and tuned[0] == min(tuned)
    assert by_key(entry)["before_best_expert"].top1 == pytest.approx(old[2])
    assert old[2] == min(old)
    assert [expert.top1 for expert in entry.experts] == pytest.approx(tuned)
    assert [expert.before_top1 for expert in entry.experts] == pytest.approx(old)
    validation = [
        accuracy(found.validation.logits[:, 1 + k], found.validation.labels) for k in range(E)
    ]
    assert [expert.validation for expert in entry.experts] == pytest.approx(validation)


def test_the_best_alternative_is_chosen_on_validation() -> None:
    """The old experts shine on validation alone; on the test set every tuned one is better."""
    found = make_predictions(
        test=(1.0, 3.0, 3.0, 3.0),
        validation=(1.0, 0.5, 0.5, 0.5),
        before=(0.1, 0.1, 0.1),
        val_before=(4.0, 0.1, 0.1),
    )
    entry = compare(found)
    contenders = by_key(entry)
    best = entry.best_alternative
    assert best.stage == "before"
    assert best.top1 < min(c.top1 for c in contenders.values() if c.stage == "after")


def flattering(predictions: Predictions, stage: str, head: int) -> Predictions:
    """The same answers on validation; on the test set that head of a stage is always right."""
    test = predictions.test
    answers = getattr(test, stage).clone()
    answers[:, head] = 50 * torch.eye(C)[test.labels]
    return replace(predictions, test=test._replace(**{stage: answers}))


HEADS = [("logits", 1), ("logits", E), *(("before", k) for k in range(E))]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(HEADS))
def test_no_comparator_is_chosen_on_the_test_set(seed: int, flattered: tuple[str, int]) -> None:
    """However the test set is answered or labelled: whom fused is compared with stays."""
    generator = torch.Generator().manual_seed(seed)
    skill = tuple((2 * torch.rand(1 + E, generator=generator)).tolist())
    known = make_predictions(validation=skill)
    shuffled = known.test.labels[torch.randperm(N, generator=generator)]
    changed = (
        replace(known, test=known.test._replace(labels=shuffled)),
        flattering(known, *flattered),
    )
    validation = known.validation
    best = [
        max(range(E), key=lambda k, of=of: accuracy(of[:, k], validation.labels))
        for of in (validation.logits[:, 1:], validation.before)
    ]
    first = compare(known)
    for predictions in (known, *changed):
        row, test = compare(predictions), predictions.test
        assert row.best_alternative_key == first.best_alternative_key
        assert row.weights == first.weights and row.before_weights == first.before_weights
        told = accuracies_by_method(
            test,
            [expert.validation for expert in row.experts],
            [expert.before_validation for expert in row.experts],
            seed=row.seed,
        )
        for key, heads, chosen in (
            ("best_expert", test.logits[:, 1:], best[0]),
            ("before_best_expert", test.before, best[1]),
        ):
            expected = pytest.approx(accuracy(heads[:, chosen], test.labels))
            assert by_key(row)[key].top1 == told[key] == expected
        # training's manifest and evaluate say the same, to the last digit
        for key, of in told["differences"].items():
            assert of | {"p_holm": None} == plain(by_key(row)[key].difference)
        assert by_key(row)["mean_probabilities"].difference == row.gain_over_averaging


def test_weights_and_temperature_follow_validation() -> None:
    """Validation trusts expert 0 alone, although it knows nothing of the test set."""
    found = make_predictions(test=(1.0, 0.0, 3.0, 3.0), validation=(1.0, 6.0, 0.0, 0.0))
    entry = compare(found)
    assert entry.weights[0] > 0.95 and sum(entry.weights) == pytest.approx(1)
    weighted, mean = by_key(entry)["weighted"], by_key(entry)["mean_probabilities"]
    assert weighted.top1 < mean.top1 - 20
    # sure on validation with good reason: sharpened there, it is worse here
    assert weighted.temperature < 1
    assert weighted.calibrated.nll > weighted.nll


def test_a_temperature_undoes_a_scale() -> None:
    """Logits four times as large, on both sets, need four times the temperature."""
    plain = make_predictions()
    scaled = replace(
        plain,
        test=plain.test._replace(logits=4 * plain.test.logits),
        validation=plain.validation._replace(logits=4 * plain.validation.logits),
    )
    one, other = (by_key(compare(p))["fused"] for p in (plain, scaled))
    assert other.temperature == pytest.approx(4 * one.temperature, rel=1e-6)
    for name in ("nll", "ece", "brier"):
        assert getattr(other.calibrated, name) == pytest.approx(
            getattr(one.calibrated, name), rel=1e-6
        )
    assert other.top1 == one.top1 and other.nll > one.nll


def test_of_equally_accurate_alternatives_the_one_with_less_loss() -> None:
    labels = torch.tensor([0, 1, 1])
    right, wrong = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]), torch.zeros(3, 2)

    def method(key: str, logits: Tensor) -> Answers:
        scores = partial(log_probabilities, logits)
        return Answers(replace(FUSED, key=key), partial(log_probabilities, wrong), scores)

    unsure, sure = method("unsure", right / 2), method("sure", right)
    overly = method("overly", torch.cat([9 * right[:2], -9 * right[2:]]))
    assert best_on_validation([unsure, sure, overly], labels) is sure
    assert best_on_validation([overly, unsure], labels) is unsure
    assert best_on_validation([unsure, method("again", right / 2)], labels) is unsure


def test_stacking_is_left_out_where_it_would_take_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """And that is said, once; everything else is measured."""
    whole = make_row(1)
    assert {"stacking", "before_stacking"} <= by_key(whole).keys()
    assert "stacking isn't measured" not in markdown(make_evaluation(whole))
    monkeypatch.setattr(stacking, "MOST_WORK", V * E * C * C - 1)
    rows = make_row(1), make_row(2)
    assert by_key(whole).keys() - by_key(rows[0]).keys() == {"stacking", "before_stacking"}
    assert markdown(make_evaluation(*rows)).count("stacking isn't measured") == 1


def test_stacking_is_judged_on_images_that_it_was_not_fitted_on() -> None:
    """Its temperature and its place among the alternatives would else be flattered."""
    found = make_predictions()
    fitted = fit_stacking(found.validation.of("after"), found.validation.labels)
    answers = Answers.of(
        METHODS["stacking"], found, Choice(0, None, fitted.scores, fitted.held_out)
    )
    assert torch.equal(answers.validation(), fitted.held_out)
    by_heart = log_probabilities(fitted.scores(found.validation.of("after")))
    assert not torch.allclose(answers.validation(), by_heart)
    measured = by_key(compare(found))["stacking"]
    assert measured.temperature == fit_temperature(fitted.held_out, found.validation.labels)
    assert measured.top1 == accuracy(fitted.scores(found.test.of("after")), found.test.labels)


def test_a_difference_has_the_fused_models_sign() -> None:
    """Ten samples: fused alone right on eight of ten contested ones, its rival on two."""
    found = make_predictions(test=(0.0, 0.0), validation=(1.0, 1.0), before=(1.0,))
    labels = found.test.labels
    own, other = torch.eye(C)[labels], torch.eye(C)[(labels + 1) % C]
    fused, expert = own.clone(), own.clone()
    fused[8:10], expert[:8] = other[8:10], other[:8]
    logits = torch.stack([fused, expert], dim=1)
    changed = replace(found, test=found.test._replace(logits=logits))
    difference = by_key(compare(changed))["best_expert"].difference
    assert (difference.only_fused, difference.only_other) == (8, 2)
    assert difference.points == pytest.approx(100 * 6 / N)
    assert difference.low < difference.points < difference.high
    assert difference.p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)  # at most 2 of 10


def test_an_expert_that_carries_everything_raises_the_alarm() -> None:
    found = make_predictions()
    assert compare(found).contributions.alarm == ""
    logits = found.test.logits.clone()
    logits[:, 0] = logits[:, 2]
    copied = replace(found, test=found.test._replace(logits=logits))
    brought = compare(copied).contributions
    assert brought.dominance.carried_by == 1
    assert brought.alarm.startswith("resnet expert 1 carries everything")
    assert f"{brought.dominance.contested} images" in brought.alarm and "100.0 %" in brought.alarm


def test_different_experts_are_named() -> None:
    """In the entry, in its alarm and in the tables."""
    experts = (Member("densenet", 0), Member("resnet", 1), Member("timm:vit_x.y", 2))
    found = make_predictions(validation=(1.0, 0.1, 4.0, 0.1))
    logits = found.test.logits.clone()
    logits[:, 0] = logits[:, 3]
    copied = replace(found, test=found.test._replace(logits=logits))
    row = compare(copied, model="mixed-a", experts=experts)
    assert row.members == ("densenet 0", "resnet 1", "timm:vit_x.y 2")
    assert row.best_expert_name == "resnet expert 1"
    assert row.contributions.alarm.startswith("timm:vit_x.y expert 2 carries everything")
    evaluation = make_evaluation(row, make_row(2))
    note = "mixed-a: densenet 0, resnet 1, timm:vit_x.y 2; best on validation: resnet expert 1"
    assert f"- {note} (concatenation-seed1)" in markdown(evaluation)
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(show(evaluation, console.width))
    text = " ".join(str(console.file.getvalue()).split())  # type: ignore[attr-defined]
    assert text.count(note) == 1
    lines = list(long_rows(evaluation))
    assert {line["members"] for line in lines if line["model"] == "mixed-a"} == {
        "densenet 0, resnet 1, timm:vit_x.y 2"
    }
    assert {line["members"] for line in lines if line["model"] == "resnet"} == {None}
    plain_row = compare(found, experts=tuple(Member("resnet", k) for k in range(3)))
    assert (plain_row.members, plain_row.best_expert_name) == ((), "resnet expert 1")


def test_gradients_that_were_not_measured_are_null() -> None:
    found = make_predictions()
    one_path = replace(found, gradients=torch.empty(0, 2))
    assert compare(one_path).contributions.gradients is None
    unreached = replace(found, gradients=torch.tensor([[0.25, -0.5], [torch.nan, torch.nan]]))
    assert compare(unreached).contributions.gradients == (
        PathGradients(25.0, -0.5),
        PathGradients(None, None),
    )


def test_a_single_expert_leaves_nothing_to_leave_out() -> None:
    entry = compare(make_predictions((1.0, 1.0), (1.0, 1.0), (1.0,)))
    assert entry.contributions.without_expert == () and entry.weights == (1.0,)
    json.dumps(plain(entry), allow_nan=False)


def test_answers_that_are_not_finite_are_refused() -> None:
    found = make_predictions()
    found.test.logits[3, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        compare(found)


# --- over seeds, and what people read ------------------------------------------------------------


def make_row(seed: int, **names: Any) -> RowResult:
    predictions = make_predictions(test=(0.5 + 0.3 * seed, 0.8, 1.5, 1.0))
    return replace(compare(predictions, seed, **names), task=f"task-{seed}-resnet-concatenation")


def make_failure(seed: int, problem: str) -> FailedRow:
    return FailedRow(
        task=f"task-{seed}-resnet-concatenation",
        model="resnet",
        fusion="concatenation",
        variant=f"concatenation-seed{seed}",
        seed=seed,
        alpha=1.0,
        problem=problem,
    )


def make_evaluation(*entries: RowResult | FailedRow) -> Evaluation:
    rows = [entry for entry in entries if isinstance(entry, RowResult)]
    return Evaluation(
        format=1,
        study="s.yaml",
        output_dir="out",
        evaluated="2026-01-02 03:04:05",
        data=DataInfo("synthetic", ("a", "b"), N, V, 32),
        device="cpu",
        threads=1,
        versions={},
        training=None,
        entries=entries,
        over_seeds=over_seeds((row, row.numbers) for row in rows),
    )


def test_rows_that_differ_in_their_seed_are_summarised() -> None:
    rows = [make_row(seed) for seed in (1, 2, 3)]
    others = [make_row(4, alpha=0.5), make_row(6, model="densenet")]
    (group,) = make_evaluation(*others, make_failure(5, "broken"), *rows).over_seeds
    assert (group.model, group.fusion, group.alpha) == ("resnet", "concatenation", 1.0)
    assert group.seeds == 3
    margins = {"gain_over_averaging", "vs_best_expert", "vs_best_alternative"}
    assert set(group.columns) == {*by_key(rows[0]), *margins}
    fused = [row.fused.top1 for row in rows]
    gains = [row.fused.top1 - by_key(row)["mean_probabilities"].top1 for row in rows]
    assert len(set(fused)) == 3
    for key, values in (("fused", fused), ("gain_over_averaging", gains)):
        assert group.columns[key].mean == pytest.approx(sum(values) / 3)
        assert group.columns[key].deviation == pytest.approx(statistics.stdev(values))
    assert group.columns["best_expert"].deviation == pytest.approx(0)


def test_the_tables_say_who_is_ahead_and_what_is_wrong() -> None:
    ahead, behind = make_row(9), make_row(0)
    alarmed = replace(behind.contributions, alarm="expert 1 carries everything")
    behind = replace(behind, contributions=alarmed)
    evaluation = make_evaluation(ahead, behind, make_failure(5, "x/fusion.pth: is damaged"))
    gain = ahead.gain_over_averaging
    assert gain.low > 0 > behind.gain_over_averaging.high
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(show(evaluation, console.width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (markdown(evaluation), " ".join(shown.split())):
        assert "lies above zero in 1 of 2 rows, below in 1, and holds zero in 0" in text
        assert f"Warning: validation has {V} images" in text
        assert "task-0-resnet-concatenation: expert 1 carries everything" in text
        assert "task-5-resnet-concatenation: not evaluated: x/fusion.pth: is damaged" in text
        assert f"{ahead.fused.top1:.1f}" in text  # 400 images
        assert f"{gain.points:+.1f}" in text and "< 0.001" in text
    assert max(map(len, shown.splitlines())) <= 100
    assert "| resnet | concatenation-seed5 | n/a |" in markdown(evaluation)
    assert "± " in markdown(evaluation) and "± " in shown


def test_nothing_measured_makes_a_table_too() -> None:
    text = markdown(make_evaluation(make_failure(1, "broken")))
    assert "not evaluated: broken" in text and "Of 0 rows" not in text


def test_the_long_table_has_a_line_for_each_method() -> None:
    row = make_row(1)
    lines = list(long_rows(make_evaluation(row, make_failure(2, "broken"))))
    assert [line["contender"] for line in lines] == list(by_key(row))
    for line, method in zip(lines, row.methods, strict=True):
        assert tuple(line) == CSV_COLUMNS
        assert (line["task"], line["seed"], line["epoch"]) == (row.task, 1, 3)
        for key in ("stage", "top1", "top5", "nll", "ece", "brier", "temperature"):
            assert line[key] == getattr(method, key)
        assert method.calibrated and line["calibrated_ece"] == method.calibrated.ece
        if method.difference is None:
            assert method.key == "fused" and line["difference"] is line["p_value"] is None
        else:
            assert line["difference"] == method.difference.points
            assert line["low"] == method.difference.low
