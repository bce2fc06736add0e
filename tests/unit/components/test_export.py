"""`export`: the written program, loaded without fusionrun's classes, answers as the components."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fusionrun.cli import main
from fusionrun.components import export as exporting
from fusionrun.components.export import FORMATS, Deployed, Format, compare
from fusionrun.components.store import (
    ComponentInfo,
    load_expert,
    load_fusion_module,
    load_global_head,
    save_model,
)
from fusionrun.experts import build_expert
from fusionrun.fusions import FUSIONS, FusionModel, FusionModule, build_fusion
from fusionrun.study.paths import RowFiles
from fusionrun.training.checkpoint import load, save

CLASSES, SIZE, EXPERTS = 5, 16, 2
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "resnet": {"width": 8, "blocks": [1]},
    "densenet": {"growth": 4, "blocks": [2, 2], "stem": 8},
    "improved_wide_resnet": {"depth": 10, "widen": 1, "width": 2},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 4, "stem": 4},
}


def make_row(directory: Path, fusion: str, name: str = "resnet") -> RowFiles:
    """A saved row whose batch norms have seen images and whose weights have moved."""
    torch.manual_seed(4)
    experts = [build_expert(name, CLASSES, **ARGUMENTS[name]) for _ in range(EXPERTS)]
    model = FusionModel(experts, build_fusion(fusion, EXPERTS, experts[0].feature_dim), CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(3):
            model.train()(torch.randn(6, 3, SIZE, SIZE))
    about = ComponentInfo(
        component="row",
        model=name,
        arguments=ARGUMENTS[name],
        num_classes=CLASSES,
        feature_dim=experts[0].feature_dim,
        num_experts=EXPERTS,
        classes=[f"class {k}" for k in range(CLASSES)],
        mean=MEAN,
        std=STD,
        image_size=SIZE,
        epoch=7,
        val_accuracy=61.5,
        fusion=fusion,
    )
    files = RowFiles(directory, csv=Path())
    nothing: dict[str, Any] = {"settings": {}, "validation": {}, "test": {}}
    save_model(files, model.eval(), about, [50.0, 55.0], nothing)
    return files


@pytest.fixture
def row(tmp_path: Path) -> RowFiles:
    return make_row(tmp_path / "row", "multiplicativeAddition")


def by_hand(files: RowFiles, images: Tensor) -> Tensor:
    """Fused logits (N, C) of the saved components for images in 0..1."""
    normalised = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    with torch.no_grad():
        experts = [load_expert(files.expert(k)) for k in range(EXPERTS)]
        features = torch.stack([expert(normalised)[0] for expert in experts], dim=1)
        logits: Tensor = load_global_head(files.global_head)(
            load_fusion_module(files.fusion_module)(features)
        )
    return logits


def random_images(count: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))


KINDS = [("resnet", fusion) for fusion in FUSIONS] + [(name, "concatenation") for name in ARGUMENTS]


@pytest.mark.parametrize(("name", "fusion"), sorted({*KINDS}))
def test_a_torch_program_answers_as_the_components(tmp_path: Path, name: str, fusion: str) -> None:
    files = make_row(tmp_path / "row", fusion, name)
    assert main(["export", str(files.directory)]) == 0
    program = torch.export.load(files.directory / "model.pt2").module()
    for count in (1, 5, 7):
        images = random_images(count)
        expected = by_hand(files, images)
        assert expected.std() > 0.01
        found = program(images)
        assert found.shape == (count, CLASSES)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["multiplicativeAddition", "TransformerBase"])
def test_an_onnx_program_answers_as_the_components(tmp_path: Path, fusion: str) -> None:
    import onnxruntime

    files, path = make_row(tmp_path / "row", fusion), tmp_path / "elsewhere" / "fused.onnx"
    assert main(["export", str(files.directory), "--format", "onnx", "--output", str(path)]) == 0
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5, 7):
        images = random_images(count)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        expected = by_hand(files, images)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


WRONG = {
    "bytes": torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8),
    "float64": torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64),
    "half": torch.rand(2, 3, SIZE, SIZE).half(),
    "another size": torch.rand(2, 3, 2 * SIZE, 2 * SIZE),
    "channels behind": torch.rand(2, SIZE, SIZE, 3),
    "grey": torch.rand(2, 1, SIZE, SIZE),
    "one image without a batch": torch.rand(3, SIZE, SIZE),
}


def test_a_torch_program_refuses_other_images_and_names_its_classes(row: RowFiles) -> None:
    assert main(["export", str(row.directory)]) == 0
    files = {"fusionrun.json": ""}
    program = torch.export.load(row.directory / "model.pt2", extra_files=files).module()
    for images in WRONG.values():
        with pytest.raises((RuntimeError, AssertionError)):
            program(images)
    images = random_images(7)
    last = program(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, program(images))
    about = json.loads(files["fusionrun.json"])
    assert about["classes"] == [f"class {k}" for k in range(CLASSES)]
    assert (about["mean"], about["std"], about["image_size"]) == (MEAN, STD, SIZE)
    assert about["input"].startswith("images (N, 3, 16, 16), RGB, float32 scaled to 0..1")


def test_an_onnx_program_refuses_other_images_and_names_its_classes(row: RowFiles) -> None:
    import onnxruntime

    assert main(["export", str(row.directory), "--format", "onnx"]) == 0
    path = row.directory / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for images in WRONG.values():
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT|Invalid"):
            session.run(None, {"images": images.numpy()})
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == [f"class {k}" for k in range(CLASSES)]
    assert json.loads(about["mean"]) == MEAN and about["image_size"] == str(SIZE)


def test_it_says_what_it_wrote_and_how_equal(
    row: RowFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "fused.pt2"
    before = sorted(row.directory.rglob("*"))
    assert main(["export", str(row.directory), "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path}: images (N, 3, 16, 16) scaled to 0..1 -> logits (N, 5)")
    assert float(shown.split("saved model ")[1].split()[0]) < 1e-5
    assert sorted(row.directory.rglob("*")) == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def write_another(model: Deployed, images: Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    """As a converter with a defect in one weight would."""
    with torch.no_grad():
        model.model.global_head.bias[2] += 1e-3
    FORMATS["torch_export"].write(model, images, path, metadata)
    with torch.no_grad():
        model.model.global_head.bias[2] -= 1e-3


def test_a_program_that_answers_otherwise_is_not_left_behind(
    row: RowFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = FORMATS["torch_export"]
    path = row.directory / "model.pt2"
    path.write_bytes(b"an earlier one")
    bad = Format(good.suffix, write_another, good.load)
    monkeypatch.setattr(exporting, "FORMATS", {"torch_export": bad})
    before = sorted(row.directory.rglob("*"))
    assert main(["export", str(row.directory)]) == 1
    text = capsys.readouterr().err
    assert f"{path}: not written: loaded again, its logits differ by up to 1.0e-03" in text
    assert sorted(row.directory.rglob("*")) == before and path.read_bytes() == b"an earlier one"


def test_the_comparison_sees_every_difference() -> None:
    experts = [build_expert("resnet", CLASSES, **ARGUMENTS["resnet"]) for _ in range(EXPERTS)]
    fused = FusionModel(experts, build_fusion("concatenation", EXPERTS, 8), CLASSES)
    model = Deployed(fused, MEAN, STD).eval()
    batches = [random_images(1), random_images(5)]
    with torch.no_grad():
        largest = max(float(model(images).abs().max()) for images in batches)
        difference, tolerance = compare(model, model, batches)
        assert difference == 0 and tolerance == pytest.approx(1e-5 * max(largest, 1))
        # a last image, one class, and only in the larger batch
        late = torch.zeros(5, CLASSES)
        late[4, 3] = 0.25
        found, _ = compare(lambda x: model(x) + late if len(x) == 5 else model(x), model, batches)
        assert found == pytest.approx(0.25, abs=1e-5)
        short = compare(lambda x: model(x)[:1], model, batches)[0]
        undefined = torch.tensor(float("nan"))
        broken, _ = compare(
            lambda x: model(x) * undefined if len(x) == 5 else model(x), model, batches
        )
    assert short == float("inf") and not broken <= tolerance


def test_packages_that_are_lacking_are_named(
    row: RowFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    present = {"onnx": True, "onnxscript": False, "onnxruntime": False}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (present[name] or None) if name in present else find(name),
    )
    assert main(["export", str(row.directory), "--format", "onnx"]) == 1
    expected = "fusionrun: onnx needs more packages: pip install onnxscript onnxruntime\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("component", ["expert", "fusion_module", "global_head"])
def test_an_altered_component_is_refused(
    row: RowFiles, capsys: pytest.CaptureFixture[str], component: str
) -> None:
    path = row.expert(1) if component == "expert" else getattr(row, component)
    payload = load(path)
    next(iter(payload["state_dict"].values())).view(-1)[0] += 1e-6
    save(path, payload)
    assert main(["export", str(row.directory)]) == 1
    text = capsys.readouterr().err
    assert f"{path}: is not the file that {row.manifest} describes (sha256 differs)" in text
    assert not (row.directory / "model.pt2").exists()


class Moody(FusionModule):
    """Decides in Python by what the features are, which no program can hold."""

    def fuse(self, features: Tensor) -> Tensor:
        return features.sum(dim=1) if features.sum() > 0 else features.mean(dim=1)


def test_a_fusion_that_no_program_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FUSIONS, "moody", Moody)
    files = make_row(tmp_path / "row", "moody")
    before = sorted(files.directory.rglob("*"))
    assert main(["export", str(files.directory)]) == 1
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.startswith(f"fusionrun: {files.directory}: torch_export can't follow it: ")
    assert len(text) > 100 and sorted(files.directory.rglob("*")) == before


def test_what_cannot_be_exported_or_written(
    row: RowFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "nowhere")]) == 1
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    assert main(["export", str(row.directory), "--format", "torchscript"]) == 2
    assert "torchscript" in capsys.readouterr().err
    below = row.manifest / "model.pt2"
    assert main(["export", str(row.directory), "--output", str(below)]) == 1
    assert str(row.manifest) in capsys.readouterr().err
    folder = tmp_path / "folder.pt2"
    folder.mkdir()
    assert main(["export", str(row.directory), "--output", str(folder)]) == 0
    assert str(folder / "model.pt2") in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [folder, row.directory]
