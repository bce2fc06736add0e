"""What every expert and every fusion promises, for all pairs in the two tables.

Beside the tables' experts there are one of timm, one of torchvision, and different ones in one row.
A new line in either table is picked up unasked; a new architecture without tiny arguments below
is tested at its defaults.
"""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusionrun.common.image_classifier import TrainedOn
from fusionrun.experts import BUILDERS, build_expert
from fusionrun.fusions import FUSIONS, FusionModel, build_fusion
from fusionrun.fusions.branches import in_threads
from tests.fake_cuda import CUDA, fake_cuda

TINY: dict[str, dict[str, Any]] = {  # lists, as they come from YAML
    "densenet": {"growth": 8, "stem": 16, "blocks": [2, 2, 2, 2]},
    "resnet": {"width": 8, "blocks": [1, 1, 1, 1]},
    "improved_wide_resnet": {"depth": 10, "widen": 1},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 8, "stem": 16},
    # vectors, built for one size of images; maps, of images that they normalise by themselves
    "timm:vit_tiny_patch16_224": {
        "image_size": 16,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 2,
    },
    "torchvision:squeezenet1_1": {"image_size": 32, "normalisation": "imagenet"},
}
MIXED = ("densenet", "resnet", "timm:vit_tiny_patch16_224")  # D = 32, 64, 32: adapters to 64
CLASSES = 7
TRAINED_ON = TrainedOn(tuple("abcdefg"), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), image_size=16)

KINDS = ["mixed", *dict.fromkeys((*BUILDERS, *TINY))]  # of rows
every_pair = pytest.mark.parametrize(
    ("expert", "fusion"), [(expert, fusion) for expert in KINDS for fusion in FUSIONS]
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small lose more to waiting between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def members(kind: str, num_experts: int) -> list[str]:
    """The experts of a row of that kind."""
    return list(MIXED[:num_experts]) if kind == "mixed" else [kind] * num_experts


def tiny_model(kind: str, fusion: str, num_experts: int = 2, seed: int = 0) -> FusionModel:
    torch.manual_seed(seed)
    names = members(kind, num_experts)
    experts = [build_expert(name, CLASSES, **TINY.get(name, {})) for name in names]
    for expert in experts:
        expert.know(TRAINED_ON)
    size = max(expert.feature_dim for expert in experts)
    return FusionModel(experts, build_fusion(fusion, num_experts, size), CLASSES)


@every_pair
def test_experts_side_by_side_give_the_same_numbers(expert: str, fusion: str) -> None:
    """Weights, gradients, running statistics and what is drawn next, after two steps."""

    def numbers(threads: int) -> list[Tensor]:
        model = tiny_model(expert, fusion, num_experts=3)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        torch.manual_seed(1)
        with in_threads(model, lambda: threads):
            for _ in range(2):
                optimizer.zero_grad()
                output = model(torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last))
                (output.logits.square().mean() + output.expert_logits.square().mean()).backward()
                optimizer.step()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [*model.state_dict().values(), *gradients, *output, torch.rand(2)]

    pairs = zip(numbers(1), numbers(2), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@every_pair
@pytest.mark.parametrize(("num_experts", "side"), [(2, 16), (3, 48)])
def test_shapes_and_finite_numbers(expert: str, fusion: str, num_experts: int, side: int) -> None:
    model = tiny_model(expert, fusion, num_experts)
    read = CLASSES if model.fusion.reads_logits else model.fusion.feature_dim
    for mode in (True, False):
        output = model.train(mode)(torch.randn(2, 3, side, side))
        assert output.logits.shape == (2, CLASSES)
        assert output.expert_logits.shape == (2, num_experts, CLASSES)
        assert output.features.shape == (2, num_experts, read)
        assert all(tensor.isfinite().all() for tensor in output)
        assert output.logits[0].ne(output.logits[1]).any(), "the image has no influence"


@every_pair
def test_each_path_of_the_loss_reaches_exactly_its_parameters(expert: str, fusion: str) -> None:
    model = tiny_model(expert, fusion, num_experts=3)
    output = model(torch.randn(8, 3, 16, 16))
    labels = torch.arange(8) % CLASSES

    def reached(loss: torch.Tensor) -> set[str]:
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(
            loss, list(named.values()), retain_graph=True, allow_unused=True
        )
        found = {k: g for k, g in zip(named, gradients, strict=True) if g is not None}
        assert all(g.isfinite().all() for g in found.values())
        return {key for key, gradient in found.items() if gradient.abs().max() > 0}

    names = {key for key, _ in model.named_parameters()}
    assert reached(F.cross_entropy(output.logits, labels)) == {
        key for key in names if model.fusion.reads_logits or "classifier" not in key
    }
    for k in range(3):
        assert reached(F.cross_entropy(output.expert_logits[:, k], labels)) == {
            key for key in names if key.startswith(f"experts.{k}.")
        }


@every_pair
def test_one_step_down_the_gradient_lowers_the_loss(expert: str, fusion: str) -> None:
    model = tiny_model(expert, fusion).double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            module.eval()  # the same function before and after the step
    images, labels = torch.randn(8, 3, 16, 16).double(), torch.arange(8) % CLASSES
    before = F.cross_entropy(model(images).logits, labels)
    before.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    squared_norm = sum(float(g.square().sum()) for g in gradients)
    step = 1e-4 / squared_norm  # the loss should fall by 1e-4 to first order
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= step * parameter.grad
        after = F.cross_entropy(model(images).logits, labels)
    assert (before - after).item() == pytest.approx(1e-4, rel=0.2)


@every_pair
def test_state_survives_a_file(expert: str, fusion: str) -> None:
    saved, loaded = tiny_model(expert, fusion, seed=0), tiny_model(expert, fusion, seed=1)
    images = torch.randn(2, 3, 16, 16)
    saved(images)  # moves the running statistics of the norms
    saved.eval(), loaded.eval()
    assert not torch.equal(saved(images).logits, loaded(images).logits)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(saved(images), loaded(images), strict=True))


@every_pair
def test_bf16_autocast(expert: str, fusion: str) -> None:
    model = tiny_model(expert, fusion)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(4, 3, 16, 16))
    assert output.logits.dtype == torch.bfloat16
    if "vit" not in expert:  # whose last layer is a norm, which autocast leaves in float32
        assert output.features.dtype == torch.bfloat16
    (output.logits.float().square().sum() + output.expert_logits.float().square().sum()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), key


@every_pair
def test_a_training_step_reads_nothing_back(expert: str, fusion: str) -> None:
    with fake_cuda() as watch:
        model = tiny_model(expert, fusion).to(CUDA)
        images = torch.randn(2, 3, 16, 16, device=CUDA)
        watch.waits.clear()  # of weights that were moved
        model(images).logits.sum().backward()
        assert watch.waits == []
