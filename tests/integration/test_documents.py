"""The documents' Python and recipes run as they stand there."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusionrun.cli import main
from tests.tiny import ROOT, copy_study


def test_the_page_of_the_python_api(
    tiny_study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs").mkdir()
    copy_study(tiny_study / "out", tmp_path / "runs/demo")
    shutil.copy(tiny_study / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.S | re.M
    )
    names: dict[str, Any] = {}
    exec("\n".join(blocks).replace('"demo"', '"tiny.yaml"'), names)
    assert torch.allclose(names["probabilities"].sum(dim=1), torch.ones(8))
    assert len(names["evaluation"].rows) == 4
    printed = capsys.readouterr().out
    assert "resnet + multiplicativeAddition " in printed
    assert "resnet + multiplicativeAddition: " in printed


@pytest.mark.slow
def test_images_of_ones_own_on_a_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's recipe, but for the weights that would be downloaded."""
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/data.md").read_text(), re.S | re.M)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(recipe)
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("test", 10)):
        for label, shade in (("dark", 60), ("light", 190)):
            folder = Path("FOLDER", part, label)
            folder.mkdir(parents=True)
            for k in range(count // 2):
                pixels = rng.integers(shade - 40, shade + 40, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    model = "models.timm:resnet18.a1_in1k"
    words = [f"{model}.pretrained=null", f"{model}.image_size=32", "data.image_size=32"]
    words += ["data.val_fraction=0.25", "experts.epochs=1", "fusion.epochs=1"]
    words += ["runtime.device=cpu", "runtime.threads=1", "logs.tensorboard=false"]
    assert main(["train", "mine.yaml", *words]) == 0
    assert main(["preview", "runs/mine", "--seeds", "1", "--epochs", "2"]) == 0
    ranked = capsys.readouterr().out
    assert "timm:resnet18.a1_in1k" in ranked and "multiplicativeShifted" in ranked
