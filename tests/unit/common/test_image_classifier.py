"""What a loaded network answers is what the same network answers by hand; the rest is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.common.image_classifier import BATCH, TrainedOn
from fusionrun.experts import Expert, build_expert
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.fusions.branches import in_threads

CLASSES, SIZE = 5, 8
KNOWN = TrainedOn(tuple("abcde"), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), SIZE)


def make_expert(seed: int = 0, known: TrainedOn | None = KNOWN) -> Expert:
    torch.manual_seed(seed)
    expert = build_expert("resnet", CLASSES, width=8, blocks=[1])
    for _ in range(3):  # batch norms that have seen images
        expert.train()(torch.randn(6, 3, SIZE, SIZE))
    if known is not None:
        expert.know(known)
    return expert.eval()


def make_model(*known: TrainedOn | None) -> FusionModel:
    experts = [make_expert(k, each) for k, each in enumerate(known)]
    return FusionModel(experts, build_fusion("concatenation", len(known), 8), CLASSES).eval()


def make_images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def by_hand(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (KNOWN.mean, KNOWN.std))
    return (images / 255 - mean) / std


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusion", ["concatenation", "meanLogits"])
def test_measured_logits_are_float32_under_autocast(fusion: str, half: torch.dtype) -> None:
    """Of the global head and of every expert, from features in half precision; also in threads."""
    experts = [make_expert(k) for k in range(2)]
    model = FusionModel(experts, build_fusion(fusion, 2, 8), CLASSES).eval()
    images = by_hand(make_images())
    with torch.no_grad(), torch.autocast("cpu", half):
        features = [expert.features(images) for expert in experts]
        output = model(images)
        assert torch.is_autocast_enabled("cpu")  # what comes after is as before
        with in_threads(model, lambda: 2):
            threaded = model(images)
    assert all(each.dtype == half for each in features)
    expected = [e.classifier(f.float()) for e, f in zip(experts, features, strict=True)]
    assert torch.equal(output.expert_logits, torch.stack(expected, dim=1))
    assert output.logits.dtype == output.expert_logits.dtype == torch.float32
    assert all(map(torch.equal, output, threaded))
    if fusion == "concatenation":
        with torch.no_grad(), torch.autocast("cpu", half):
            fused = model.fusion(output.features)
        assert torch.equal(output.logits, model.global_head(fused.float()))


def test_what_learns_is_computed_as_ever_under_autocast() -> None:
    """In a training step, and of frozen experts, which are in evaluation mode during one."""
    model, images = make_model(KNOWN, KNOWN), by_hand(make_images())
    for mode in (True, False):
        model.train(mode)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(images)
        assert output.logits.dtype == output.expert_logits.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # a first pass of two
        assert model.train()(images).logits.dtype == torch.bfloat16


def test_a_head_that_fails_leaves_autocast_on() -> None:
    expert, images = make_expert(), by_hand(make_images())
    expert.classifier = nn.Linear(3, CLASSES)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            expert.eval()(images)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", ["expert", "fused"])
def test_it_is_the_softmax_of_what_the_network_says(kind: str) -> None:
    network = make_expert() if kind == "expert" else make_model(KNOWN, KNOWN)
    images = make_images()
    answer = network(by_hand(images))
    expected = (answer[1] if kind == "expert" else answer.logits).softmax(dim=1)
    found = network.predict(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(network.predict(images / 255), expected)
    torch.testing.assert_close(network.predict((images / 255).double()), expected)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(images)))


def test_any_number_of_images() -> None:
    network = make_expert()
    images = make_images(BATCH + 3)
    found = network.predict(images)
    torch.testing.assert_close(found[-3:], network.predict(images[-3:]))
    assert found.shape == (BATCH + 3, CLASSES)
    assert network.predict(images[:0]).shape == (0, CLASSES)
    assert network.predict(images[:1]).shape == (1, CLASSES)


def test_asking_changes_nothing() -> None:
    model = make_model(KNOWN, KNOWN)
    expected = model.predict(make_images())
    model.train()
    model.experts[0].eval()  # as a frozen one
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model.predict(make_images()), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError):
        model.predict(make_images().long())
    assert [module.training for module in model.modules()] == modes


def test_what_it_knows_is_no_weight() -> None:
    plain, knowing = make_model(None, None), make_model(KNOWN, KNOWN)
    assert list(plain.state_dict()) == list(knowing.state_dict())
    assert (knowing.classes, knowing.image_size) == (KNOWN.classes, SIZE)
    assert (knowing.mean, knowing.std) == (KNOWN.mean, KNOWN.std)


def test_experts_that_disagree_leave_their_model_ignorant() -> None:
    other = TrainedOn(KNOWN.classes, (0.1, 0.1, 0.1), KNOWN.std, SIZE)
    for model in (make_model(KNOWN, other), make_model(KNOWN, None), make_model(None, None)):
        with pytest.raises(ValueError, match="wasn't loaded from a file"):
            model.predict(make_images())


def test_a_plug_ins_own_buffer_is_left_alone() -> None:
    class Own(Expert):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes, nn.Conv2d(3, 4, 3), feature_dim=4)
            self.register_buffer("mean", torch.full((1, 3, 1, 1), 2.0))
            self.classes = 7

        def features(self, images: Tensor) -> Tensor:
            return super().features(images - self.mean)

    expert = Own(CLASSES)
    expert.know(KNOWN)
    assert torch.equal(expert.mean, torch.full((1, 3, 1, 1), 2.0)) and expert.classes == 7
    expected = expert(by_hand(make_images()))[1].softmax(dim=1)
    torch.testing.assert_close(expert.predict(make_images()), expected)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[0.0]], "found list"),
        (make_images().numpy(), "found ndarray"),
        (make_images()[0], r"found shape \(3, 8, 8\)"),
        (make_images()[:, :1], r"found shape \(6, 1, 8, 8\)"),
        (make_images()[:, :, :4], r"found shape \(6, 3, 4, 8\)"),
        (torch.zeros(2, 3, 16, 16), r"expected a tensor \(N, 3, 8, 8\)"),
        (make_images().long(), "found torch.int64"),
        (make_images().bool(), "found torch.bool"),
        (make_images().float(), "found values from 0 to 255"),
        (by_hand(make_images()), "they are normalised here"),
        (torch.full((2, 3, SIZE, SIZE), float("nan")), "found values from nan"),
    ],
)
def test_images_of_another_kind(images: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_expert().predict(images)
