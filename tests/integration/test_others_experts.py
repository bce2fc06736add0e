"""A study that starts from the experts of other code: found, said, measured, none trained."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import fusionrun
from fusionrun import load_model
from tests.tiny import alone
from tests.unit.components import gmf

RECIPE = """
output_dir: out
data: {name: synthetic, num_classes: 4, image_size: 16, train_images: 240, test_images: 40,
  holdout_fraction: 0.5, val_fraction: 0.3}
models:
  resnet: {width: 8, blocks: [1, 1]}
  resnext: {depth: 11, cardinality: 2, base_width: 4, stem: 4}
rows: [{model: resnext, fusion: concatenation}, {model: resnet, fusion: simpleAddition}]
experts: {count: 2, epochs: 3, batch_size: 32, augmentation: none, checkpoint_dir: given}
fusion: {epochs: 1, batch_size: 32, augmentation: none}
logs: {tensorboard: false}
runtime: {device: cpu, threads: 1}
"""
SIZES: dict[str, dict[str, object]] = {
    "resnet": {"width": 8, "blocks": [1, 1]},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 4, "stem": 4},
}


def write_experts(folder: Path, classes: int = 4, kind: str = "iid") -> None:
    """Two of each architecture, all in one folder, under the names of the system before this."""
    (folder / "given").mkdir()
    for model, sizes in SIZES.items():
        for k in range(2):
            path = folder / f"given/best_{kind}_{gmf.NETWORKS[model][0]}_expert_{k}.pth"
            torch.save(gmf.trained(model, classes, seed=k, **sizes).state_dict(), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_experts_of_the_system_before_this_one(folder: Path) -> None:
    write_experts(folder)
    asked = alone("doctor", "recipe.yaml", "--ranks", "1", "--seconds", "0.1", cwd=folder)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    told = "".join(asked.stdout.split())
    assert "resnext:2fit" in told and "GMFnamesofanetworkwithshortcut=input" in told
    done = alone("train", "recipe.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for model, words in (("resnext", "GMF names of a network with shortcut=input"), ("resnet", "")):
        theirs = f"best_iid_{gmf.NETWORKS[model][0]}_expert"
        assert f"note: given: {theirs}_0.pth to {theirs}_1.pth: 2 experts not saved" in done.stdout
        assert words in done.stdout
    assert not (folder / "out/expert_checkpoints").exists()
    assert [path for path in (folder / "given").iterdir() if path.is_dir()] == []
    # the study is of that network, whatever reads it and wherever
    stored = yaml.safe_load((folder / "out/recipe.yaml").read_text())
    assert stored["models"]["resnext"]["shortcut"] == "input"
    row = folder / "out/resnext_fusions/concatenation"
    assert json.loads((row / "manifest.json").read_text())["arguments"]["shortcut"] == "input"
    assert all(vars(expert)["shortcut"] == "input" for expert in load_model(row).experts)
    again = alone("train", "recipe.yaml", cwd=folder)
    assert again.returncode == 0 and "2 done" in again.stdout
    measured = alone("evaluate", "out", cwd=folder)
    assert measured.returncode == 0, measured.stdout + measured.stderr


def test_a_recipe_that_wants_another_network_than_its_experts(folder: Path) -> None:
    write_experts(folder)
    refused = alone("train", "recipe.yaml", "models.resnext.shortcut=activated", cwd=folder)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "set models.resnext.shortcut=input" in refused.stderr
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("kept", "words", "expected"),
    [
        ("expert_1", (), "is the first one number 0 or 1?"),
        ("expert", ("experts.pattern={model}-{k}.pth",), "no file fits experts.pattern"),
        ("expert", ("experts.count=3",), "is the first one number 0 or 1?"),
    ],
)
def test_experts_that_are_not_clearly_meant_are_refused(
    folder: Path, kept: str, words: tuple[str, ...], expected: str
) -> None:
    write_experts(folder)
    for path in (folder / "given").iterdir():
        if kept not in path.name:
            path.unlink()
        elif "count=3" in str(words):
            path.rename(path.with_name(path.name.replace("_1.", "_2.").replace("_0.", "_1.")))
    refused = alone("train", "recipe.yaml", *words, cwd=folder)
    assert refused.returncode == 1 and expected in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr and not (folder / "out").exists()


OWN = ("data.split=non_iid", "experts.classes=own")


def test_experts_with_outputs_for_their_own_classes_alone(folder: Path) -> None:
    """Two of four classes each, one architecture's trained by others and the other's here."""
    write_experts(folder, classes=2, kind="noniid")
    for path in (folder / "given").glob("*resnet18*"):
        path.unlink()
    refused = alone("train", "recipe.yaml", cwd=folder)
    assert (
        refused.returncode == 1 and "data.split=non_iid and experts.classes=own" in refused.stderr
    )
    refused = alone("train", "recipe.yaml", OWN[1], cwd=folder)
    assert refused.returncode == 2 and "data.split=non_iid" in refused.stderr
    done = alone("train", "recipe.yaml", *OWN, "experts.epochs=1", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resnext experts answer for their own classes alone" in done.stdout
    images = torch.rand(3, 3, 16, 16)
    for model, fusion in (("resnext", "concatenation"), ("resnet", "simpleAddition")):
        network = load_model(folder / f"out/{model}_fusions/{fusion}")
        shares = network(images).expert_logits.softmax(dim=-1)
        assert not shares[:, 0, 2:].any() and not shares[:, 1, :2].any()
        assert len(network(images).logits.unique()) == 12  # the fused answer is for all classes
    (expert,) = (folder / "given/resnet").glob("expert_1_best.pth")
    assert fusionrun.load_expert(expert).own_classes == (2, 3)
    measured = alone("evaluate", "out", cwd=folder)
    assert measured.returncode == 0, measured.stdout + measured.stderr
    scores = (folder / "out/evaluation.json").read_text()
    assert "NaN" not in scores and "Infinity" not in scores
    other = alone("train", "recipe.yaml", "output_dir=all", OWN[0], cwd=folder)
    assert other.returncode == 2
    assert "experts.classes: 'own' there, 'all' in this recipe" in other.stderr


def test_a_quick_try_never_becomes_what_a_real_launch_begins_with(folder: Path) -> None:
    """Its experts lie where the real ones would; to use them takes a word, and it is told."""
    row = "rows=[{model: resnet, fusion: simpleAddition}]"
    tried = alone(
        "train", "recipe.yaml", row, "output_dir=try", "experts.epochs=1", "data.splits_dir=splits",
        cwd=folder,
    )  # fmt: skip
    assert tried.returncode == 0, tried.stdout + tried.stderr
    real = ("train", "recipe.yaml", row, "data.splits_dir=splits")
    refused = alone(*real, cwd=folder)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    other = "experts.epochs: 1 there, 3 in this recipe"
    assert other in refused.stderr and not (folder / "out").exists()
    done = alone(*real, "experts.pattern={model}/expert_{k}_best.pth", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    told = f"trained with other settings ({other})"
    assert f"note: given/resnet: 2 experts {told}" in done.stdout
    assert told in (folder / "out/results.md").read_text()
    manifest = json.loads((folder / "out/resnet_fusions/simpleAddition/manifest.json").read_text())
    assert told in manifest["notes"][0] and all(told in each for each in manifest["experts_from"])
    assert alone(*real, cwd=folder).returncode == 0  # its rows have begun with them
    measured = alone("evaluate", "out", cwd=folder)
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert told in (folder / "out/evaluation.md").read_text()
