"""`preview` on a real study: the experts' features by hand, its ranking, nothing else touched."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from fusionrun.cli import main
from fusionrun.components.store import load_expert
from fusionrun.evaluation import frozen_features, opening
from fusionrun.evaluation.frozen_features import Extracted, Given, Seen, build, train_fusion
from fusionrun.fusions import FUSIONS
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.rows import Member
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
    return frozen_features.see(context, context.study.rows[0], {})


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
    for k, seen in enumerate(found.experts):
        torch.testing.assert_close(seen.features, features[:, k], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(seen.logits, logits[:, k], rtol=1e-3, atol=1e-4)
    assert len(found.experts) == E
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
        first = 0 if of["fusion"] == "meanLogits" else 1
        assert all(first <= epoch <= 3 * first for epoch in of["epochs"])
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


def test_a_fusion_without_weights_answers_as_the_experts_do(given: Given) -> None:
    logits = torch.stack([seen.logits for seen in given.validation.experts], dim=1)
    right = (logits.mean(dim=1).argmax(dim=1) == given.validation.labels).double().mean()
    expected = (pytest.approx(100 * float(right)), 0)  # before the first epoch
    assert train_fusion(given, "meanLogits", 7, 5) == expected


@pytest.mark.parametrize("fusion", sorted({*FUSIONS} - {"meanLogits"}))
def test_the_best_epoch_is_chosen_and_everything_learns(
    given: Given, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    networks: list[nn.Module] = []
    validate, step = frozen_features.accuracy, frozen_features.clip_gradients
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
    best, epoch = train_fusion(given, fusion, 7, 5)
    assert len(seen) == 5 and best == max(seen) and epoch == seen.index(best) + 1
    assert not idle
    network = networks[-1]
    counted = sum(p.numel() for p in network.parameters())
    size = given.train.experts[0].features.shape[1]
    own = FUSIONS[fusion](E, size)
    assert counted == sum(p.numel() for p in own.parameters()) + (size + 1) * C
    assert train_fusion(given, fusion, 7, 5) == (best, epoch)


@pytest.mark.parametrize(("shuffled", "low", "high"), [(False, 95, 100), (True, 0, 60)])
def test_it_learns_what_can_be_learned(
    given: Given, shuffled: bool, low: float, high: float
) -> None:
    """Features that hold the class in both experts' noise, and the same with made-up labels."""
    generator = torch.Generator().manual_seed(1)

    def images(count: int) -> Extracted:
        labels = torch.arange(count) % C
        size = given.train.experts[0].features.shape[1]
        features = torch.randn(count, E, size, generator=generator)
        features[torch.arange(count), :, labels] += 6
        if shuffled:
            labels = labels[torch.randperm(count, generator=generator)]
        seen = [Seen(each, torch.zeros(count, C)) for each in features.unbind(dim=1)]
        return Extracted(seen, labels)

    easy = replace(given, train=images(400), validation=images(200))
    best, _ = train_fusion(easy, "concatenation", 0, 10)
    assert low <= best <= high


@pytest.fixture(scope="module")
def mixed(trained_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study with two mixed rows of the same experts, that was previewed; nothing trained."""
    out = copy_study(trained_study, tmp_path_factory.mktemp("mixed") / "out")
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    for fusion in ("concatenation", "simpleAddition"):
        recipe["rows"].append({"model": ["densenet", "resnet"], "fusion": fusion})
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["preview", str(out), "--seeds", "2", "--epochs", "3"]) == 0
    return out


def test_different_experts_meet_through_adapters(mixed: Path) -> None:
    """They learn with every fusion; each expert looks at the images once for all its rows."""
    context = context_at(mixed)
    row = context.study.rows[-1]
    given = frozen_features.see(context, row, {})
    features = [seen.features for seen in given.train.experts]
    sizes = [each.shape[1] for each in features]
    assert sizes[0] != sizes[1] and row.is_mixed
    network, groups = build(given, "concatenation")
    assert [group.name for group in groups] == ["adapters", "fusion", "global_head"]
    assert groups[0].lr == groups[1].lr and groups[0].clip == groups[1].clip
    small, large = sorted(sizes)
    assert (
        sum(p.numel() for p in groups[0].parameters) == (small + 1) * large
    )  # the larger has none
    network([each[:4] for each in features]).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in groups[0].parameters)


def test_mixed_rows_of_the_same_experts_are_one_entry(mixed: Path, previewed: Path) -> None:
    tree = tree_of(mixed)
    *_, found = tree["models"]
    assert [of["model"] for of in tree["models"][:2]] == list(MODELS) and len(tree["models"]) == 3
    assert found["members"] == ["densenet 0", "resnet 1"]
    logits = []
    for k, model in enumerate(("densenet", "resnet")):
        _, of_model, labels = by_hand(mixed, model, "fusion_val")
        logits.append(of_model[:, k])
    each = [100 * float((of.argmax(dim=1) == labels).double().mean()) for of in logits]
    assert found["best_expert"] == pytest.approx(max(each))
    best = ("densenet expert 0", "resnet expert 1")[each.index(max(each))]
    assert found["best_expert_name"] == best
    text = (mixed / "preview.md").read_text()
    assert f"- {found['model']}: densenet 0, resnet 1; best expert: {best}" in text
    # and the others' numbers are what they were without it
    assert without_clocks(tree)["models"][:2] == without_clocks(tree_of(previewed))["models"]


def test_an_expert_looks_once_for_all_its_rows(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    load = frozen_features.load_experts
    monkeypatch.setattr(frozen_features, "load_experts", lambda *a: loaded.append(a[1]) or load(*a))
    words = ["--seeds", "1", "--epochs", "1", "--output", str(tmp_path)]
    assert main(["preview", str(mixed), *words]) == 0
    assert sorted(loaded) == sorted([Member(model, k)] for model in MODELS for k in range(E))


def test_types_of_a_shared_recipe_see_images_in_one_order(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same seed; and they are called so."""
    orders: list[list[int]] = []
    real = torch.randperm

    def watched(count: int, **how: Any) -> Tensor:
        order = real(count, **how)
        orders.append(order.tolist())
        return order

    monkeypatch.setattr(torch, "randperm", watched)
    recipe = given.context.study.recipe
    for name, distinct in (("shared", 2), ("per_type", 4)):
        study = replace(
            given.context.study, recipe=replace(recipe, fusion=replace(recipe.fusion, recipe=name))
        )
        found = replace(given, context=replace(given.context, study=study))
        orders.clear()
        for fusion in ("concatenation", "multiplicative"):
            train_fusion(found, fusion, seed=1, epochs=2)
        assert len(orders) == 4 and len({*map(tuple, orders)}) == distinct


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
