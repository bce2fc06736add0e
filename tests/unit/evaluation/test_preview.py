"""`preview` on a real study: the experts' features by hand, its ranking, nothing else touched."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.cli import main
from fusionrun.components.starting_experts import load_experts
from fusionrun.components.store import load_expert
from fusionrun.evaluation import frozen_features, opening
from fusionrun.evaluation.frozen_features import Extracted, Given, extract, train_fusion
from fusionrun.fusions import FUSIONS
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.tables.headline import signed
from tests.tiny import copy_study, write_recipe

E, C, SEEDS = 2, 6, (42, 43)
CLOCKS = ("evaluated", "output_dir", "study")
# the feature size of this densenet isn't a multiple of eight, as TransformerBase wants it
MODELS = ("resnet", "densenet")


@pytest.fixture
def out(trained_study: Path, tmp_path: Path) -> Path:
    return copy_study(trained_study, tmp_path / "out")


@pytest.fixture(scope="module")
def previewed(trained_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = copy_study(trained_study, tmp_path_factory.mktemp("previewed") / "out")
    assert main(["preview", str(out), "--seeds", "2", "--epochs", "3"]) == 0
    return out


def context_at(out: Path) -> RunContext:
    recipe = load_recipe(out / "recipe.yaml", preset={"output_dir": str(out)})
    study = plan_study(recipe, "recipe")
    return open_context(study, torch.device("cpu"), 1, progress=lambda text: None)


@pytest.fixture(scope="module")
def given(trained_study: Path) -> Given:
    context = context_at(trained_study)
    experts, _ = load_experts(context, context.study.rows[0].experts)
    parts = (context.splits.fusion_train, context.splits.fusion_val)
    return Given(context, "resnet", experts, *(extract(context, experts, part) for part in parts))


def tree_of(out: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((out / "preview.json").read_text())
    return tree


def without_clocks(tree: dict[str, Any]) -> dict[str, Any]:
    models = [
        {**of, "fusions": [{**f, "seconds": None} for f in of["fusions"]]} for of in tree["models"]
    ]
    return {key: value for key, value in tree.items() if key not in CLOCKS} | {"models": models}


@torch.no_grad()
def by_hand(out: Path, model: str, part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, E, D), logits (N, E, C) and labels (N,) of the experts' own files."""
    context = context_at(out)
    index = getattr(context.splits, part)
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (context.data.mean, context.data.std))
    images = (context.data.train_images[index] / 255 - mean) / std
    files = [out / f"expert_checkpoints/{model}/expert_{k}_best.pth" for k in range(E)]
    each = [load_expert(path)(images) for path in files]
    features, logits = (torch.stack(of, dim=1) for of in zip(*each, strict=True))
    return features, logits, context.data.train_labels[index]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_features_are_the_experts_own(given: Given, trained_study: Path, part: str) -> None:
    found: Extracted = getattr(given, part)
    name = {"train": "fusion_train", "validation": "fusion_val"}[part]
    features, logits, labels = by_hand(trained_study, "resnet", name)
    assert found.features.shape == features.shape
    torch.testing.assert_close(found.features, features, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.logits, logits, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.labels, labels)
    assert not torch.allclose(features[:, 0], features[:, 1])


@pytest.mark.parametrize("model", MODELS)
def test_the_ranking_follows_from_its_numbers(previewed: Path, model: str) -> None:
    tree = tree_of(previewed)
    assert (tree["format"], tree["epochs"], tree["seeds"]) == (1, 3, list(SEEDS))
    assert [of["model"] for of in tree["models"]] == list(MODELS)
    found = tree["models"][MODELS.index(model)]
    assert {of["fusion"] for of in found["fusions"]} == set(FUSIONS)
    known = [of for of in found["fusions"] if not of["problem"]]
    assert found["fusions"][: len(known)] == known
    means = [of["mean"] for of in known]
    assert means == sorted(means, reverse=True) and len(set(means)) > 1
    for of in known:
        assert len(of["accuracies"]) == len(of["epochs"]) == 2
        assert of["mean"] == pytest.approx(statistics.mean(of["accuracies"]))
        assert of["deviation"] == pytest.approx(statistics.stdev(of["accuracies"]))
        assert all(1 <= epoch <= 3 for epoch in of["epochs"])
    _, logits, labels = by_hand(previewed, model, "fusion_val")
    mixed = logits.double().softmax(dim=2).mean(dim=1)
    right = (mixed.argmax(dim=1) == labels).double().mean()
    assert found["mean_probabilities"] == pytest.approx(100 * float(right))
    each = [(logits[:, k].argmax(dim=1) == labels).double().mean() for k in range(E)]
    assert found["best_expert"] == pytest.approx(100 * float(max(each)))
    assert found["images"] == len(by_hand(previewed, model, "fusion_train")[2])


def test_markdown_ranks_the_fusions_among_what_they_have_to_beat(previewed: Path) -> None:
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (previewed / "preview.md").read_text().splitlines()
        if line.startswith("| resnet")
    ]
    found = tree_of(previewed)["models"][0]
    bar = found["mean_probabilities"]
    table = {line[1]: line[2:4] for line in lines}
    for of in found["fusions"]:
        text = f"{of['mean']:.0f} ± {of['deviation']:.0f}"  # few images
        assert table[of["fusion"]] == [text, signed(of["mean"] - bar, 0)]
    assert table["mean of probabilities"] == [f"{bar:.0f}", ""]
    assert table["best expert"][0] == f"{found['best_expert']:.0f}"
    numbers = [float(line[2].split()[0]) for line in lines]
    assert numbers == sorted(numbers, reverse=True) and len(lines) == len(FUSIONS) + 2


def test_a_fusion_that_does_not_fit_is_not_available(previewed: Path) -> None:
    *_, last = tree_of(previewed)["models"][1]["fusions"]
    assert last["fusion"] == "TransformerBase" and "multiple of 8" in last["problem"]
    assert (last["mean"], last["deviation"], last["accuracies"]) == (None, None, [])
    text = (previewed / "preview.md").read_text()
    assert "| densenet | TransformerBase | n/a | n/a | n/a | n/a |" in text
    assert "- densenet, TransformerBase: not measured: " in text


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_best_epoch_is_chosen_and_everything_learns(
    given: Given, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    networks: list[nn.Module] = []
    validate, step, build = (
        frozen_features.accuracy,
        frozen_features.clip_gradients,
        frozen_features.build,
    )
    idle: set[str] = set()

    def watch(scores: Tensor, labels: Tensor) -> float:
        assert labels is given.validation.labels and not networks[-1].training
        seen.append(validate(scores, labels))
        return seen[-1]

    def construct(given: Given, fusion: str) -> Any:
        built = build(given, fusion)
        networks.append(built[0])
        return built

    def look(groups: Any) -> Tensor:
        assert networks[-1].training  # with its dropout
        for group in groups:
            for number, parameter in enumerate(group.parameters):
                if parameter.grad is None or not parameter.grad.any():
                    idle.add(f"{group.name} {number}")
        return step(groups)

    monkeypatch.setattr(frozen_features, "accuracy", watch)
    monkeypatch.setattr(frozen_features, "build", construct)
    monkeypatch.setattr(frozen_features, "clip_gradients", look)
    before = [p.clone() for expert in given.experts for p in expert.state_dict().values()]
    best, epoch = train_fusion(given, fusion, 7, 5)
    assert len(seen) == 5 and best == max(seen) and epoch == seen.index(best) + 1
    assert not idle
    network = networks[-1]
    counted = sum(p.numel() for p in network.parameters())
    own = FUSIONS[fusion](E, given.experts[0].feature_dim)
    head = (given.experts[0].feature_dim + 1) * C
    assert counted == sum(p.numel() for p in own.parameters()) + head
    after = [p for expert in given.experts for p in expert.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert train_fusion(given, fusion, 7, 5) == (best, epoch)


@pytest.mark.parametrize(("shuffled", "low", "high"), [(False, 95, 100), (True, 0, 60)])
def test_it_learns_what_can_be_learned(
    given: Given, shuffled: bool, low: float, high: float
) -> None:
    """Features that hold the class in both experts' noise, and the same with made-up labels."""
    generator = torch.Generator().manual_seed(1)

    def images(count: int) -> Extracted:
        labels = torch.arange(count) % C
        features = torch.randn(count, E, given.experts[0].feature_dim, generator=generator)
        features[torch.arange(count), :, labels] += 6
        if shuffled:
            labels = labels[torch.randperm(count, generator=generator)]
        return Extracted(features, torch.zeros(count, E, C), labels)

    easy = replace(given, train=images(400), validation=images(200))
    best, _ = train_fusion(easy, "concatenation", 0, 10)
    assert low <= best <= high


def test_it_never_looks_at_the_test_set(
    previewed: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images have a shape but no content here; the numbers are the same."""

    def blind(*arguments: Any, **named: Any) -> RunContext:
        context = open_context(*arguments, **named)
        data = context.data
        images, labels = data.test_images.to("meta"), data.test_labels.to("meta")
        return replace(context, data=replace(data, test_images=images, test_labels=labels))

    monkeypatch.setattr(opening, "open_context", blind)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["preview", str(out), "--seeds", "2", "--epochs", "3"]) == 0
    assert without_clocks(tree_of(out)) == without_clocks(tree_of(previewed))
    assert {path.name for path in out.rglob("*") if path.is_file() and path not in before} == {
        "preview.json",
        "preview.md",
    }
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_lost_expert_is_a_problem_of_its_architecture(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "expert_checkpoints/densenet/expert_1_best.pth"
    path.unlink()
    recipe = out / "recipe.yaml"
    words = [str(recipe), f"output_dir={out}", "--seeds", "1", "--epochs", "1"]
    assert main(["preview", *words]) == 3
    shown = capsys.readouterr()
    assert f"fusionrun: densenet: {path}" in shown.err and "Traceback" not in shown.err
    first, second = tree_of(out)["models"]
    assert not first["problem"] and first["fusions"][0]["deviation"] is None
    assert second["model"] == "densenet" and str(path) in second["problem"]
    assert "fusions" not in second
    text = (out / "preview.md").read_text()
    assert "| densenet | n/a | n/a |" in text and f"densenet: not measured: {path}" in text


def test_wrong_words_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    for words, said in (
        (["fusion.epochs=3"], "preview needs a RECIPE or an OUTPUT_DIR"),
        ([str(recipe), "--seeds", "0"], "--seeds and --epochs: expected a number above 0"),
        ([str(tmp_path)], "recipe.yaml"),
    ):
        assert main(["preview", *words]) == 2
        assert said in capsys.readouterr().err
