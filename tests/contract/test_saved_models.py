"""What is saved of any experts under any fusion comes back, here and in other people's programs."""

import dataclasses
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusionrun.components.export import export
from fusionrun.components.store import (
    ComponentInfo,
    load_expert,
    load_model,
    save_model,
    state_hash,
)
from fusionrun.experts import Expert
from fusionrun.fusions import FUSIONS
from fusionrun.study.paths import RowFiles
from tests.contract.test_expert_fusion import (
    CLASSES,
    KINDS,
    MIXED,
    TINY,
    TRAINED_ON,
    every_pair,
    members,
    tiny_model,
)

# each kind and each fusion, once or twice: an export takes seconds
SAMPLED = list(zip(cycle(KINDS), FUSIONS, strict=False))


def save_row(directory: Path, kind: str, fusion: str) -> RowFiles:
    """A row whose running statistics have moved."""
    num_experts = len(MIXED) if kind == "mixed" else 2
    model = tiny_model(kind, fusion, num_experts)
    for _ in range(3):
        model.train()(torch.randn(8, 3, 16, 16))
    info = ComponentInfo(
        component="row",
        model=kind,
        arguments={},
        num_classes=CLASSES,
        feature_dim=model.fusion.feature_dim,
        num_experts=num_experts,
        classes=list(TRAINED_ON.classes),
        mean=list(TRAINED_ON.mean),
        std=list(TRAINED_ON.std),
        image_size=TRAINED_ON.image_size,
        epoch=2,
        val_accuracy=50.0,
        fusion=fusion,
    )
    own = []
    for name, expert in zip(members(kind, num_experts), model.experts, strict=True):
        assert isinstance(expert, Expert)
        more = {"arguments": TINY.get(name, {}), "feature_dim": expert.feature_dim}
        own.append(dataclasses.replace(info, model=name, **more))
    files = RowFiles(directory, csv=Path())
    save_model(files, model.eval(), info, own, {"settings": {}, "validation": {}, "test": {}})
    assert state_hash(load_model(directory).state_dict()) == state_hash(model.state_dict())
    expected, images = model.predict(make_images()), make_images()
    assert torch.equal(load_model(directory).predict(images), expected)
    return files


def make_images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))


@every_pair
def test_a_saved_row_answers_as_before(tmp_path: Path, expert: str, fusion: str) -> None:
    files = save_row(tmp_path, expert, fusion)
    whole, _ = export(tmp_path, "safetensors", None)
    images = make_images()
    model = load_model(tmp_path)
    assert torch.equal(load_model(whole).predict(images), model.predict(images))
    for k, own in enumerate(model.experts):
        assert isinstance(own, Expert)
        assert torch.equal(load_expert(files.expert(k)).predict(images), own.predict(images))
    assert files.adapters.exists() == (expert == "mixed" and model.is_adapted)
    assert model.is_adapted == (expert == "mixed" and fusion != "meanLogits")


@pytest.mark.parametrize("format_name", ["torch_export", "onnx"])
@pytest.mark.parametrize(("expert", "fusion"), SAMPLED)
def test_an_exported_row_answers_as_before(
    tmp_path: Path, expert: str, fusion: str, format_name: str
) -> None:
    """Images in 0..1: their normalisation and resizing are inside."""
    save_row(tmp_path, expert, fusion)
    path, _ = export(tmp_path, format_name, None)
    for count in (1, 3):
        images = make_images(count)
        if format_name == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        else:
            logits = torch.export.load(path).module()(images)
        expected = load_model(tmp_path).predict(images)
        torch.testing.assert_close(logits.softmax(dim=1), expected, rtol=1e-4, atol=1e-5)
