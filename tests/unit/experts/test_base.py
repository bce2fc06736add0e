"""What every expert does with the trunk and the images that it is given."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionrun.common.image_classifier import TrainedOn
from fusionrun.experts import Expert, build_expert

KNOWN = TrainedOn(("a", "b"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 16)
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
SMALL = {"blocks": [1, 1], "width": 8}


def test_a_trunk_keeps_the_weights_that_it_comes_with() -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    nn.init.constant_(trunk[1].weight, 0.5)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    expert = Expert(2, trunk, 4)
    assert all(torch.equal(before[n], v) for n, v in expert.trunk.state_dict().items())
    bound = (6 / (4 + 2)) ** 0.5
    assert expert.classifier.weight.abs().max() <= bound
    assert (expert.classifier.bias == 0).all()


def test_a_trunk_gives_maps_or_vectors() -> None:
    images = torch.randn(5, 3, 8, 8)
    maps = Expert(2, nn.Conv2d(3, 4, 3), 4)
    vectors = Expert(2, nn.Sequential(maps.trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4)
    vectors.classifier.load_state_dict(maps.classifier.state_dict())
    for one, other in zip(maps(images), vectors(images), strict=True):
        torch.testing.assert_close(one, other)


class Gives(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> object:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (torch.zeros(2, 7, 4), r"shape \(2, 7, 4\)"),  # a transformer's tokens
        (torch.zeros(2, 3, 3, 4), r"shape \(2, 3, 3, 4\)"),  # channels last
        (torch.zeros(2, 5), r"shape \(2, 5\)"),
        ((torch.zeros(2, 4), torch.zeros(2, 4)), "a tuple"),
        ({"out": torch.zeros(2, 4)}, "a dict"),
    ],
)
def test_what_else_a_trunk_gives_is_refused(answer: object, found: str) -> None:
    with pytest.raises(ValueError, match=rf"its trunk gives {found}, expected maps \(N, 4, h, w\)"):
        Expert(2, Gives(answer), 4)(torch.zeros(2, 3, 8, 8))


def test_images_are_brought_to_the_trunks_normalisation_and_size() -> None:
    torch.manual_seed(0)
    expert = build_expert("resnet", 2, **SMALL, normalisation="imagenet", image_size=24).eval()
    plain = build_expert("resnet", 2, **SMALL).eval()
    assert list(expert.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(expert.state_dict())
    pixels = torch.rand(4, 3, 16, 16)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (KNOWN.mean, KNOWN.std))
    by_loader = (pixels - mean) / std
    with pytest.raises(ValueError, match=r"doesn't know that of its images"):
        expert(by_loader)
    expert.know(KNOWN)
    larger = F.interpolate((pixels - IMAGENET[0]) / IMAGENET[1], (24, 24), mode="bilinear")
    torch.testing.assert_close(expert(by_loader)[1], plain(larger)[1])
    torch.testing.assert_close(expert.predict(pixels), plain(larger)[1].softmax(dim=1))
    assert expert.image_size == 16  # of what it is asked about


def test_smaller_inputs_are_antialiased() -> None:
    expert = build_expert("resnet", 2, **SMALL, image_size=8)
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    assert expert.inputs(checks.expand(1, 3, 16, 16)).abs().max() < 0.2


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("image_size", 7, "8 to 384 pixels, found 7"),
        ("image_size", 0, "8 to 384 pixels, found 0"),
        ("image_size", True, "8 to 384 pixels, found True"),
        ("image_size", 385, "found 385"),
        ("image_size", "64", "image_size must be a whole number"),
        ("normalisation", "imagnet", "data, imagenet or"),
        ("normalisation", [[0.5, 0.5, 0.5]], "data, imagenet or"),
        ("normalisation", [[0.5] * 3, [0.5, 0.5, 0]], "each std above 0"),
        ("normalisation", [[123.7, 116.3, 103.5], [58.4, 57.1, 57.4]], "pixels in 0..1"),
        ("normalisation", [[0.5] * 3, ["0.5"] * 3], "must be a number"),
        ("normalisation", [0.5, 0.5], "data, imagenet or"),
    ],
)
def test_inputs_that_no_trunk_can_have(argument: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_expert("resnet", 2, **{argument: value})


def test_the_first_stages_are_frozen() -> None:
    expert = build_expert("resnet", 2, **SMALL)
    assert [stage[0].split(".")[0] for stage in expert.stages()] == ["stem", "stage1", "stage2"]
    expert.freeze(2)
    learns = {name for name, weight in expert.named_parameters() if weight.requires_grad}
    assert {name.split(".")[1] for name in learns if name.startswith("trunk")} == {"stage2"}
    assert {name for name in learns if "classifier" in name}
    parts = [expert.trunk.stem, expert.trunk.stem_norm, expert.trunk.stage1]
    assert list(expert.frozen) == parts
    with pytest.raises(ValueError, match=r"found 4, its trunk has 3, which begin with stem, stage"):
        expert.freeze(4)
