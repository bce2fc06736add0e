"""A user's own parts, and what is said of mistakes in them."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fusionrun.common.plugins import load_plugin, source_hash
from fusionrun.data.datasets import DataError, as_arrays, load_dataset
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.study import Study
from tests.tiny import write_recipe


def plan(folder: Path, *overrides: str) -> Study:
    return plan_study(load_recipe(write_recipe(folder), overrides), "tiny.yaml")


def test_two_names_of_one_file_are_of_one_module(parts: Path) -> None:
    patches, gated = (load_plugin(f"my_parts.py:{name}") for name in ("Patches", "Gated"))
    assert load_plugin(f"{parts}:Patches") is patches
    assert sys.modules[patches.__module__].Gated is gated  # type: ignore[attr-defined]


def test_their_arguments_are_checked_and_part_of_the_settings(parts: Path) -> None:
    own = [
        "plugins={patches: my_parts.py:Patches}",
        "rows=[{model: patches, fusion: concatenation}]",
    ]
    study = plan(parts.parent, *own, "models.patches={width: 8}")
    settings = study.identity(study.tasks[0]).fields
    assert settings["plugins.patches"] == f"Patches (source {source_hash('my_parts.py:Patches')})"
    assert settings["models.patches.width"] == 8
    assert study.build_expert("patches", 2).feature_dim == 8
    with pytest.raises(RecipeError, match=r"models\.patches\.widht.*did you mean 'width'"):
        plan(parts.parent, *own, "models.patches={widht: 8}")


LATER = ("alignedMultiplicative", "alignedAddition", "gated", "meanLogits")


@pytest.mark.parametrize("fusion", LATER)
def test_a_name_that_the_package_has_by_now_is_still_the_plug_ins(parts: Path, fusion: str) -> None:
    """A study that called its own fusion so trains on with it, and as it did."""

    def planned(name: str) -> Study:
        rows = f"rows=[{{model: resnet, fusion: {name}, control: frozen}}]"
        return plan(parts.parent, f"plugins={{{name}: my_parts.py:Gated}}", rows)

    study, other = planned(fusion), planned("mine")
    experts = [study.build_expert("resnet", 4) for _ in range(2)]
    assert type(study.build_fusion(fusion, experts)) is load_plugin("my_parts.py:Gated")
    assert study.fusion_defaults(fusion) == other.fusion_defaults("mine")
    assert study.rates(fusion, 64) == other.rates("mine", 64)
    assert study.rates(fusion, 64) == pytest.approx((1.3e-4, 1.2e-3, 1.2e-3))


NOTHING_TO_LEARN = """
from fusionrun import FusionModule


class Largest(FusionModule):
    reads_logits = True

    def fuse(self, logits):
        return logits.amax(dim=1)
"""


@pytest.mark.parametrize("fusion", ["meanLogits", "largest"])
def test_a_row_of_which_nothing_would_learn_is_refused(parts: Path, fusion: str) -> None:
    (parts.parent / "largest.py").write_text(NOTHING_TO_LEARN)
    words = ["plugins={largest: largest.py:Largest}", f"rows=[{{model: resnet, fusion: {fusion}}}]"]
    study = plan(parts.parent, *words)
    experts = [study.build_expert("resnet", 4) for _ in range(2)]
    assert study.build_fusion(fusion, experts).reads_logits
    words[1] = words[1].replace("}]", ", control: frozen}]")
    expected = f"rows.0.control: found frozen, expected null or detached: {fusion} has no weights"
    with pytest.raises(RecipeError, match=re.escape(expected)):
        plan(parts.parent, *words)


def test_comments_and_folders_are_no_part_of_a_plug_in(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("# mine\nx = 1\n")
    (tmp_path / "b.py").write_text("x = 1  \n\n# yours\n")
    (tmp_path / "c.py").write_text("x = 2\n")
    one, other, changed = (source_hash(f"{tmp_path / name}.py:x") for name in "abc")
    assert one == other != changed


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ("{net: nowhere.py:Net}", "plugins.net: 'nowhere.py:Net': found no file"),
        ("{net: my_parts.py:Nett}", "my_parts.py has no 'Nett', only"),
        ("{net: my_parts.py}", "plugins.net"),
        ("{resnet: my_parts.py:Patches}", "plugins.resnet: expected a new name"),
        ("{a/b: my_parts.py:Patches}", "expected a new name, of letters"),
        ("{net: my_parts.py:Tensor}", "found Tensor, expected a subclass of"),
        ("{net: broken.py:Net}", "broken.py fails, line 2: ZeroDivisionError"),
    ],
)
def test_mistakes_are_named(parts: Path, plugins: str, words: str) -> None:
    (parts.parent / "broken.py").write_text("x = 0\ny = 1 / x\n")
    with pytest.raises(RecipeError, match=re.escape(words)):
        plan(parts.parent, f"plugins={plugins}")


FAILING = """
from torch import nn

from fusionrun import Expert, FusionModule


class Trunk(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.conv(x))


class Built(Expert):
    def __init__(self, num_classes):
        raise KeyError("width")


class Asserts(Expert):
    def __init__(self, num_classes):
        assert num_classes == 1000


class Runs(Expert):
    def __init__(self, num_classes):
        super().__init__(num_classes, Trunk(lambda x: x[3, 4]), 8)


class Tokens(Expert):
    def __init__(self, num_classes):
        super().__init__(num_classes, Trunk(lambda x: x.flatten(2).mT), 8)


class Fuses(FusionModule):
    def fuse(self, features):
        return {}["features"]


class Keeps(FusionModule):
    def fuse(self, features):
        return features


def data(request):
    return {}["images"]
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Built", "models.net: failing.py fails, line 19: KeyError: 'width'"),
        ("Asserts", "models.net: failing.py fails, line 24: AssertionError: no message"),
        ("Runs", "models.net: given 16x16 images: failing.py fails, line 29: IndexError: index 3"),
        ("Tokens", "models.net: given 16x16 images: Tokens: its trunk gives shape (1, 196, 8)"),
        ("Fuses", "rows.0.fusion: failing.py fails, line 39: KeyError: 'features'"),
        ("Keeps", "rows.0.fusion: fuse gives (2, 2, 8) of 2 images, expected one vector each"),
    ],
)
def test_what_fails_inside_a_part_is_found_before_anything_trains(
    parts: Path, name: str, words: str
) -> None:
    (parts.parent / "failing.py").write_text(FAILING)
    row = "model: net, fusion: concatenation" if "net" in words else "model: resnet, fusion: net"
    with pytest.raises(RecipeError, match=re.escape(words)):
        plan(parts.parent, f"plugins={{net: failing.py:{name}}}", f"rows=[{{{row}}}]")


def test_a_data_set_of_ones_own_that_fails_is_told_of_in_a_line(parts: Path) -> None:
    (parts.parent / "failing.py").write_text(FAILING)
    with pytest.raises(DataError, match=r"failing\.py fails, line 48: KeyError: 'images'"):
        load_dataset("failing.py:data", root=parts.parent)


def test_a_data_set_must_be_what_as_arrays_returns(parts: Path) -> None:
    parts.write_text("def mine(request):\n    return 1\n\nother = 3\n")
    with pytest.raises(DataError, match="found int, expected what as_arrays returns"):
        load_dataset("my_parts.py:mine", root=parts.parent)
    with pytest.raises(DataError, match="expected a function of a Request"):
        load_dataset("my_parts.py:other", root=parts.parent)


def test_as_arrays_refuses_what_cannot_be_trained_on() -> None:
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    good = as_arrays(images, labels, images[:2], labels[:2], ["a", "b"])
    assert good.fingerprint != as_arrays(images + 1, labels, images, labels, "ab").fingerprint
    with pytest.raises(DataError, match=r"train images float64 .* expected \(N, 3, H, W\) uint8"):
        as_arrays(images / 255, labels, images, labels, ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="train labels: found 0 to 1, expected 0 to 0"):
        as_arrays(images, labels, images, labels, ["a"])
    with pytest.raises(DataError, match="test images"):
        as_arrays(images, labels, images[:, :, :4], labels, ["a", "b"])
    with pytest.raises(DataError, match="expected"):
        as_arrays(images[:, :1], labels, images[:, :1], labels, ["a", "b"])
