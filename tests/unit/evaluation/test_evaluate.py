"""`evaluate` on a real finished study: its numbers anew with numpy, its answers anew by hand."""

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fusionrun.cli import main
from fusionrun.components.manifest import read_manifest
from fusionrun.components.store import load_expert, load_model
from fusionrun.evaluation import predictions
from fusionrun.evaluation.predictions import (
    HeadLogits,
    Origin,
    Predictions,
    load_predictions,
    save_predictions,
)
from fusionrun.evaluation.schema import TrainingTime
from fusionrun.evaluation.statistics.cost import logged_seconds, training_time
from fusionrun.evaluation.statistics.expert_contributions import expert_weights
from fusionrun.evaluation.statistics.stacking import fit_stacking
from fusionrun.fusions import build_fusion
from fusionrun.study.context import load_data
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from tests.tiny import copy_study

N, E, C = 60, 2, 6
ROWS = ("TransformerBase", "simpleAddition")
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def evaluated(trained_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two rows that share their experts, evaluated once."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    copy_study(trained_study, out, rows=[f"resnet/{fusion}" for fusion in ROWS])
    assert main(["evaluate", str(out)]) == 0
    return out


@pytest.fixture
def out(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of that, to do with as one likes."""
    shutil.copytree(evaluated, tmp_path / "out")
    return tmp_path / "out"


def read_tree(out: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    tree: dict[str, Any] = json.loads((out / "evaluation.json").read_text(), parse_constant=refuse)
    return tree


def without_clocks(tree: dict[str, Any]) -> dict[str, Any]:
    """All but where and when it was measured, and how fast."""
    clocks = ("latency_ms", "latency_low", "latency_high", "images_per_second")
    rows = [dict(row) for row in tree["rows"]]
    for row in rows:
        row["cost"] = {k: v for k, v in row["cost"].items() if k not in clocks}
    place = ("evaluated", "output_dir", "study")
    return {k: v for k, v in tree.items() if k not in place} | {"rows": rows}


def row_folder(out: Path, fusion: str) -> Path:
    return out / "resnet_fusions" / fusion


def npz(out: Path, fusion: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(row_folder(out, fusion) / "predictions.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


# --- what is written -----------------------------------------------------------------------------

METRICS = {"nll", "ece", "brier"}
CONTENDER = {"key", "label", "stage", "top1", "top5", *METRICS, "temperature", "calibrated"}
CONTENDER |= {"reliability", "difference", "cost"}
DIFFERENCE = {"points", "low", "high", "only_fused", "only_other", "p_value", "p_holm"}
ROW = {
    "task",
    "model",
    "fusion",
    "variant",
    "control",
    "seed",
    "alpha",
    "epoch",
    "problem",
    "contenders",
}
ROW |= {"gain_over_averaging", "gain_p_holm", "members", "best_expert", "expert_seed"}
ROW |= {"weights", "before_weights", "experts", "per_class", "best_alternative", "xray", "cost"}
EXPERT = {"expert", "top1", "before_top1", "validation", "before_validation"}
XRAY = {"disagreement", "oracle", "without_expert", "credit", "dominance", "attention", "alarm"}
XRAY |= {"fused_without_expert", "gradients"}
COST = {"parameters", "macs", "train_seconds", "expert_seconds", "latency_ms", "latency_low"}
COST |= {"latency_high", "images_per_second", "peak_memory_bytes"}
COST |= {"images_seen", "steps", "image_passes"}
KEYS = ["fused", "best_expert", "mean_probabilities", "mean_logits", "weighted", "stacking"]
KEYS += [f"before_{key}" for key in KEYS[1:]]


def test_the_json_has_the_fixed_keys(evaluated: Path) -> None:
    tree = read_tree(evaluated)
    top = {"format", "study", "output_dir", "evaluated", "data", "device", "threads", "versions"}
    top |= {"training", "rows", "over_seeds", "fusion_types", "fusion_recipe"}
    assert set(tree) == top and tree["format"] == 1
    data = tree["data"]
    assert (data["test_images"], data["image_size"], len(data["classes"])) == (N, 16, C)
    assert set(data) == {"name", "classes", "test_images", "val_images", "image_size", "notes"}
    assert [row["fusion"] for row in tree["rows"]] == list(ROWS)
    for row in tree["rows"]:
        assert set(row) == ROW and row["problem"] == ""
        assert [contender["key"] for contender in row["contenders"]] == KEYS
        for contender in row["contenders"]:
            assert set(contender) == CONTENDER
            assert set(contender["calibrated"]) == {*METRICS, "reliability"}
            for levels in (contender["reliability"], contender["calibrated"]["reliability"]):
                assert len(levels) == 15
                assert set(levels[0]) == {"samples", "confidence", "accuracy"}
        stages = ["fusion", *["after"] * 5, *["before"] * 5]
        assert [contender["stage"] for contender in row["contenders"]] == stages
        assert row["contenders"][0]["difference"] is None
        assert all(set(c["difference"]) == DIFFERENCE for c in row["contenders"][1:])
        assert len(row["experts"]) == E and all(set(expert) == EXPERT for expert in row["experts"])
        assert set(row["per_class"]) == {"fused", "best_alternative", "gain"}
        assert row["best_alternative"] in KEYS[1:]
        assert set(row["xray"]) == XRAY
        assert set(row["xray"]["credit"]) == {"only_expert", "no_expert"}
        assert set(row["xray"]["dominance"]) == {"contested", "agreement", "carried_by"}
        assert set(row["cost"]) == COST


def test_results_and_manifests_stay_as_training_left_them(
    trained_study: Path, tmp_path: Path
) -> None:
    out = copy_study(trained_study, tmp_path / "out")
    assert main(["evaluate", str(out)]) == 0
    (row,) = (row for row in read_tree(out)["rows"] if row["fusion"] == "simpleAddition")
    (single,) = (each for each in row["contenders"] if each["key"] == "single")
    assert single["cost"]["images_seen"] == row["cost"]["images_seen"]
    assert single["cost"]["image_passes"] == 2 * row["cost"]["images_seen"]
    assert single["cost"]["macs"] == 16 * 16 * 9 * (3 * 8 + 2 * 8 * 8) + 8 * C
    assert "images seen: fused / its" in (out / "evaluation.md").read_text()
    paths = [trained_study / f"results.{kind}" for kind in ("csv", "md", "svg")]
    paths += trained_study.glob("*_fusions/*/manifest.json")
    assert len(paths) == 3 + 4
    for path in paths:
        assert (out / path.relative_to(trained_study)).read_bytes() == path.read_bytes(), path


def test_csv_and_markdown_say_the_same(evaluated: Path) -> None:
    tree = read_tree(evaluated)
    with (evaluated / "evaluation.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    pairs = [(row, contender) for row in tree["rows"] for contender in row["contenders"]]
    assert len(lines) == len(pairs) == 2 * len(KEYS)
    for line, (row, contender) in zip(lines, pairs, strict=True):
        assert (line["task"], line["contender"]) == (row["task"], contender["key"])
        assert float(line["nll"]) == pytest.approx(contender["nll"], rel=1e-6)
        points = contender["difference"] and contender["difference"]["points"]
        assert (line["difference"] == "") == (points is None)
        assert points is None or float(line["difference"]) == pytest.approx(points)
    markdown = (evaluated / "evaluation.md").read_text()
    for row in tree["rows"]:
        fused = row["contenders"][0]["top1"]
        assert f"| resnet | {row['variant']} | {fused:.0f} |" in markdown  # 60 images
        averaged = next(c for c in row["contenders"] if c["key"] == "mean_probabilities")
        assert row["gain_over_averaging"] == averaged["difference"]


# --- the answers, computed anew ------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ROWS)
def test_predictions_are_what_the_saved_networks_answer(evaluated: Path, fusion: str) -> None:
    recipe = load_recipe(evaluated / "recipe.yaml", preset={"output_dir": str(evaluated)})
    data, splits = load_data(plan_study(recipe, "recipe"), lambda text: None)
    model, saved = load_model(row_folder(evaluated, fusion)), npz(evaluated, fusion)
    experts = [
        load_expert(evaluated / f"expert_checkpoints/resnet/expert_{k}_best.pth") for k in range(E)
    ]
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (data.mean, data.std))
    pixels = {"": data.test_images, "val_": data.train_images[splits.fusion_val]}
    labels = {"": data.test_labels, "val_": data.train_labels[splits.fusion_val]}
    features = {}
    with torch.no_grad():
        for split, uint8 in pixels.items():
            images = (uint8 / 255 - mean) / std
            output = model(images)
            features[split] = output.features
            heads = torch.cat([output.logits[:, None], output.expert_logits], dim=1)
            before = torch.stack([expert(images)[1] for expert in experts], dim=1)
            for name, tensor in (("logits", heads), ("before", before)):
                found = saved[f"{split}{name}"]
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, tensor, rtol=1e-3, atol=1e-4)
            assert saved[f"{split}labels"].tolist() == labels[split].tolist()
        for k in range(E):
            ablated = features[""].clone()
            ablated[:, k] = features["val_"][:, k].mean(dim=0)
            classes = model.global_head(model.fusion(ablated)).argmax(dim=1)
            assert saved["without"][:, k].tolist() == classes.tolist()
    assert len(set(map(tuple, saved["before"][0]))) == E  # different experts
    assert not np.allclose(saved["before"], saved["logits"][:, 1:])  # tuning changed them


def test_predictions_name_what_they_belong_to(evaluated: Path) -> None:
    files = [evaluated / f"expert_checkpoints/resnet/expert_{k}_best.pth" for k in range(E)]
    for fusion in ROWS:
        saved = npz(evaluated, fusion)
        manifest = read_manifest(row_folder(evaluated, fusion) / "manifest.json")
        assert str(saved["weights"]) == manifest.weights
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        assert saved["experts"].tolist() == hashes


def test_a_gates_weights_are_each_images_own_and_a_mean_of_logits_has_none() -> None:
    features = torch.randn(5, E, 8, generator=torch.Generator().manual_seed(0))
    gated = build_fusion("gated", E, 8)
    gate, norms = (gated.get_submodule(name) for name in ("gate", "norms"))
    assert isinstance(gate, torch.nn.Linear)
    with torch.no_grad():
        torch.nn.init.normal_(gate.weight)
        found = expert_weights(gated, features)
        scores = norms(features).flatten(start_dim=1) @ gate.weight.T
    assert found is not None and found.std(dim=0).min() > 0.01
    torch.testing.assert_close(found, scores.exp() / scores.exp().sum(dim=1, keepdim=True))
    aligned = build_fusion("alignedAddition", E, 8)
    with torch.no_grad():
        aligned.get_parameter("weights").copy_(torch.arange(E))
        found = expert_weights(aligned, features)
    powers = torch.arange(E).exp()
    assert found is not None
    torch.testing.assert_close(found, (powers / powers.sum()).expand(5, E))
    for name in ("alignedMultiplicative", "meanLogits"):
        assert expert_weights(build_fusion(name, E, 8), features) is None


def test_weights_inside_the_fusion(evaluated: Path) -> None:
    """Learned ones as they are in the module; attention as its definition has it."""
    addition = load_model(row_folder(evaluated, "simpleAddition")).fusion
    powers = np.exp(addition.get_parameter("weights").detach().double().numpy())
    assert read_tree(evaluated)["rows"][1]["xray"]["attention"] == pytest.approx(
        list(powers / powers.sum()), rel=1e-5
    )
    found = read_tree(evaluated)["rows"][0]["xray"]["attention"]
    assert sum(found) == pytest.approx(1) and found[0] != pytest.approx(found[1], abs=1e-6)
    transformer = load_model(row_folder(evaluated, "TransformerBase"))
    recipe = load_recipe(evaluated / "recipe.yaml", preset={"output_dir": str(evaluated)})
    data, _ = load_data(plan_study(recipe, "recipe"), lambda text: None)
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (data.mean, data.std))
    with torch.no_grad():
        features = transformer((data.test_images / 255 - mean) / std).features
        tokens = transformer.fusion.get_submodule("norms")(features).double()
    attention = transformer.fusion.get_submodule("attention")
    weight = attention.get_parameter("in_proj_weight").detach().double()
    bias = attention.get_parameter("in_proj_bias").detach().double()
    heads, width = 8, weight.shape[1]
    query, key = (
        tokens @ weight[i * width :][:width].T + bias[i * width :][:width] for i in (0, 1)
    )
    split = (N, E, heads, width // heads)
    scores = torch.einsum("nqhd,nkhd->nhqk", query.reshape(split), key.reshape(split))
    shares = (scores / (width // heads) ** 0.5).softmax(dim=-1).mean(dim=(0, 1, 2))
    assert found == pytest.approx(shares.tolist(), rel=1e-4)


@pytest.mark.parametrize("fusion", ROWS)
def test_gradients_of_the_two_paths(evaluated: Path, fusion: str) -> None:
    """Backward through one loss at a time, whose gradients in the experts are then compared."""
    recipe = load_recipe(evaluated / "recipe.yaml", preset={"output_dir": str(evaluated)})
    data, splits = load_data(plan_study(recipe, "recipe"), lambda text: None)
    chosen = splits.fusion_val[:128]
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (data.mean, data.std))
    images, labels = (data.train_images[chosen] / 255 - mean) / std, data.train_labels[chosen]
    smoothing = plan_study(recipe, "recipe").fusion_defaults(fusion).label_smoothing
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    row = next(row for row in read_tree(evaluated)["rows"] if row["fusion"] == fusion)
    for k, found in enumerate(row["xray"]["gradients"]):
        gradients = []
        for path in ("fused", "own"):
            model = load_model(row_folder(evaluated, fusion)).eval()
            output = model(images)
            logits = output.logits if path == "fused" else output.expert_logits[:, k]
            (loss(logits, labels) * (1 if path == "fused" else row["alpha"])).backward()
            parameters = model.experts[k].named_parameters()
            parts = [p.grad.flatten() for n, p in parameters if not n.startswith("classifier")]
            gradients.append(torch.cat(parts).double())
        fused, own = (float(gradient.norm()) for gradient in gradients)
        assert found["fused_share"] == pytest.approx(100 * fused / (fused + own), rel=1e-3)
        cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
        assert found["cosine"] == pytest.approx(float(cosine), abs=1e-3)


# --- the numbers, computed anew ------------------------------------------------------------------


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """Logarithms all the way: at the lowest temperature probabilities would round to 0."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def answers(row: dict[str, Any], saved: dict[str, Any], split: str) -> dict[str, Floats]:
    """Log-probabilities (N, C) of every contender, from the file of predictions.

    Stacking is fitted by the package's own code, which test_stacking.py compares with numpy's.
    """
    heads, before = saved[f"{split}logits"], saved[f"{split}before"]
    found = {"fused": log_softmax(heads[:, 0])}
    stages = (("", heads[:, 1:], "weights", "logits"), ("before_", before, "before_weights", None))
    for prefix, logits, weights, tuned in stages:
        of_val = saved["val_logits"][:, 1:] if tuned else saved["val_before"]
        right = (of_val.argmax(axis=-1) == saved["val_labels"][:, None]).sum(axis=0)
        each = log_softmax(logits)
        shares = np.log(np.maximum(row[weights], 1e-300))[:, None]
        found |= {
            f"{prefix}best_expert": each[:, int(right.argmax())],
            f"{prefix}mean_probabilities": np.logaddexp.reduce(each - np.log(E), axis=1),
            f"{prefix}mean_logits": log_softmax(logits.astype(np.float64).mean(axis=1)),
            f"{prefix}weighted": np.logaddexp.reduce(each + shares, axis=1),
        }
        fitted = fit_stacking(torch.from_numpy(of_val), torch.from_numpy(saved["val_labels"]))
        stacked = fitted.held_out.numpy()
        if not split:
            stacked = log_softmax(fitted.scores(torch.from_numpy(logits)).numpy())
        found[f"{prefix}stacking"] = stacked
    return found


def negative_log_likelihood(log_probabilities: Floats, labels: npt.NDArray[Any]) -> float:
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def measured(log_probabilities: Floats, labels: npt.NDArray[Any]) -> dict[str, float]:
    probabilities = np.exp(log_probabilities)
    confidence, answer = probabilities.max(axis=1), probabilities.argmax(axis=1)
    ece = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        ece += abs(float((answer == labels)[inside].sum() - confidence[inside].sum()))
    error = probabilities - np.eye(C)[labels]
    return {
        "nll": negative_log_likelihood(log_probabilities, labels),
        "ece": 100 * ece / len(labels),
        "brier": float((error**2).sum(axis=1).mean()),
    }


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_numbers_follow_from_the_saved_predictions(evaluated: Path, index: int) -> None:
    row, saved = read_tree(evaluated)["rows"][index], npz(evaluated, ROWS[index])
    labels, val_labels = saved["labels"], saved["val_labels"]
    test, validation = answers(row, saved, ""), answers(row, saved, "val_")
    fused_right = test["fused"].argmax(axis=1) == labels
    for contender in row["contenders"]:
        scores, temperature = test[contender["key"]], contender["temperature"]
        right = scores.argmax(axis=1) == labels
        assert contender["top1"] == pytest.approx(100 * right.mean())
        top5 = np.argsort(-scores, axis=1)[:, :5]
        assert contender["top5"] == pytest.approx(100 * (top5 == labels[:, None]).sum() / N)
        found = {name: contender[name] for name in ("nll", "ece", "brier")}
        assert found == pytest.approx(measured(scores, labels), rel=1e-4)
        calm = log_softmax(scores / temperature)
        after = dict(contender["calibrated"])
        levels = after.pop("reliability")
        assert after == pytest.approx(measured(calm, labels), rel=1e-4)
        for each in (contender["reliability"], levels):
            assert sum(level["samples"] for level in each) == N
        sure = sum(level["samples"] * (level["confidence"] or 0) for level in levels) / N
        assert sure == pytest.approx(100 * np.exp(calm.max(axis=1)).mean(), rel=1e-4)
        if contender["key"] != "fused":
            difference = contender["difference"]
            assert difference["points"] == pytest.approx(
                100 * (fused_right.mean() - right.mean()), abs=1e-9
            )
            assert difference["only_fused"] == int((fused_right & ~right).sum())
            assert difference["only_other"] == int((right & ~fused_right).sum())
            assert difference["low"] <= difference["points"] <= difference["high"]
        # no other temperature nearby, within the limits, has a smaller loss on validation
        on_validation = validation[contender["key"]]
        loss, *others = (
            negative_log_likelihood(log_softmax(on_validation / near), val_labels)
            for near in (temperature, 0.98 * temperature, 1.02 * temperature)
            if near == temperature or 0.05 <= near <= 20
        )
        assert loss <= min(others) + 1e-9
    ranks = {
        key: (
            float((validation[key].argmax(axis=1) == val_labels).mean()),
            -negative_log_likelihood(validation[key], val_labels),
        )
        for key in KEYS[1:]
    }
    assert ranks[row["best_alternative"]][0] == max(ranks.values())[0]
    assert ranks[row["best_alternative"]][1] == pytest.approx(max(ranks.values())[1])
    for weights, name in (("weights", "val_logits"), ("before_weights", "val_before")):
        each = np.exp(log_softmax(saved[name][:, -E:]))
        own = each[np.arange(len(val_labels)), :, val_labels]
        grid = [-np.log(own @ [w, 1 - w]).mean() for w in np.linspace(0, 1, 101)]
        assert -np.log(own @ row[weights]).mean() <= min(grid) + 1e-6


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_what_is_said_of_experts_and_classes(evaluated: Path, index: int) -> None:
    row, saved = read_tree(evaluated)["rows"][index], npz(evaluated, ROWS[index])
    labels, test = saved["labels"], answers(row, saved, "")
    right = {
        name: saved[name][:, -E:].argmax(axis=-1) == saved[of][:, None]
        for name, of in (
            ("logits", "labels"),
            ("before", "labels"),
            ("val_logits", "val_labels"),
            ("val_before", "val_labels"),
        )
    }
    for k, expert in enumerate(row["experts"]):
        columns = [100 * right[name][:, k].mean() for name in right]
        assert [
            expert[key] for key in ("top1", "before_top1", "validation", "before_validation")
        ] == (pytest.approx(columns))
    classes = saved["logits"][:, 1:].argmax(axis=-1)
    xray = row["xray"]
    differ = float((classes[:, 0] != classes[:, 1]).mean())
    assert np.allclose(xray["disagreement"], [[0, differ], [differ, 0]])
    assert xray["oracle"] == pytest.approx(100 * right["logits"].any(axis=1).mean())
    assert xray["without_expert"] == pytest.approx(list(100 * right["logits"].mean(axis=0)[::-1]))
    ablated = 100 * (saved["without"] == labels[:, None]).mean(axis=0)
    assert xray["fused_without_expert"] == pytest.approx(list(ablated))
    assert xray["dominance"]["contested"] == round(differ * N)
    for c in range(C):
        of_class = labels == c
        pair = [
            100 * float((test[key].argmax(axis=1) == labels)[of_class].mean())
            for key in ("fused", row["best_alternative"])
        ]
        assert row["per_class"]["fused"][c] == pytest.approx(pair[0])
        assert row["per_class"]["best_alternative"][c] == pytest.approx(pair[1])
        assert row["per_class"]["gain"][c] == pytest.approx(pair[0] - pair[1])


def test_costs(evaluated: Path) -> None:
    cost = read_tree(evaluated)["rows"][1]["cost"]
    model = load_model(row_folder(evaluated, "simpleAddition"))
    assert cost["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    # an expert: stem 3 -> 8, two 3x3 convolutions at 16x16, then its classifier
    expert = 16 * 16 * 9 * (3 * 8 + 2 * 8 * 8) + 8 * C
    assert cost["macs"] == E * expert + 2 * 8 * 8 + 8 * C  # tail and global head
    log = evaluated / "csv_logs/resnet_fusions/resnet_simpleAddition_training_log.csv"
    with log.open(newline="") as file:
        seconds = [float(line["seconds"]) for line in csv.DictReader(file)]
    assert len(seconds) == 3 and cost["train_seconds"] == pytest.approx(sum(seconds))
    assert len(cost["expert_seconds"]) == E and min(cost["expert_seconds"]) > 0
    assert 0 < cost["latency_low"] <= cost["latency_ms"] <= cost["latency_high"]
    assert cost["images_per_second"] > 0 and cost["peak_memory_bytes"] is None
    # 240 images: 48 held out, 12 of them validate; experts share 40 % of 192 and have 15 % each
    expert, holdout = 77 + 29, 36
    assert cost["images_seen"] == 77 + 2 * 29 + holdout
    assert cost["steps"] == E * 2 * math.ceil(expert / 16) + 3 * math.ceil(holdout / 8)
    assert cost["image_passes"] == E * 2 * expert + E * 3 * holdout
    written = read_manifest(
        row_folder(evaluated, read_tree(evaluated)["rows"][1]["variant"]) / "manifest.json"
    ).cost  # by training already, where the table of controls reads it
    assert len(written) == 5 and written.items() <= cost.items()


def test_seconds_without_a_log_are_not_measured(tmp_path: Path) -> None:
    assert logged_seconds(tmp_path / "log.csv") is None
    (tmp_path / "log.csv").write_text("epoch,time\n1,2.0\n")
    with pytest.raises(ValueError, match=r"log\.csv"):
        logged_seconds(tmp_path / "log.csv")


def test_time_of_training(evaluated: Path, tmp_path: Path) -> None:
    """Four tasks; those that ran at once count once in the parallel time."""
    found = read_tree(evaluated)["training"]
    logs = list((evaluated / "csv_logs").rglob("*.csv"))
    lines = [line for path in logs for line in csv.DictReader(path.read_text().splitlines())]
    assert found["tasks"] == len(logs) == E + len(ROWS)
    assert found["serial_seconds"] == pytest.approx(sum(float(x["seconds"]) for x in lines))
    assert found["parallel_seconds"] == pytest.approx(found["serial_seconds"], abs=0.1)  # one rank
    assert "experts and rows together trained for" in (evaluated / "evaluation.md").read_text()
    times = {
        "a": ("2026-01-01T00:00:10.000+00:00,10", "2026-01-01T00:00:30.000+00:00,20"),
        "b": ("2026-01-01T00:00:15.500+00:00,10",),  # at the same time
        "c": ("2026-01-01T00:01:00.000+00:00,5",),  # later
    }
    paths = [tmp_path / f"{name}.csv" for name in (*times, "missing")]
    for path, rows in zip(paths, times.values(), strict=False):
        path.write_text("\n".join(("timestamp,seconds", *rows)))
    assert training_time(paths) == TrainingTime(3, pytest.approx(45), pytest.approx(35))
    assert training_time([tmp_path / "missing.csv"]) is None


# --- a second time -------------------------------------------------------------------------------


def test_a_second_evaluation_asks_no_network_again(
    evaluated: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(predictions, "predict", refuse)
    monkeypatch.setattr(predictions, "load_experts", refuse)
    assert main(["evaluate", str(out)]) == 0
    assert without_clocks(read_tree(out)) == without_clocks(read_tree(evaluated))


def test_damaged_and_foreign_predictions_are_computed_anew(
    evaluated: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both rows': the experts before fusion, which they share, answer once."""
    cut, foreign = (row_folder(out, fusion) / "predictions.npz" for fusion in ROWS)
    cut.write_bytes(cut.read_bytes()[:5000])
    other = npz(out, ROWS[1]) | {"weights": np.array("0" * 64)}
    other["logits"] = -other["logits"]
    with foreign.open("wb") as file:
        np.savez(file, **other)
    calls = []
    load = predictions.load_experts
    monkeypatch.setattr(predictions, "load_experts", lambda *a: calls.append(a) or load(*a))
    assert main(["evaluate", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"{cut}: is damaged" in said and f"{foreign}: belongs to other weights" in said
    assert said.count("computed again") == 2 and len(calls) == 1
    assert without_clocks(read_tree(out)) == without_clocks(read_tree(evaluated))
    for fusion in ROWS:
        again, before = npz(out, fusion), npz(evaluated, fusion)
        assert again.keys() == before.keys()
        assert all((again[name] == before[name]).all() for name in again)


ORIGIN = Origin("w", ("a", "b"), "d", "s")


@pytest.mark.parametrize(
    ("origin", "labels", "val_labels", "expected"),
    [
        (ORIGIN, [0, 1, 2], [3, 4], ""),
        (ORIGIN._replace(weights="v"), [0, 1, 2], [3, 4], "other weights"),
        (ORIGIN._replace(experts=("a",)), [0, 1, 2], [3, 4], "other experts"),
        (ORIGIN._replace(experts=("b", "a")), [0, 1, 2], [3, 4], "other experts"),
        (ORIGIN._replace(data="e"), [0, 1, 2], [3, 4], "other data"),
        (ORIGIN._replace(split="t"), [0, 1, 2], [3, 4], "other split"),
        (ORIGIN, [0, 1, 2, 3], [3, 4], "3 labels"),
        (ORIGIN, [0, 1, 3], [3, 4], "3 labels"),
        (ORIGIN, [0, 1, 2], [4, 3], "2 labels"),
    ],
)
def test_saved_predictions_are_used_only_where_they_belong(
    tmp_path: Path, origin: Origin, labels: list[int], val_labels: list[int], expected: str
) -> None:
    test = HeadLogits(torch.tensor([0, 1, 2]), torch.randn(3, 3, 5), torch.randn(3, 2, 5))
    validation = HeadLogits(torch.tensor([3, 4]), torch.randn(2, 3, 5), torch.randn(2, 2, 5))
    saved = Predictions(
        ORIGIN, test, validation, torch.ones(3, 2).long(), torch.empty(0), torch.rand(E, 2)
    )
    path = tmp_path / "predictions.npz"
    save_predictions(path, saved)
    found, problem = load_predictions(path, origin, torch.tensor(labels), torch.tensor(val_labels))
    assert (found is None) == bool(expected)
    assert expected in problem and bool(problem) == bool(expected)
    if found is not None:
        assert found.origin == ORIGIN
        for kept, was in zip(
            (*found.test, *found.validation, found.without, found.attention, found.gradients),
            (*test, *validation, saved.without, saved.attention, saved.gradients),
            strict=True,
        ):
            assert kept.dtype == was.dtype and torch.equal(kept, was)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04", None])
def test_what_is_not_predictions_is_said_and_not_used(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "predictions.npz"
    if content is None:
        np.savez(path, labels=np.arange(3))
    else:
        path.write_bytes(content)
    found, problem = load_predictions(path, ORIGIN, torch.arange(3), torch.arange(2))
    assert found is None and str(path) in problem
    path.unlink()
    assert load_predictions(path, ORIGIN, torch.arange(3), torch.arange(2)) == (None, "")


# --- what can go wrong ---------------------------------------------------------------------------


def cut_fusion_module(out: Path) -> str:
    path = row_folder(out, ROWS[0]) / "fusion/fusion_module_best.pth"
    path.write_bytes(path.read_bytes()[:500])
    return str(path)


def lose_manifest(out: Path) -> str:
    path = row_folder(out, ROWS[0]) / "manifest.json"
    path.unlink()
    return f"{path}: no such manifest"


def change_seed(out: Path) -> str:
    path = row_folder(out, ROWS[0]) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["seed"] = 1234
    path.write_text(json.dumps(manifest))
    return f"{path}: was made with other settings (seed: 1234 there, 42 in this recipe)"


def spoil_log(out: Path) -> str:
    path = out / f"csv_logs/resnet_fusions/resnet_{ROWS[0]}_training_log.csv"
    path.write_text("nothing\n1\n")
    return str(path)


@pytest.mark.parametrize("damage", [cut_fusion_module, lose_manifest, change_seed, spoil_log])
def test_a_broken_row_is_said_and_the_others_go_on(
    evaluated: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], str],
) -> None:
    message = damage(out)
    assert main(["evaluate", str(out)]) == 3
    shown = capsys.readouterr()
    assert f"fusionrun: task-0-resnet-{ROWS[0]}: {message}" in shown.err
    assert "n/a" in shown.out and "Traceback" not in shown.err
    broken, whole = read_tree(out)["rows"]
    assert message in broken["problem"] and broken["epoch"] is None
    about = {"task", "model", "fusion", "variant", "control", "seed", "alpha", "epoch", "problem"}
    assert set(broken) == {*about, "members", "best_expert", "expert_seed"}
    assert whole["contenders"] == read_tree(evaluated)["rows"][1]["contenders"]
    assert message in (out / "evaluation.md").read_text()
    with (out / "evaluation.csv").open(newline="") as file:
        assert {line["task"] for line in csv.DictReader(file)} == {whole["task"]}


def test_a_lost_expert_is_a_problem_of_the_rows_that_began_with_it(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "expert_checkpoints/resnet/expert_1_best.pth"
    path.unlink()
    assert main(["evaluate", str(out)]) == 3
    assert capsys.readouterr().err.count(f"{path}: no such checkpoint") == 2


def test_results_that_cannot_be_written_are_said(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "evaluation.json").unlink()
    (out / "evaluation.json").mkdir()
    assert main(["evaluate", str(out)]) == 1
    assert str(out / "evaluation.json") in capsys.readouterr().err.splitlines()[-1]
