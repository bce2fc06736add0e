"""A user's own parts: the documents' example, trained as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from fusionrun.components.store import load_expert, load_model
from tests.tiny import ROOT, alone

PAGE = (ROOT / "docs/own-parts.md").read_text()
CODE, COMMAND = re.findall(r"```(?:python|bash)\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's my_parts.py in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text(CODE)
    return tmp_path / "my_parts.py"


def test_the_example_of_the_documents_runs(parts: Path) -> None:
    words = shlex.split(COMMAND.replace("\\\n", " "))
    assert words[:3] == ["bash", "launch.sh", "configs/demo.yaml"]
    short = ["experts.epochs=1", "fusion.epochs=1", "experts.count=2", "logs.tensorboard=false"]
    folder = parts.parent
    done = alone("train", ROOT / words[2], *words[3:], *short, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    row = folder / "runs/own/patches_fusions/gated"
    model = load_model(row)
    assert type(model.fusion).__name__ == "Gated"
    expert = load_expert(row / "experts/expert_1_best.pth")
    features, logits = expert(torch.rand(2, 3, 32, 32))
    assert (features.shape, logits.shape) == ((2, 32), (2, 2))
    again = alone("evaluate", "runs/own", cwd=folder)
    assert again.returncode == 0, again.stderr
