"""`export`: the written program, loaded without fusionrun's classes, answers as the components."""

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fusionrun.cli import main
from fusionrun.components import export as exporting
from fusionrun.components.export import FORMATS, Deployed, Format, compare
from fusionrun.components.read_checkpoint import load_expert_weights
from fusionrun.components.store import (
    ComponentInfo,
    load_component,
    load_expert,
    load_fusion_module,
    load_global_head,
    load_model,
    save_component,
    save_model,
    save_single,
    state_hash,
)
from fusionrun.experts import build_expert
from fusionrun.fusions import FUSIONS, FusionModel, FusionModule, build_fusion
from fusionrun.study.paths import RowFiles
from fusionrun.training.checkpoint import CheckpointError, has_checksums, load, save

CLASSES, SIZE, EXPERTS = 5, 16, 2
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
ARGUMENTS: dict[str, Any] = {"width": 8, "blocks": [1]}


def make_row(directory: Path, fusion: str) -> RowFiles:
    """A saved row whose batch norms have seen images and whose weights have moved."""
    torch.manual_seed(4)
    experts = [build_expert("resnet", CLASSES, **ARGUMENTS) for _ in range(EXPERTS)]
    model = FusionModel(experts, build_fusion(fusion, EXPERTS, experts[0].feature_dim), CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(3):
            model.train()(torch.randn(6, 3, SIZE, SIZE))
    about = ComponentInfo(
        component="row",
        model="resnet",
        arguments=ARGUMENTS,
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
    each = [dataclasses.replace(about, val_accuracy=50.0 + 5 * k) for k in range(EXPERTS)]
    save_model(files, model.eval(), about, each, nothing)
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


# other experts and fusions: tests/contract/test_saved_models.py
def test_a_torch_program_answers_as_the_components(row: RowFiles) -> None:
    assert main(["export", str(row.directory)]) == 0
    program = torch.export.load(row.directory / "model.pt2").module()
    for count in (1, 5, 7):
        images = random_images(count)
        expected = by_hand(row, images)
        assert expected.std() > 0.01
        found = program(images)
        assert found.shape == (count, CLASSES)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_onnx_program_answers_as_the_components(row: RowFiles, tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "elsewhere" / "fused.onnx"
    assert main(["export", str(row.directory), "--format", "onnx", "--output", str(path)]) == 0
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5, 7):
        images = random_images(count)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        expected = by_hand(row, images)
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
    experts = [build_expert("resnet", CLASSES, **ARGUMENTS) for _ in range(EXPERTS)]
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


LACKING = [
    ("onnx", {"onnxscript", "onnxruntime"}, "onnxscript onnxruntime"),
    ("safetensors", {"safetensors"}, "safetensors"),
]


@pytest.mark.parametrize(("name", "lacking", "words"), LACKING)
def test_packages_that_are_lacking_are_named(
    row: RowFiles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    lacking: set[str],
    words: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if module in lacking else find(module)
    )
    assert main(["export", str(row.directory), "--format", name]) == 2
    expected = f"fusionrun: {name} needs more packages: pip install {words}\n"
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
    path = files.directory / "model.pt2"
    assert text.startswith(f"fusionrun: {path}: not written: torch_export can't follow the model: ")
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


# --- experts and single networks -----------------------------------------------------------------


def test_an_experts_file_is_exported_as_a_program_of_its_own(row: RowFiles) -> None:
    assert main(["export", str(row.expert(1))]) == 0
    files = {"fusionrun.json": ""}
    path = row.expert(1).with_suffix(".pt2")
    program = torch.export.load(path, extra_files=files).module()
    images = random_images(5)
    expected = load_expert(row.expert(1)).predict(images)
    torch.testing.assert_close(program(images).softmax(dim=1), expected)
    assert json.loads(files["fusionrun.json"])["experts"] == ["resnet 1"]


def test_an_expert_of_its_own_classes_is_compared_by_what_it_answers(
    row: RowFiles, tmp_path: Path
) -> None:
    """The logits of the other classes are so low that beside them a wrong answer would pass."""
    expert = load_expert(row.expert(0))
    expert.answer_only([1, 2])
    about = dataclasses.replace(load_component(row.expert(0), "expert")[0], own_classes=[1, 2])
    save_component(tmp_path / "own.pth", expert, about)
    export_weights(tmp_path / "own.pth")
    assert main(["export", str(tmp_path / "own.safetensors")]) == 0
    files = {"fusionrun.json": ""}
    program = torch.export.load(tmp_path / "own.pt2", extra_files=files).module()
    images, expected = random_images(3), load_expert(tmp_path / "own.pth").predict(random_images(3))
    torch.testing.assert_close(program(images).softmax(dim=1), expected)
    assert "-10000 of the classes" in json.loads(files["fusionrun.json"])["output"]
    model = Deployed(expert, MEAN, STD).eval()
    with torch.no_grad():
        _, tolerance = compare(model, model, [images])
    assert tolerance < 1e-3


def test_a_row_that_is_one_network_is_exported_too(row: RowFiles, tmp_path: Path) -> None:
    single = RowFiles(tmp_path / "single", csv=Path())
    about = load_component(row.expert(0), "expert")[0]
    nothing: dict[str, Any] = {"settings": {}, "validation": {}, "test": {}, "fusion": "single"}
    save_single(single, load_expert(row.expert(0)), about, nothing)
    for format_name in ("torch_export", "safetensors"):
        assert main(["export", str(single.directory), "--format", format_name]) == 0
    images, expected = random_images(3), load_expert(row.expert(0)).predict(random_images(3))
    program = torch.export.load(single.directory / "model.pt2").module()
    torch.testing.assert_close(program(images).softmax(dim=1), expected)
    assert torch.equal(
        load_expert(single.directory / "model.safetensors").predict(images), expected
    )


def test_only_a_network_becomes_a_program(
    row: RowFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(row.global_head)]) == 1
    words = f"{row.global_head} takes no images (found global_head); export its row's folder"
    assert words in capsys.readouterr().err
    path = tmp_path / "theirs.pth"
    torch.save(load(row.expert(0))["state_dict"], path)
    assert main(["export", str(path)]) == 1
    assert f"{path}: not saved by fusionrun" in capsys.readouterr().err


# --- weights -------------------------------------------------------------------------------------


def export_weights(source: Path, *more: str | Path) -> None:
    assert main(["export", str(source), "--format", "safetensors", *map(str, more)]) == 0


def test_a_rows_weights_are_one_file_that_anybody_can_read(
    row: RowFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_weights(row.directory)
    path = row.directory / "model.safetensors"
    assert capsys.readouterr().out.startswith(f"{path}: ")
    saved, found = load_model(row.directory), load_model(path)
    assert not any(module.training for module in found.modules())
    images = random_images(3)
    assert all(torch.equal(a, b) for a, b in zip(saved(images), found(images), strict=True))
    assert torch.equal(saved.predict(images), found.predict(images))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "pt"
    said = json.loads(header["fusionrun"])
    assert said["components"]["expert_1"]["val_accuracy"] == 55.0
    assert said["weights"] == state_hash(load_file(path)) == state_hash(saved.state_dict())
    # what it was made of can be gone, and the file elsewhere under another name
    path = path.rename(tmp_path / "mine")
    shutil.rmtree(row.directory)
    assert torch.equal(load_model(path).predict(images), found.predict(images))
    assert main(["export", str(path), "--output", str(tmp_path / "mine.pt2")]) == 0
    program = torch.export.load(tmp_path / "mine.pt2").module()
    torch.testing.assert_close(program(images).softmax(dim=1), found.predict(images))


def test_every_component_is_exported_alone(row: RowFiles, tmp_path: Path) -> None:
    loaders = {
        "expert": (row.expert(1), load_expert),
        "fusion_module": (row.fusion_module, load_fusion_module),
        "global_head": (row.global_head, load_global_head),
    }
    for kind, (path, load_it) in loaders.items():
        export_weights(path)
        copy = path.with_suffix(".safetensors")
        assert load_component(copy, kind)[0] == load_component(path, kind)[0]
        assert state_hash(load_it(copy).state_dict()) == state_hash(load_it(path).state_dict())
    # rows start from such an expert, and assembled models have such parts
    expert = build_expert("resnet", CLASSES, **ARGUMENTS)
    found = load_expert_weights(expert, row.expert(1).with_suffix(".safetensors"))
    assert found.origin == "epoch 7, validation 55.00 %" and not found.notes
    plan, out = tmp_path / "plan.yaml", tmp_path / "assembled"
    experts = [
        str(row.expert(k).with_suffix(suffix)) for k, suffix in enumerate([".pth", ".safetensors"])
    ]
    head = str(row.global_head.with_suffix(".safetensors"))
    plan.write_text(
        json.dumps({"experts": experts, "fusion": str(row.directory), "global_head": head})
    )
    assert main(["assemble", str(plan), str(out)]) == 0
    expected = load_model(row.directory).state_dict()
    assert state_hash(load_model(out).state_dict()) == state_hash(expected)
    assert all(has_checksums(path) for path in out.rglob("*.pth"))


def test_weights_that_changed_since_are_refused(
    row: RowFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, name in ((row.directory, "model"), (row.expert(0), "expert_0_best")):
        export_weights(source, "--output", row.directory)
        path = row.directory / f"{name}.safetensors"
        whole = path.read_bytes()
        for position in (len(whole) - 1, len(whole) // 2):
            changed = bytearray(whole)
            changed[position] ^= 1
            path.write_bytes(changed)
            assert main(["export", str(path), "--format", "safetensors"]) == 1
            assert "is damaged" in capsys.readouterr().err
        for length in (len(whole) - 1, 100, 4):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=str(path)):
                load_model(path)


def test_each_loader_says_what_a_file_of_weights_is(row: RowFiles) -> None:
    export_weights(row.directory)
    whole = row.directory / "model.safetensors"
    with pytest.raises(CheckpointError, match="holds a whole model"):
        load_expert(whole)
    with pytest.raises(CheckpointError, match=r"holds a single network; load_expert\("):
        load_model(row.expert(0))
    with pytest.raises(CheckpointError, match="holds a part of a model"):
        load_model(row.fusion_module)


def test_an_earlier_export_is_replaced_and_a_failed_one_leaves_it(
    row: RowFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"an earlier one")
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "state_hash", lambda state: str(id(state)))
        assert (
            main(["export", str(row.directory), "--format", "safetensors", "--output", str(path)])
            == 1
        )
    assert f"{path}: not written: read again, it holds" in capsys.readouterr().err
    assert path.read_bytes() == b"an earlier one"
    export_weights(row.directory, "--output", path)
    assert load_model(path) and sorted(tmp_path.iterdir()) == [path, row.directory]
