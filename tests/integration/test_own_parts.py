"""A user's own parts: the documents' example, trained as it stands there."""

import shlex
from pathlib import Path

import torch

from fusionrun.components.store import load_expert, load_model
from tests.tiny import OWN_PARTS, ROOT, alone


def test_the_example_of_the_documents_runs(parts: Path) -> None:
    _, command = OWN_PARTS
    words = shlex.split(command.replace("\\\n", " "))
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
    (folder / "elsewhere").mkdir()
    again = alone("evaluate", "../runs/own", cwd=folder / "elsewhere")
    assert again.returncode == 0, again.stderr
    (folder / "my_parts.py").rename(folder / "elsewhere/parts.py")
    (folder / "runs/own").rename(folder / "elsewhere/own")
    lost = alone("evaluate", "own", cwd=folder / "elsewhere")
    assert lost.returncode == 2 and "plugins." in lost.stderr, lost.stderr
    names = {"patches": "Patches", "gated": "Gated", "stripes": "stripes"}
    found = [f"plugins.{name}=parts.py:{source}" for name, source in names.items()]
    again = alone("evaluate", "own", *found, cwd=folder / "elsewhere")
    assert again.returncode == 0, again.stderr
