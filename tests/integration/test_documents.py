"""The documents' Python runs as it stands there."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

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
