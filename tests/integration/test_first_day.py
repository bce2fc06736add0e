"""The first day of somebody who comes from the system before this one, with his own folders.

His CIFAR-100 archive, his splits with the record that his preparation script wrote, his sixteen
experts in one folder, named as his trainers name them and their tensors as his code does.
"""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import datasets

from fusionrun.cli import main
from fusionrun.components.manifest import read_manifest
from fusionrun.data.datasets.cifar import NORMALISATION
from tests.tiny import FUSIONS
from tests.unit.components import gmf
from tests.unit.data.cifar_archives import cifar_files, take_for_official, unpack

CLASSES, IMAGES = 100, 2000


# his networks, as small as the recipe's below
SIZES: dict[str, dict[str, Any]] = {
    "densenet": {"growth": 4, "blocks": [1, 1], "stem": 8},
    "resnet": {"width": 8, "blocks": [1]},
    "improved_wide_resnet": {"depth": 10, "widen": 1, "width": 4},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 4, "stem": 4},
}
SMALL = [f"models.{model}={json.dumps(sizes)}" for model, sizes in SIZES.items()]
QUICK = ["fusion.epochs=1", "data.val_fraction=0.4", "runtime.device=cpu", "runtime.threads=1"]
QUICK += ["logs.tensorboard=false", "fusion.augmentation=none", "fusion.mixing=none"]
START = ["cifar100", "experts.checkpoint_dir=checkpoints", "data.splits_dir=splits"]


def archive() -> dict[str, Any]:
    """Images of 100 classes that tell themselves apart: a pattern each, in some noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(40, 216, (CLASSES, 3, 32, 32))
    arrays = {}
    for part, count in (("train", IMAGES), ("test", 200)):
        labels = np.arange(count) % CLASSES
        noisy = patterns[labels] + rng.integers(-8, 9, (count, 3, 32, 32))
        arrays[part] = noisy.astype(np.uint8), labels.tolist()
    return arrays


@torch.no_grad()
def trained(model: str, k: int, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of one that is right on nearly everything: it answers with the nearest class mean."""
    network = gmf.trained(model, CLASSES, seed=k, **SIZES[model])
    network.train()(images)  # moves the running statistics of the norms
    features, _ = network.eval()(images)
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(CLASSES)])
    *_, classifier = network.modules()
    assert isinstance(classifier, nn.Linear)
    classifier.weight.copy_(means)
    classifier.bias.copy_(-means.square().sum(dim=1) / 2)
    return network.state_dict()


def expert_file(folder: Path, model: str, k: int) -> Path:
    return folder / f"checkpoints/best_iid_{gmf.NETWORKS[model][0]}_expert_{k}.pth"


@pytest.fixture(scope="module")
def his_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """data/, splits/ and checkpoints/, to be copied; torchvision takes the archive for CIFAR's."""
    folder, arrays = tmp_path_factory.mktemp("his"), archive()
    files = cifar_files("cifar100", arrays)
    unpack(folder / "data", files)
    holdout = np.sort(np.random.default_rng(42).permutation(IMAGES)[: IMAGES // 2])
    splits = folder / "splits"
    splits.mkdir()
    parts = {"fusion_holdout": holdout, "expert_train": np.setdiff1d(np.arange(IMAGES), holdout)}
    for name, indices in parts.items():
        np.save(splits / f"{name}_indices.npy", indices)
        np.savetxt(splits / f"{name}_indices.txt", indices, fmt="%d")
    record = {"dataset": "CIFAR100", "subset": "train", "total_len": IMAGES, "seed": 42}
    record |= {"holdout_fraction": 0.5, "generated_at_unix": 1757400000}
    (splits / "split_meta.json").write_text(json.dumps(record, indent=2))

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALISATION["cifar100"])
    images, labels = (torch.from_numpy(np.asarray(values)) for values in arrays["train"])
    images, labels = (images[:500].float() / 255 - mean) / std, labels[:500]
    (folder / "checkpoints").mkdir()
    for model in SIZES:
        for k in range(4):
            torch.save(trained(model, k, images, labels), expert_file(folder, model, k))
    with pytest.MonkeyPatch.context() as patch:
        take_for_official(patch, datasets.CIFAR100, files)
        yield folder


@pytest.fixture
def here(his_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with copies of all that is his."""
    shutil.copytree(his_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(*folders: str) -> dict[Path, bytes]:
    paths = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


def test_training_starts_from_what_is_his(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brought = contents("data", "splits", "checkpoints")
    assert main(["train", *START, *SMALL, *QUICK]) == 0
    printed = capsys.readouterr().out
    for model, fusion in FUSIONS.items():
        manifest = read_manifest(
            here / f"fusion_checkpoints/{model}_fusions/{fusion}/manifest.json"
        )
        assert manifest.experts_from is not None and len(manifest.experts_from) == 4
        for k, source in enumerate(manifest.experts_from):
            assert expert_file(here, model, k).name in source and "GMF" in source
    with Path("fusion_checkpoints/results.csv").open(newline="") as file:
        before = [float(row["before_mean_logits"]) for row in csv.DictReader(file)]
    assert len(before) == 4 and min(before) > 80  # they answer as in his hands
    assert "GMF names of a network with shortcut=input" in printed
    assert not list(here.glob("fusion_checkpoints/csv_logs/*_experts"))  # none was trained
    assert {path: path.read_bytes() for path in brought} == brought
    assert len(list(here.glob("checkpoints/*.pth"))) == 16
    holdout = set(np.load(here / "splits/fusion_holdout_indices.npy").tolist())
    assert len(holdout) == IMAGES // 2 and "fusion has the 1000 training images" in printed


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What it prints, as one line. It passes."""
    assert main(["doctor", *START, *SMALL, *QUICK, "--seconds=0.01", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_doctor_asks_each_expert_before_anything_is_trained(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = contents("splits", "checkpoints")
    printed = doctor(capsys)
    for model in SIZES:
        right = re.search(rf"{model}: 4 fit, right on ([\d, ]+) % of 400 validation", printed)
        assert right is not None, printed
        assert min(map(int, right[1].split(","))) > 50
    assert "warn experts" not in printed and "from the holdout in splits" in printed
    assert contents("splits", "checkpoints") == before and not Path("fusion_checkpoints").exists()


def test_doctor_warns_of_experts_that_are_not_what_he_thinks(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    paths = [expert_file(here, "resnet", k) for k in range(4)]
    weights = torch.load(paths[0])
    moved = torch.roll(torch.arange(CLASSES), 7)  # the same network, its classes in another order
    both = {name: weights[name][moved] for name in ("linear.weight", "linear.bias")}
    torch.save({**weights, **both}, paths[1])
    torch.save(gmf.trained("resnet", CLASSES, seed=9, **SIZES["resnet"]).state_dict(), paths[2])
    shutil.copy(paths[0], paths[3])
    printed = doctor(capsys)
    assert re.search(rf"{paths[1].name}: it is right on . % .* in another order on", printed)
    assert re.search(rf"{paths[2].name}: it is right on . % .* no better than chance", printed)
    assert f"{paths[0].name} and {paths[3].name} have the same weights" in printed
    assert printed.count("warn experts") == 3


def test_what_would_be_trained_or_drawn_beside_his_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that isn't known, a folder that is mistyped: hours, and a holdout that they saw."""
    monkeypatch.setenv("COLUMNS", "200")
    for path in here.glob("checkpoints/*preact*"):
        path.rename(path.with_name(path.name.replace("preact_resnext29", "renext")))
    printed = doctor(capsys, "data.splits_dir=split")
    assert (
        "12 experts not saved by fusionrun, and no fusion_holdout_indices.npy in split" in printed
    )
    assert "the others are not in checkpoints; to be trained, 250 epochs each: 4 resnext" in printed
    assert printed.count("warn experts") == 2
