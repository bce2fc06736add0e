"""Schedules against torch's, rates against the published table, clips and kernels by hand."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LRScheduler

from fusionrun.fusions import FUSIONS
from fusionrun.study.defaults import FUSION_DEFAULTS, adapted_rates
from fusionrun.training.optim import (
    Group,
    Schedule,
    adamw,
    annealed_restart,
    clip_gradients,
    cosine_to_tenth,
    cosine_to_zero,
    load_optimizer,
    set_learning_rates,
    sgd,
    warm_restarts,
)

# --- schedules -----------------------------------------------------------------------------------


def torch_rates(
    lr: float, epochs: int, make: Callable[[torch.optim.Optimizer], LRScheduler]
) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("epochs", [1, 2, 7, 100, 250])
@pytest.mark.parametrize(("schedule", "floor"), [(cosine_to_zero, 0.0), (cosine_to_tenth, 0.1)])
def test_cosine_equals_torch(schedule: Schedule, floor: float, epochs: int) -> None:
    lr = 0.3
    expected = torch_rates(lr, epochs, lambda o: CosineAnnealingLR(o, epochs, eta_min=floor * lr))
    found = [lr * schedule(epoch, epochs) for epoch in range(epochs)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("epochs", [4, 8, 40, 100])
def test_warm_restarts_equal_torch(epochs: int) -> None:
    lr = 7e-5
    expected = torch_rates(
        lr,
        epochs,
        lambda o: CosineAnnealingWarmRestarts(o, T_0=epochs // 4, T_mult=2, eta_min=0.1 * lr),
    )
    found = [lr * warm_restarts(epoch, epochs) for epoch in range(epochs)]
    assert found == pytest.approx(expected, rel=1e-9)
    # restarts of 100 epochs: at 25 and 75, where the rate jumps back to the full one
    starts = [epoch for epoch in range(epochs) if warm_restarts(epoch, epochs) == 1.0]
    assert starts == [0, epochs // 4, 3 * epochs // 4]


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 6, 7, 10, 11])
def test_warm_restarts_of_any_length(epochs: int) -> None:
    factors = [warm_restarts(epoch, epochs) for epoch in range(epochs)]
    assert factors[0] == 1.0
    assert all(0.1 <= factor <= 1.0 for factor in factors)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 6, 7, 40, 100, 101])
def test_an_annealed_run_ends_where_a_cycle_ends(epochs: int) -> None:
    """Two cycles, whatever the length: a third of it (at least an epoch), then all the rest."""
    first = max(1, round(epochs / 3))
    lengths = [first, epochs - first] if epochs > 1 else [1]
    expected = [cosine_to_tenth(epoch, length) for length in lengths for epoch in range(length)]
    found = [annealed_restart(epoch, epochs) for epoch in range(epochs)]
    assert found == expected and len(found) == epochs


def test_of_a_hundred_epochs_the_annealed_end_at_a_tenth() -> None:
    assert [e for e in range(100) if annealed_restart(e, 100) == 1.0] == [0, 33]
    assert annealed_restart(32, 100) == pytest.approx(0.1, abs=3e-3)
    assert annealed_restart(99, 100) == pytest.approx(0.1, abs=1e-3)
    assert warm_restarts(99, 100) == pytest.approx(0.878, abs=1e-3)


# --- rates ---------------------------------------------------------------------------------------

# fact sheet, section 5: (experts, fusion module and global head)
ADAPTED = {
    ("multiplicative", 1024): (7e-5, 4e-4),
    ("multiplicative", 640): (1e-4, 5e-4),
    ("multiplicative", 512): (1e-4, 5e-4),
    ("multiplicativeAddition", 1024): (7e-5, 8e-4),
    ("multiplicativeAddition", 640): (1e-4, 1e-3),
    ("multiplicativeAddition", 512): (1e-4, 1e-3),
    ("concatenation", 1024): (7e-5, 8e-4),
    ("concatenation", 640): (1e-4, 1e-3),
    ("concatenation", 512): (1e-4, 1e-3),
    ("simpleAddition", 1024): (7e-5, 8e-4),
    ("simpleAddition", 640): (1e-4, 1e-3),
    ("simpleAddition", 512): (1e-4, 1e-3),
    ("TransformerBase", 1024): (2.8e-5, 1.6e-4),
    ("TransformerBase", 640): (4e-5, 2e-4),
    ("TransformerBase", 512): (4e-5, 2e-4),
    # small ones: base 1.3 and head 1.2 times; multiplicative 1.1 times more below 500
    ("multiplicative", 64): (1e-4 * 1.3 * 1.1, 6e-4),
    ("multiplicativeAddition", 64): (1.3e-4, 1.2e-3),
    ("concatenation", 64): (1.3e-4, 1.2e-3),
    ("simpleAddition", 64): (1.3e-4, 1.2e-3),
    ("TransformerBase", 64): (6.5e-5, 2.4e-4),
    # between the limits, and on them: "more than" and "less than" leave the limits themselves out
    ("multiplicative", 499): (1.1e-4, 5e-4),
    ("alignedMultiplicative", 499): (1.1e-4, 5e-4),
    ("alignedMultiplicative", 500): (1e-4, 5e-4),
    ("alignedAddition", 499): (1e-4, 1e-3),
    ("gated", 64): (1.3e-4, 1.2e-3),
    ("meanLogits", 1024): (7e-5, 8e-4),
    ("multiplicative", 500): (1e-4, 5e-4),
    ("multiplicative", 100): (1.1e-4, 5e-4),
    ("concatenation", 100): (1e-4, 1e-3),
    ("concatenation", 1000): (1e-4, 1e-3),
    ("concatenation", 1001): (7e-5, 8e-4),
    ("TransformerBase", 500): (5e-5, 2e-4),
    ("TransformerBase", 501): (4e-5, 2e-4),
}


@pytest.mark.parametrize(("fusion", "feature_dim"), ADAPTED)
def test_adapted_rates_are_the_published_ones(fusion: str, feature_dim: int) -> None:
    assert adapted_rates(fusion, feature_dim) == pytest.approx(ADAPTED[fusion, feature_dim])


def test_every_fusion_has_defaults() -> None:
    assert FUSION_DEFAULTS.keys() == FUSIONS.keys()


# --- groups --------------------------------------------------------------------------------------


class Network(nn.Module):
    """An expert, a fusion and a head in miniature; convolutions lie in memory as `layout` says."""

    def __init__(self, layout: torch.memory_format = torch.channels_last) -> None:
        super().__init__()
        torch.manual_seed(0)
        # no bias before a norm: its gradient is nothing but rounding, which AdamW would magnify
        first = nn.Conv2d(3, 6, 3, bias=False)
        self.expert = nn.Sequential(first, nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1))
        self.fusion = nn.Linear(5, 5)
        self.head = nn.Linear(5, 4)
        self.to(memory_format=layout)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.expert(images).mean(dim=(2, 3))
        logits: torch.Tensor = self.head(self.fusion(features).relu())
        return logits


def make_groups(network: Network | None = None) -> list[Group]:
    network = network or Network()
    return [
        Group.of("experts", [network.expert], 1e-2, warm_restarts, 5.0),
        Group.of("fusion", [network.fusion], 3e-2, cosine_to_tenth, 1.0),
        Group.of("global_head", [network.head], 5e-2, cosine_to_zero, 1.0),
    ]


def give_gradients(groups: list[Group], scales: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group, scale in zip(groups, scales, strict=True):
        for parameter in group.parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(scale * noise)


def gradient_norm(group: Group) -> float:
    squares = [
        float((parameter.grad.double() ** 2).sum())
        for parameter in group.parameters
        if parameter.grad is not None
    ]
    return math.sqrt(sum(squares))


def test_a_group_holds_what_is_trainable() -> None:
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    group = Group.of("x", [layer, frozen], 0.1, cosine_to_zero, 1.0)
    assert [parameter is layer.weight for parameter in group.parameters] == [True]


@pytest.mark.parametrize("make", [sgd, adamw])
def test_each_group_keeps_its_own_rate(
    make: Callable[[list[Group], float], torch.optim.Optimizer],
) -> None:
    groups = make_groups()
    optimizer = make(groups, 1e-4)
    for epoch in range(8):
        rates = set_learning_rates(optimizer, groups, epoch, 8)
        cosine = (1 + math.cos(math.pi * epoch / 8)) / 2
        # periods of 2 and 4 epochs, then the first 2 of 8
        warm = [0, 1 / 2, 0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 8][epoch]
        expected = {
            "experts": 1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * warm)) / 2),
            "fusion": 3e-2 * (0.1 + 0.9 * cosine),
            "global_head": 5e-2 * cosine,
        }
        assert rates == pytest.approx(expected)
        assert {e["name"]: float(e["lr"]) for e in optimizer.param_groups} == rates


def test_each_group_is_clipped_to_its_own_limit() -> None:
    groups = make_groups()
    for scales in ([100.0, 100.0, 100.0], [1e-3, 50.0, 1e-3], [40.0, 1e-3, 1e-3], [1e-3] * 3):
        give_gradients(groups, scales, seed=1)
        before = [gradient_norm(group) for group in groups]
        raw = [[p.grad.clone() for p in g.parameters if p.grad is not None] for g in groups]
        total = clip_gradients(groups)
        assert float(total) == pytest.approx(sum(before), rel=1e-5)
        for group, norm, gradients in zip(groups, before, raw, strict=True):
            factor = min(1.0, group.clip / norm)
            assert gradient_norm(group) == pytest.approx(min(norm, group.clip), rel=1e-4)
            for parameter, gradient in zip(group.parameters, gradients, strict=True):
                torch.testing.assert_close(parameter.grad, factor * gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_bad_gradient_shows_in_the_norm(which: int, number: float) -> None:
    groups = make_groups()
    give_gradients(groups, [1.0, 1.0, 1.0], seed=1)
    gradient = groups[which].parameters[-1].grad
    assert gradient is not None
    gradient.view(-1)[0] = number
    assert not clip_gradients(groups).isfinite()


# --- kernels -------------------------------------------------------------------------------------


def plain_sgd(groups: list[Group], weight_decay: float) -> torch.optim.Optimizer:
    entries = [{"params": g.parameters, "lr": torch.tensor(g.lr), "name": g.name} for g in groups]
    return torch.optim.SGD(
        entries, momentum=0.9, nesterov=True, weight_decay=weight_decay, foreach=False, fused=False
    )


def plain_adamw(groups: list[Group], weight_decay: float) -> torch.optim.Optimizer:
    entries = [{"params": g.parameters, "lr": torch.tensor(g.lr), "name": g.name} for g in groups]
    return torch.optim.AdamW(
        entries,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=weight_decay,
        foreach=False,
        fused=False,
    )


@pytest.mark.parametrize(("make", "plain"), [(sgd, plain_sgd), (adamw, plain_adamw)])
def test_fused_kernels_equal_the_plain_loop(
    make: Callable[[list[Group], float], torch.optim.Optimizer],
    plain: Callable[[list[Group], float], torch.optim.Optimizer],
) -> None:
    networks = Network(), Network()
    ours, theirs = make_groups(networks[0]), make_groups(networks[1])
    starts = [p.detach().clone() for group in ours for p in group.parameters]
    one, other = make(ours, 0.01), plain(theirs, 0.01)
    for step in range(16):
        train_step(networks[0], ours, one, step)
        train_step(networks[1], theirs, other, step)
    assert_same_weights(ours, theirs)
    found = [p.detach() for group in ours for p in group.parameters]
    moved = [float((start - mine).abs().max()) for start, mine in zip(starts, found, strict=True)]
    assert min(moved) > 1e-4


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("saved", [torch.channels_last, torch.contiguous_format])
def test_a_state_may_come_from_another_layout(
    make: Callable[[list[Group], float], torch.optim.Optimizer], saved: torch.memory_format
) -> None:
    """A recipe may switch runtime.channels_last between launches; kernels read raw memory."""
    layouts = (torch.channels_last, torch.contiguous_format)
    networks = Network(saved), Network(layouts[1 - layouts.index(saved)])
    ours, theirs = make_groups(networks[0]), make_groups(networks[1])
    one, other = make(ours, 0.01), make(theirs, 0.01)
    for step in range(4):
        train_step(networks[0], ours, one, step)
    networks[1].load_state_dict(networks[0].state_dict())
    load_optimizer(other, copy.deepcopy(one.state_dict()))
    for step in range(4, 8):
        train_step(networks[0], ours, one, step)
        train_step(networks[1], theirs, other, step)
    assert_same_weights(ours, theirs)


def train_step(
    network: Network, groups: list[Group], optimizer: torch.optim.Optimizer, step: int
) -> None:
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(step))
    set_learning_rates(optimizer, groups, step // 2, 8)
    optimizer.zero_grad()
    # gradients come from backward: the kernels rely on the layout that it gives them
    network(images).square().mean().backward()
    optimizer.step()


def assert_same_weights(ours: list[Group], theirs: list[Group]) -> None:
    for mine, right in zip(ours, theirs, strict=True):
        for one, other in zip(mine.parameters, right.parameters, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_found_inf_makes_the_kernels_skip(
    make: Callable[[list[Group], float], torch.optim.Optimizer],
) -> None:
    """The loop relies on it to keep a NaN out of the weights without waiting for the device."""
    groups = make_groups()
    optimizer = make(groups, 0.1)
    give_gradients(groups, [1.0, 1.0, 1.0], seed=0)
    optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    optimizer.step()
    healthy = [p.detach().clone() for group in groups for p in group.parameters]
    give_gradients(groups, [math.nan, 1.0, 1.0], seed=1)
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    for before, now in zip(healthy, [p for g in groups for p in g.parameters], strict=True):
        assert torch.equal(before, now)
    for state in optimizer.state.values():
        assert all(value.isfinite().all() for value in state.values())
