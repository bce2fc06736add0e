"""Fusion's alternatives against numpy, and operations counted by hand."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.evaluation.accuracies import accuracies_by_method
from fusionrun.evaluation.alternatives import (
    ALTERNATIVES,
    CONTROLS,
    FUSED,
    METHODS,
    Choice,
    Method,
    scores_by_method,
)
from fusionrun.evaluation.predictions import HeadLogits
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.experts import build_expert
from fusionrun.fusions import FUSIONS, FusionModel, build_fusion
from fusionrun.training.scores import mean_logits, mix_probabilities

N, E, C = 300, 3, 5
Floats = npt.NDArray[np.float64]


def make_logits(seed: int) -> Tensor:
    """Heads (N, 1 + E, C) of unlike skill and scale, so that no two averages agree by chance."""
    generator = torch.Generator().manual_seed(seed)
    labels = make_labels()
    noise = torch.randn(N, 1 + E, C, generator=generator)
    skill = torch.tensor([1.6, 0.8, 1.2, 1.0]).view(1, -1, 1)
    scale = torch.tensor([1.0, 6.0, 2.0, 0.5]).view(1, -1, 1)
    return scale * (noise + skill * torch.eye(C)[labels].unsqueeze(1))


def make_labels() -> Tensor:
    return torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(7))


def make_stacking(seed: int) -> Callable[[Tensor], Tensor]:
    """With any weights."""
    weights = torch.randn(E * C, C, generator=torch.Generator().manual_seed(seed)).double()
    return lambda logits: logits.double().flatten(start_dim=1) @ weights


def percent_right(scores: Floats) -> float:
    right = [int(np.argmax(scores[n])) == int(make_labels()[n]) for n in range(N)]
    return 100 * sum(right) / N


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("val_accuracies", "before_val_accuracies", "best", "before_best"),
    [
        ([50.0, 60.0, 40.0], [10.0, 20.0, 30.0], 1, 2),
        ([70.0, 60.0, 40.0], [30.0, 20.0, 10.0], 0, 0),
        ([70.0, 60.0, 70.5], [30.0, 30.5, 10.0], 2, 1),
        ([60.0, 60.0, 60.0], [30.0, 40.0, 40.0], 0, 1),  # of equals the first
    ],
)
def test_accuracies_equal_numpy(
    val_accuracies: list[float], before_val_accuracies: list[float], best: int, before_best: int
) -> None:
    logits, before = make_logits(0), make_logits(1)[:, 1:]
    answers = HeadLogits(make_labels(), logits, before)
    found = accuracies_by_method(answers, val_accuracies, before_val_accuracies)
    heads, old = logits.double().numpy(), before.double().numpy()
    each = [percent_right(heads[:, 1 + k]) for k in range(E)]
    each_before = [percent_right(old[:, k]) for k in range(E)]
    expected: dict[str, object] = {
        "fused": percent_right(heads[:, 0]),
        "best_expert": each[best],
        "mean_probabilities": percent_right(softmax(heads[:, 1:]).mean(axis=1)),
        "mean_logits": percent_right(heads[:, 1:].mean(axis=1)),
        "before_best_expert": each_before[before_best],
        "before_mean_probabilities": percent_right(softmax(old).mean(axis=1)),
        "before_mean_logits": percent_right(old.mean(axis=1)),
        "experts": each,
        "before_experts": each_before,
    }
    assert list(found) == [*expected, "images", "differences"] and found["images"] == N
    for key, of in found["differences"].items():
        assert of["points"] == pytest.approx(found["fused"] - found[key])
    assert list(found["differences"]) == ["mean_probabilities", "best_expert"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    # the inputs tell all of them apart, or the test would prove little
    assert len(set(each)) == len(set(each_before)) == E
    assert len({expected["fused"], expected["mean_probabilities"], expected["mean_logits"]}) == 3


def test_the_best_expert_is_not_chosen_on_these_images() -> None:
    """Validation prefers the expert that is worst here: its number is reported all the same."""
    logits = make_logits(0)
    each = [accuracy(logits[:, 1 + k], make_labels()) for k in range(E)]
    worst = each.index(min(each))
    misleading = [90.0 if k == worst else 10.0 for k in range(E)]
    answers = HeadLogits(make_labels(), logits, logits[:, 1:])
    found = accuracies_by_method(answers, misleading, misleading)
    assert found["best_expert"] == found["before_best_expert"] == min(each) < max(each)


def test_the_two_averages_are_different_things() -> None:
    """Two lukewarm experts against a sure one: probabilities limit what one of them can say."""
    logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 9.0]]])
    assert int(mean_logits(logits).argmax()) == 1
    assert int(mix_probabilities(logits).argmax()) == 1
    logits = torch.tensor([[[3.0, 0.0], [3.0, 0.0], [0.0, 9.0]]])
    assert int(mean_logits(logits).argmax()) == 1
    assert int(mix_probabilities(logits).argmax()) == 0
    torch.testing.assert_close(mix_probabilities(logits).exp().sum(dim=-1), torch.ones(1).double())


def test_huge_logits_do_not_break_mix_probabilities() -> None:
    logits = torch.tensor([[[1000.0, 0.0], [0.0, -1000.0]]])
    assert mix_probabilities(logits).exp().tolist() == [[1.0, 0.0]]


def test_accuracy_is_a_percentage() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    assert accuracy(logits, torch.tensor([0, 1, 0])) == 100.0
    assert accuracy(logits, torch.tensor([1, 0, 1])) == 0.0
    assert accuracy(logits, torch.tensor([0, 0, 1])) == pytest.approx(100 / 3)


# --- the table of methods ------------------------------------------------------------------------


def test_every_method_has_its_own_names() -> None:
    methods = (FUSED, *ALTERNATIVES, *CONTROLS)
    for names in ("key", "label", "heading"):
        assert len({getattr(method, names) for method in methods}) == len(methods), names
    assert list(METHODS) == [method.key for method in methods]


@pytest.mark.parametrize("method", ALTERNATIVES, ids=lambda method: method.key)
def test_scores_and_log_probabilities_answer_alike(method: Method) -> None:
    """Those that average probabilities have no logits: theirs are normalised already."""
    logits = make_logits(0)[:, 1:]
    choice = Choice(1, torch.tensor([0.5, 0.2, 0.3]), make_stacking(0))
    scores = method.formula.scores(logits, choice)
    found = method.formula.log_probabilities(logits, choice)
    torch.testing.assert_close(found.exp().sum(dim=-1), torch.ones(N).double())
    assert torch.equal(found.argmax(dim=-1), scores.argmax(dim=-1))
    assert torch.allclose(found, scores) is not method.formula.has_logits


def test_what_validation_chose_is_all_that_is_chosen() -> None:
    logits = make_logits(0)[:, 1:]
    for method in ALTERNATIVES:
        one, other = (
            method.formula.scores(logits, choice)
            for choice in (
                Choice(0, torch.tensor([1.0, 0.0, 0.0]), make_stacking(0)),
                Choice(2, torch.tensor([0.0, 0.0, 1.0]), make_stacking(1)),
            )
        )
        assert torch.equal(one, other) is (method.formula.chosen == "nothing"), method.key


def test_methods_without_their_logits_are_left_out() -> None:
    logits = make_logits(0)
    found = scores_by_method({"fusion": logits, "after": logits[:, 1:]}, {"after": 2})
    keys = [method.key for method in found]
    assert keys == ["fused", "best_expert", "mean_probabilities", "mean_logits"]
    assert torch.equal(found[METHODS["best_expert"]], logits[:, 3].double())
    assert [method.key for method in scores_by_method({"fusion": logits[:, :1]}, {})] == ["fused"]


# --- cost ----------------------------------------------------------------------------------------


def test_operations_are_counted_as_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 8 x 16 x 16 outputs of 3 x 3 x 3 each
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),  # 12 x 8 x 8 of 2 x 3 x 3
        nn.Conv2d(12, 6, 1),  # 6 x 8 x 8 of 12
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    )
    expected = 8 * 256 * 27 + 12 * 64 * 18 + 6 * 64 * 12 + 60
    assert multiply_accumulates(network.to("meta"), 16) == expected


@pytest.mark.parametrize("fusion", FUSIONS)
def test_operations_are_those_that_hooks_count(fusion: str) -> None:
    """As counters for PyTorch do it, by the layers' outputs; attention's four maps and products."""
    experts = [build_expert("resnet", 5, blocks=(1,), width=16) for _ in range(3)]
    model = FusionModel(experts, build_fusion(fusion, 3, 16), 5).eval()
    counts: list[int] = []

    def count(layer: nn.Module, given: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counts.append(output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if type(layer).__name__ != "NonDynamicallyQuantizableLinear" and isinstance(
            layer, nn.Conv2d | nn.Linear
        ):  # that one is attention's own
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    attention = 4 * 3 * 16**2 + 2 * 3 * 3 * 16 if fusion == "TransformerBase" else 0
    for layer in model.modules():
        layer._forward_hooks.clear()
    assert multiply_accumulates(model.to("meta"), 16) == sum(counts) + attention


def test_operations_of_a_published_network() -> None:
    """ResNet-18 with a stem at full resolution: 0.56 billion for a 32 x 32 image."""
    with torch.device("meta"):
        expert = build_expert("resnet", 100)
    assert multiply_accumulates(expert, 32) == pytest.approx(0.555e9, rel=0.01)
    # four times the pixels, four times the work, but for the classifier
    head = 512 * 100
    assert multiply_accumulates(expert, 64) - head == 4 * (multiply_accumulates(expert, 32) - head)
