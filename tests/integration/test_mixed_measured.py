"""A mixed row of a finished study: evaluate, preview, robustness, report, and what they wrote."""

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fusionrun
from fusionrun.cli import main
from fusionrun.components.store import load_expert
from fusionrun.fusions import FusionModel
from fusionrun.study.context import load_data
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from tests.tiny import copy_study, csv_numbers

MEMBERS = ("densenet 0", "resnet 1")
FUSION = "simpleAddition"
COMMANDS = (
    "evaluate OUT",
    "robustness OUT --images 12",
    "preview OUT --seeds 1 --epochs 2",
    "report OUT",
)


@pytest.fixture(scope="module")
def folder(trained_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study `out`, to which a launch added a mixed row and its controls."""
    folder = tmp_path_factory.mktemp("mixed")
    out = copy_study(trained_study, folder / "out")
    before = csv_numbers(folder)
    row = f"{{model: [densenet, resnet], fusion: {FUSION}, name: both}}"
    words = [str(out / "recipe.yaml"), f"output_dir={out}", f"rows=[{row}]"]
    assert main(["train", *words, "controls=[frozen, detached, single]"]) == 0
    after = csv_numbers(folder)
    # resnet's and densenet's own rows and experts are what they were
    assert before.items() <= after.items() and len(after) == len(before) + 3
    for command in COMMANDS:
        assert main(command.replace("OUT", str(out)).split()) == 0, command
    return folder


def entry(folder: Path, file: str) -> dict[str, Any]:
    rows = json.loads((folder / "out" / file).read_text())["rows"]
    (found,) = [r for r in rows if r["model"] == "mixed-both" and r["control"] is None]
    return dict(found)


def seconds(path: Path) -> float:
    return math.fsum(float(line["seconds"]) for line in csv.DictReader(path.open()))


def test_the_entry_names_experts_and_counts_them_alone(folder: Path) -> None:
    out, found = folder / "out", entry(folder, "evaluation.json")
    assert found["members"] == list(MEMBERS)
    validation = [expert["validation"] for expert in found["experts"]]
    assert found["best_expert"] == validation.index(max(validation))
    logs = out / "csv_logs"
    files = [
        logs / f"{m}_experts/{m}_expert_{k}_training_log.csv" for m, k in map(str.split, MEMBERS)
    ]
    assert found["cost"]["expert_seconds"] == pytest.approx([seconds(path) for path in files])
    model = fusionrun.open_study(out).load_model(f"mixed-both/{FUSION}")
    assert isinstance(model, FusionModel) and model.is_adapted
    assert found["cost"]["parameters"] == sum(p.numel() for p in model.parameters())
    rows = {r["model"]: r for r in json.loads((out / "evaluation.json").read_text())["rows"]}
    # half of each architecture's two experts, and adapters that cost next to nothing
    halves = sum(rows[name]["cost"]["macs"] / 2 for name in ("densenet", "resnet"))
    assert found["cost"]["macs"] == pytest.approx(halves, rel=0.05)
    keys = {contender["key"] for contender in found["contenders"]}
    assert {"frozen", "detached"} <= keys and "single" not in keys


def test_the_answers_are_those_of_its_own_experts(folder: Path) -> None:
    out = folder / "out"
    with np.load(out / f"mixed-both_fusions/{FUSION}/predictions.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    files = [
        out / f"expert_checkpoints/{m}/expert_{k}_best.pth" for m, k in map(str.split, MEMBERS)
    ]
    assert list(arrays["experts"]) == [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    study = plan_study(load_recipe(out / "recipe.yaml", preset={"output_dir": str(out)}), "recipe")
    data, _ = load_data(study, lambda text: None)
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (data.mean, data.std))
    images = (data.test_images / 255 - mean) / std
    model = fusionrun.open_study(out).load_model(f"mixed-both/{FUSION}")
    with torch.no_grad():
        before = torch.stack([load_expert(path)(images)[1] for path in files], dim=1)
        found = model(images)
    torch.testing.assert_close(torch.from_numpy(arrays["before"]), before, rtol=1e-3, atol=1e-4)
    logits = torch.cat([found.logits.unsqueeze(1), found.expert_logits], dim=1)
    torch.testing.assert_close(torch.from_numpy(arrays["logits"]), logits, rtol=1e-3, atol=1e-4)
    # without expert k: the others', through their adapters
    means = found.features.mean(dim=0)
    assert arrays["without"].shape == (len(images), 2) and means.shape[0] == 2
    experts = entry(folder, "evaluation.json")["xray"]["fused_without_expert"]
    right = (torch.from_numpy(arrays["without"]) == data.test_labels.unsqueeze(1)).double()
    assert experts == pytest.approx((100 * right.mean(dim=0)).tolist())


def test_every_file_says_what_it_is(folder: Path) -> None:
    out = folder / "out"
    note = f"mixed-both: {', '.join(MEMBERS)}"
    for name in ("results.md", "evaluation.md", "robustness.md", "preview.md", "report.md"):
        text = (out / name).read_text()
        assert note in text and f"| mixed-both {'+ ' if name == 'report.md' else '| '}" in text, (
            name
        )
    for name in ("results.svg", "report.html"):
        assert "mixed-both: densenet 0" in (out / name).read_text(), name
    for name in ("results.csv", "evaluation.csv", "robustness.csv"):
        lines = [x for x in csv.DictReader((out / name).open()) if x["model"] == "mixed-both"]
        assert lines and all(line["members"] == ", ".join(MEMBERS) for line in lines), name
    labels = [of["label"] for of in entry(folder, "robustness.json")["contenders"]]
    assert labels[-2:] == ["densenet expert 0", "resnet expert 1"]
    *_, previewed = json.loads((out / "preview.json").read_text())["models"]
    assert previewed["members"] == list(MEMBERS)
    known = [of["fusion"] for of in previewed["fusions"] if not of["problem"]]
    assert len(known) >= 5  # the others take this size


def test_python_finds_it_by_its_name(folder: Path) -> None:
    study = fusionrun.open_study(folder / "out")
    (found,) = [each for each in study.results if each.name == f"mixed-both + {FUSION}"]
    assert found.members == MEMBERS
    assert found.best_expert == entry(folder, "evaluation.json")["best_expert"]
    assert found.best_expert_name in ("densenet expert 0", "resnet expert 1")
