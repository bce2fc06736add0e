"""Experts that are computed twice: every number as if they had been computed once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.experts import Expert, build_expert
from fusionrun.fusions import FUSIONS, FusionModel, build_fusion
from fusionrun.fusions.recompute import can_be_recomputed, may_draw

SMALL: dict[str, dict[str, Any]] = {
    "densenet": {"growth": 4, "blocks": (2, 2), "stem": 8, "dropout": 0.2},
    "resnet": {"blocks": (1, 1), "width": 8, "dropout": 0.2},
    "improved_wide_resnet": {"depth": 10, "widen": 1, "width": 8},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 4, "stem": 8},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def row_of(model: str, fusion: str = "concatenation", **more: Any) -> FusionModel:
    torch.manual_seed(3)
    experts = [build_expert(model, 5, **SMALL[model]) for _ in range(3)]
    return FusionModel(experts, build_fusion(fusion, 3, experts[0].feature_dim), 5, **more)


def train(model: FusionModel, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    """Two steps; all that they leave behind, gradients and buffers included."""
    torch.manual_seed(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            output = model(torch.rand(6, 3, 16, 16))
        (output.logits.float().square().sum() + output.expert_logits.float().exp().sum()).backward()
        optimizer.step()
    gradients = {f"{n}.grad": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {**model.state_dict(), **gradients, "drawn": torch.rand(3)}


def assert_same(model: FusionModel, plain: FusionModel, precision: torch.dtype | None) -> None:
    found, expected = train(model, precision), train(plain, precision)
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not differing


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("model", SMALL)
def test_numbers_are_the_same_bit_for_bit(model: str, precision: torch.dtype | None) -> None:
    """Weights, gradients, running statistics and their count, and what's drawn afterwards."""
    row = row_of(model)
    assert row.recompute_experts() and row.recomputes == (0, 1, 2)
    assert_same(row, row_of(model), precision)
    assert not row.recompute_experts()  # once is all there is to it


@pytest.mark.parametrize("fusion", FUSIONS)
def test_with_every_fusion_and_without_its_gradients(fusion: str) -> None:
    for detached in (False, True):
        row = row_of("resnet", fusion, detached=detached)
        row.recompute_experts()
        assert_same(row, row_of("resnet", fusion, detached=detached), None)


def test_experts_that_do_not_learn_are_computed_once() -> None:
    rows = row_of("resnet"), row_of("resnet")
    for row in rows:
        row.experts[1].requires_grad_(False).eval()
    assert rows[0].recompute_experts() and rows[0].recomputes == (0, 2)
    assert_same(*rows, None)
    frozen = row_of("resnet")
    frozen.experts.requires_grad_(False)
    assert not frozen.recompute_experts() and frozen.recomputes == ()


def test_a_partly_frozen_expert_keeps_its_statistics() -> None:
    rows = row_of("resnet"), row_of("resnet")
    for row in rows:
        for expert in row.experts:
            assert isinstance(expert, Expert)
            expert.freeze(2)
            for part in expert.frozen:
                part.eval()
    rows[0].recompute_experts()
    assert_same(*rows, None)


def kept_bytes(model: FusionModel) -> int:
    """What autograd keeps of a step for its backward pass."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.rand(6, 3, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
    assert output.logits.requires_grad
    return sum(kept.values())


def test_no_activations_of_experts_are_kept() -> None:
    row = row_of("resnet")
    whole = kept_bytes(row)
    row.recompute_experts()
    assert kept_bytes(row) < whole / 20


class Averaged(Expert):
    """Keeps a mean of what it saw in a way of its own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, nn.Conv2d(3, 4, 3), 4)
        self.register_buffer("seen", torch.zeros(3))

    def features(self, images: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * images.mean(dim=(0, 2, 3))
        return super().features(images)


def test_what_a_second_pass_would_move_is_left_alone() -> None:
    experts = [Averaged(5), build_expert("resnet", 5, width=4, blocks=(1,))]
    assert [can_be_recomputed(expert) for expert in experts] == [False, True]
    row = FusionModel(experts, build_fusion("concatenation", 2, 4), 5)
    assert row.recompute_experts() and row.recomputes == (1,)


@pytest.mark.parametrize("model", SMALL)
def test_what_draws_nothing_asks_no_generator(model: str) -> None:
    """So that its step can be recorded on a GPU."""
    arguments = {**SMALL[model], "dropout": 0.0}
    expert = build_expert(model, 5, **arguments)
    assert not may_draw(expert)
    assert may_draw(build_expert(model, 5, **{**arguments, "dropout": 0.1}))

    class Own(nn.Identity):
        """Of a plug-in: it may do anything."""

    expert.trunk.add_module("own", Own())  # type: ignore[union-attr,operator]
    assert may_draw(expert)
    attention = nn.TransformerEncoderLayer(8, 2, dropout=0.1)
    assert may_draw(attention) and may_draw(attention.self_attn)
