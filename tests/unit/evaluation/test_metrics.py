"""Metrics and what is fitted on validation, against scikit-learn, torchmetrics and scipy."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import sklearn.metrics
import torch
import torchmetrics.functional.classification as torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionrun.evaluation.schema import Bin
from fusionrun.evaluation.statistics.metrics import (
    BINS,
    TEMPERATURES,
    Metrics,
    apply_temperature,
    correct,
    fit_mixture_weights,
    fit_temperature,
    losses,
    measure,
    per_class_accuracy,
    reliability,
)
from fusionrun.training.scores import (
    log_probabilities,
    mean_logits,
    mix_probabilities,
)

N, E, C = 500, 3, 8


def make_experts(seed: int = 0, samples: int = N, classes: int = C) -> tuple[Tensor, Tensor]:
    """Logits (N, E, C) of unlike skill and scale, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    noise = torch.randn(samples, E, classes, generator=generator)
    skill = torch.tensor([1.6, 0.8, 1.2]).view(1, E, 1)
    scale = torch.tensor([1.0, 3.0, 2.0]).view(1, E, 1)
    return scale * (noise + skill * torch.eye(classes)[labels].unsqueeze(1)), labels


def make_log_probs(seed: int = 0, samples: int = N, classes: int = C) -> tuple[Tensor, Tensor]:
    experts, labels = make_experts(seed, samples, classes)
    return log_probabilities(experts[:, 2]), labels


def log(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


# --- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_the_libraries(seed: int) -> None:
    log_probs, labels = make_log_probs(seed)
    found = measure(log_probs, labels)
    p, y = log_probs.exp().numpy(), labels.numpy()
    classes = np.arange(C)
    top1 = sklearn.metrics.accuracy_score(y, p.argmax(axis=1))
    top5 = sklearn.metrics.top_k_accuracy_score(y, p, k=5, labels=classes)
    brier = sklearn.metrics.brier_score_loss(y, p, labels=classes, scale_by_half=False)
    ece = torchmetrics.multiclass_calibration_error(
        log_probs.exp(), labels, num_classes=C, n_bins=15, norm="l1"
    )
    assert found.top1 == pytest.approx(100 * top1)
    assert found.top5 == pytest.approx(100 * top5)
    assert found.nll == pytest.approx(sklearn.metrics.log_loss(y, p, labels=classes))
    assert found.brier == pytest.approx(brier)
    assert found.ece == pytest.approx(100 * float(ece))
    assert found.ece > 1 and found.top1 < found.top5 < 100  # or the test would prove little


def test_metrics_of_two_samples_by_hand() -> None:
    """Bins of 0.7 and 0.6: one surely right, one wrong."""
    found = measure(log([0.7, 0.2, 0.1], [0.3, 0.6, 0.1]), torch.tensor([0, 2]))
    assert found == Metrics(
        top1=50.0,
        top5=None,
        nll=pytest.approx(-(math.log(0.7) + math.log(0.1)) / 2),
        ece=pytest.approx((30 + 60) / 2),
        brier=pytest.approx((0.09 + 0.04 + 0.01 + 0.09 + 0.36 + 0.81) / 2),
    )


def test_one_sample_of_two_classes() -> None:
    found = measure(log([0.25, 0.75]), torch.tensor([1]))
    assert (found.top1, found.top5) == (100.0, None)
    assert found.nll == pytest.approx(math.log(4 / 3))
    assert found.ece == pytest.approx(25)
    assert found.brier == pytest.approx(0.125)


@pytest.mark.parametrize(("classes", "top5"), [(5, None), (6, 0.0), (7, 0.0)])
def test_top5_of_five_classes_says_nothing(classes: int, top5: float | None) -> None:
    logits = -torch.arange(float(classes)).unsqueeze(0)
    assert measure(log_probabilities(logits), torch.tensor([classes - 1])).top5 == top5


def test_of_equal_scores_the_first_class_wins_as_in_argmax() -> None:
    """A model without an opinion is right for one class in C, not for all of them."""
    labels = torch.arange(C)
    found = measure(log_probabilities(torch.zeros(C, C)), labels)
    assert found.top1 == pytest.approx(100 / C)
    assert found.top5 == pytest.approx(100 * 5 / C)
    logits = torch.randint(0, 3, (N, C), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(N) % C
    assert torch.equal(correct(logits, labels), logits.argmax(dim=1) == labels)


def test_huge_logits_have_finite_metrics() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    found = measure(log_probabilities(logits), torch.tensor([0, 1]))
    assert found == Metrics(50.0, None, 1e4, 50.0, 1.0)
    experts = logits.unsqueeze(1).repeat(1, 3, 1)
    assert measure(mix_probabilities(experts), torch.tensor([0, 1])).nll == pytest.approx(1e4)
    assert measure(
        log_probabilities(mean_logits(experts)), torch.tensor([0, 1])
    ).nll == pytest.approx(1e4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 9))
def test_the_order_of_samples_and_classes_changes_nothing(
    seed: int, samples: int, classes: int
) -> None:
    log_probs, labels = make_log_probs(seed, samples, classes)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(samples, generator=generator)
    columns = torch.randperm(classes, generator=generator)
    one = measure(log_probs, labels)
    other = measure(log_probs[rows][:, columns], columns.argsort()[labels[rows]])
    assert vars(one) == pytest.approx(vars(other), abs=1e-9)
    assert 0 <= one.ece <= 100 and 0 <= one.brier <= 2 and one.nll >= 0


# --- reliability ---------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [6, 7, 8, 9])
def test_confidence_that_is_kept_has_no_calibration_error(right: int) -> None:
    """Ten answers of probability right / 10, of which so many are right."""
    p = right / 10
    log_probs = log(*[[p, 1 - p]] * 10, *[[1 - p, p]] * 10)
    labels = torch.tensor([0] * right + [1] * (10 - right) + [1] * right + [0] * (10 - right))
    assert measure(log_probs, labels).ece == pytest.approx(0, abs=1e-9)
    flipped = measure(log_probs, 1 - labels)
    assert flipped.ece == pytest.approx(100 * (2 * p - 1))


def test_bins_hold_their_upper_edge_as_published() -> None:
    """Against the paper's own loop over bins, certainty and confidences near an edge included."""
    log_probs, labels = make_log_probs(1)
    near = torch.tensor([3, 5, 8, 14]) / 15
    edges = torch.cat([near - 1e-6, near + 1e-6]).double().unsqueeze(1)
    edges = torch.cat([edges, (1 - edges).expand(-1, C - 1) / (C - 1)], dim=1).log()
    certain = log_probabilities(1e4 * torch.eye(C))
    log_probs = torch.cat([log_probs, edges, certain])
    labels = torch.cat([labels, torch.zeros(len(edges), dtype=torch.int64), torch.arange(C)])
    confidence = log_probs.exp().max(dim=1).values.numpy()
    right = (log_probs.argmax(dim=1) == labels).numpy()
    found = reliability(log_probs, labels)
    assert len(found) == BINS == 15
    for m, level in enumerate(found):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        assert level.samples == inside.sum()
        if level.samples:
            assert level.confidence == pytest.approx(100 * confidence[inside].mean())
            assert level.accuracy == pytest.approx(100 * right[inside].mean())
        else:
            assert level.confidence is level.accuracy is None
    assert found[0] == Bin(0, None, None)  # of eight classes the largest has more than 1/15
    assert sum(level.samples for level in found) == len(labels)


def test_an_edge_belongs_to_the_bin_below_it() -> None:
    half = log([0.5, 0.5])  # of two classes, and 7.5 bins: no edge
    assert [b.samples for b in reliability(half, torch.tensor([0]))].index(1) == 7
    fifth = torch.full((1, 5), 1 / 5, dtype=torch.float64).log()  # 3 / 15
    assert float(fifth[0, 0].exp()) <= 3 / 15  # rounding is on the edge's side
    assert [b.samples for b in reliability(fifth, torch.tensor([0]))].index(1) == 2
    certain = log_probabilities(torch.tensor([[1e4, 0.0]]))
    assert [b.samples for b in reliability(certain, torch.tensor([0]))].index(1) == 14


def test_accuracy_of_each_class_equals_its_recall() -> None:
    log_probs, labels = make_log_probs()
    kept = labels != 3
    found = per_class_accuracy(log_probs[kept], labels[kept])
    answers = log_probs[kept].argmax(dim=1).numpy()
    present = [c for c in range(C) if c != 3]
    recall = sklearn.metrics.recall_score(labels[kept], answers, labels=present, average=None)
    assert found[3] is None
    assert [found[c] for c in present] == pytest.approx(100 * recall)


# --- mixtures ------------------------------------------------------------------------------------


def test_mixtures_are_what_their_names_say() -> None:
    experts, _ = make_experts()
    powers = np.exp(experts.double().numpy())
    each = powers / powers.sum(axis=-1, keepdims=True)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    mean = mix_probabilities(experts).exp().numpy()
    np.testing.assert_allclose(mean, each.mean(axis=1))
    weighted = mix_probabilities(experts, weights).exp().numpy()
    np.testing.assert_allclose(weighted, np.einsum("nec,e->nc", each, weights.numpy()))
    # normalised geometric mean of the probabilities
    pooled = each.prod(axis=1) ** (1 / E)
    pooled /= pooled.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(log_probabilities(mean_logits(experts)).exp().numpy(), pooled)
    alone = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(mix_probabilities(experts, alone), log_probabilities(experts[:, 1]))


@pytest.mark.parametrize("seed", range(4))
def test_fitted_weights_equal_scipys(seed: int) -> None:
    experts, labels = make_experts(seed)
    own = experts.double().softmax(dim=-1)[torch.arange(N), :, labels].numpy()
    best = scipy.optimize.minimize(
        lambda w: -np.log(own @ w).mean(),
        np.full(E, 1 / E),
        jac=lambda w: -(own / (own @ w)[:, None]).mean(axis=0),
        bounds=[(0, 1)] * E,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    weights = fit_mixture_weights(experts, labels)
    assert weights.tolist() == pytest.approx(best.x, abs=2e-3)
    assert losses(mix_probabilities(experts, weights), labels).mean() <= best.fun + 1e-6
    assert max(weights) > 0.4  # not the equal weights it began with


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_every_step_lowers_the_loss_and_keeps_the_weights_convex(seed: int, samples: int) -> None:
    experts, labels = make_experts(seed, samples)
    course = []
    for iterations in (0, 1, 2, 3, 5, 20, 200):
        weights = fit_mixture_weights(experts, labels, iterations=iterations)
        assert weights.min() >= 0
        assert float(weights.sum()) == pytest.approx(1)
        course.append(float(losses(mix_probabilities(experts, weights), labels).mean()))
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(course))
    single = min(float(losses(log_probabilities(experts[:, k]), labels).mean()) for k in range(E))
    assert course[0] == pytest.approx(float(losses(mix_probabilities(experts), labels).mean()))
    assert course[-1] <= single + math.log(E) / 200  # as promised after 200 steps


def test_weights_of_experts_by_hand() -> None:
    """Two classes; expert 0 gives the label 0.8 three times and 0.2 once, expert 1 always 0.5.

    The mixture gives 0.5 + 0.3 w thrice and 0.5 - 0.3 w once: w = 1 / 0.6 x 0.5 = 5/6.
    """
    sure = torch.tensor([0.8, 0.2]).log()
    experts = torch.stack([sure, torch.zeros(2)]).expand(4, 2, 2)
    weights = fit_mixture_weights(experts, torch.tensor([0, 0, 0, 1]))
    assert weights.tolist() == pytest.approx([5 / 6, 1 / 6], abs=1e-3)
    # what both find all but impossible, exp(-10,000), says nothing about either
    hopeless = torch.tensor([0.0, 1e4]).expand(1, 2, 2)
    weights = fit_mixture_weights(torch.cat([experts, hopeless]), torch.tensor([0, 0, 0, 1, 0]))
    assert weights.tolist() == pytest.approx([5 / 6, 1 / 6], abs=1e-3)


def test_weights_where_there_is_nothing_to_choose_or_everything() -> None:
    logits, labels = make_log_probs()
    same = logits.unsqueeze(1).expand(-1, 4, -1)
    assert fit_mixture_weights(same, labels).tolist() == pytest.approx([0.25] * 4)
    assert fit_mixture_weights(same[:, :1], labels).tolist() == [1.0]
    right = 1e4 * torch.eye(C)[labels]
    weights = fit_mixture_weights(torch.stack([-right, right, torch.zeros(N, C)], dim=1), labels)
    assert weights.tolist() == pytest.approx([0, 1, 0], abs=1e-6)


# --- temperature ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_equals_scipys(scale: float) -> None:
    log_probs, labels = make_log_probs()
    logits = scale * log_probs
    found = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        p = (logits / temperature).softmax(dim=1).numpy()
        return float(sklearn.metrics.log_loss(labels, p, labels=np.arange(C)))

    best = scipy.optimize.minimize_scalar(
        loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}
    )
    assert found == pytest.approx(best.x, rel=1e-5)
    assert found == pytest.approx(scale * fit_temperature(log_probs, labels))
    after = measure(apply_temperature(logits, found), labels)
    assert after.nll == pytest.approx(best.fun)
    assert after.top1 == measure(log_probabilities(logits), labels).top1
    assert after.ece < measure(log_probabilities(logits), labels).ece


def test_the_temperature_of_an_honest_model_is_one() -> None:
    """Labels drawn from the model's own probabilities, scaled afterwards."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.03)


def test_the_temperature_of_a_mixture_divides_its_log_probabilities() -> None:
    experts, labels = make_experts()
    mixture = mix_probabilities(experts)
    temperature = fit_temperature(mixture, labels)
    p = mixture.exp().numpy() ** (1 / temperature)
    found = apply_temperature(mixture, temperature)
    np.testing.assert_allclose(found.exp().numpy(), p / p.sum(axis=1, keepdims=True))
    assert measure(found, labels).nll < measure(mixture, labels).nll


def test_the_temperature_stays_within_its_limits() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert fit_temperature(logits, right) == pytest.approx(TEMPERATURES[0])
    assert fit_temperature(logits, wrong) == pytest.approx(TEMPERATURES[1])
    assert fit_temperature(1e4 * logits, wrong) == pytest.approx(TEMPERATURES[1])
    assert fit_temperature(logits[:1], right[:1]) == pytest.approx(TEMPERATURES[0])
    # nothing to gain: a model without an opinion, one that is right beyond all doubt
    assert fit_temperature(torch.zeros(2, 2), right) == 1
    assert fit_temperature(1e4 * logits, right) == 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"expected a positive number, found {temperature}"):
        apply_temperature(torch.zeros(1, 2), temperature)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    experts, labels = make_experts()
    experts[[4, 9], 1, 2] = value
    for call in (
        lambda: measure(experts[:, 1], labels),
        lambda: correct(experts[:, 1], labels),
        lambda: mix_probabilities(experts),
        lambda: log_probabilities(mean_logits(experts)),
        lambda: fit_mixture_weights(experts, labels),
        lambda: fit_temperature(experts[:, 1], labels),
        lambda: apply_temperature(experts[:, 1], 1.0),
    ):
        with pytest.raises(ValueError, match=r"2 of 500 samples hold .* first is sample 4"):
            call()


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((4,), torch.zeros(4).long(), r"expected shape \(N, C\) .* found \(4,\)"),
        ((4, 2, 3), torch.zeros(4).long(), r"expected shape \(N, C\) .* found \(4, 2, 3\)"),
        ((0, 3), torch.zeros(0).long(), r"at least one sample .* found \(0, 3\)"),
        ((4, 1), torch.zeros(4).long(), r"two classes, found \(4, 1\)"),
        ((4, 3), torch.zeros(5).long(), r"labels: expected shape \(4,\) .* found \(5,\)"),
        ((4, 3), torch.zeros(4, 1).long(), r"labels: expected shape \(4,\) .* found \(4, 1\)"),
        ((4, 3), torch.zeros(4), r"expected .* torch.int64, found .* torch.float32"),
        ((4, 3), torch.tensor([0, 1, 2, 3]), "labels: expected 0 to 2, found 0 to 3"),
        ((4, 3), torch.tensor([0, 1, 2, -1]), "labels: expected 0 to 2, found -1 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], labels: Tensor, message: str) -> None:
    scores = torch.zeros(shape).log_softmax(dim=-1)
    for function in (measure, correct, losses, reliability, per_class_accuracy, fit_temperature):
        with pytest.raises(ValueError, match=message):
            function(scores, labels)


def test_experts_have_a_dimension_of_their_own() -> None:
    for function in (mean_logits, mix_probabilities):
        with pytest.raises(ValueError, match=r"expected shape \(N, E, C\) .* found \(4, 3\)"):
            function(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"expected shape \(N, E, C\) .* found \(4, 3\)"):
        fit_mixture_weights(torch.zeros(4, 3), torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\) .* found \(3,\)"):
        fit_mixture_weights(torch.zeros(4, 2, 3), torch.zeros(3).long())


@pytest.mark.parametrize("turn", [lambda x: x, lambda x: x - 99, lambda x: x.softmax(dim=1)])
def test_logits_and_probabilities_are_not_taken_for_log_probabilities(
    turn: Callable[[Tensor], Tensor],
) -> None:
    experts, labels = make_experts()
    for function in (measure, losses, reliability):
        with pytest.raises(ValueError, match="probabilities sum to one, but sample"):
            function(turn(experts[:, 0]), labels)
    measure(experts[:, 0].log_softmax(dim=1), labels)  # in single precision


@pytest.mark.parametrize(
    "weights", [[0.5, 0.5], [0.5, 0.5, 0.5], [-0.5, 1.0, 0.5], [math.nan, 0.5, 0.5], [[0.5] * 3]]
)
def test_weights_that_are_not_convex_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights: expected 3, none negative, that sum to one"):
        mix_probabilities(make_experts()[0], torch.tensor(weights))
