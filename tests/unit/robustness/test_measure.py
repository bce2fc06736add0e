"""`robustness` on a real finished study: its numbers again with plain loops, its sets by hand."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from fusionrun.cli import main
from fusionrun.components.store import load_model, load_single
from fusionrun.data.datasets import Dataset
from fusionrun.data.datasets.subset import stratified_subset
from fusionrun.data.errors import DataError
from fusionrun.data.splits import Splits
from fusionrun.robustness import cifar_c as corrupted
from fusionrun.robustness import conditions, measure, run
from fusionrun.robustness.corruptions import CORRUPTIONS, NOISE_SIGMAS, add_noise, corrupt
from fusionrun.robustness.ood_images import built_in_sets
from fusionrun.study.context import RunContext, load_data
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from tests.tiny import copy_study
from tests.unit.report.test_report import Page, read_off
from tests.unit.robustness.test_ood_images import write_images

N, E, C, SIZE = 60, 2, 6, 16
ROWS = ("TransformerBase", "simpleAddition", "single")
FUSIONS = ROWS[:2]
SETS = ["uniform_noise", "clouds"]  # the study's own images are the package's shapes
MAIN = ["fused", "best_expert", "mean_probabilities"]
KEYS = [*MAIN, "mean_logits", "expert_0", "expert_1"]
SEVERITIES = range(1, 6)


@pytest.fixture(scope="module")
def trained(trained_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a finished study: two fusions, and one network on everything."""
    out = tmp_path_factory.mktemp("trained") / "out"
    return copy_study(trained_study, out, rows=[f"resnet/{fusion}" for fusion in ROWS])


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = copy_study(trained, tmp_path_factory.mktemp("measured") / "out")
    assert main(["robustness", str(out)]) == 0
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    return copy_study(trained, tmp_path / "out")


def tree_of(out: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    tree: dict[str, Any] = json.loads((out / "robustness.json").read_text(), parse_constant=refuse)
    return tree


def loaded(out: Path) -> tuple[Dataset, Splits]:
    recipe = load_recipe(out / "recipe.yaml", preset={"output_dir": str(out)})
    return load_data(plan_study(recipe, "recipe"), lambda text: None)


def normalised(data: Dataset, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (data.mean, data.std))
    return (images / 255 - mean) / std


@torch.no_grad()
def answers(out: Path, fusion: str, images: Tensor) -> dict[str, Tensor]:
    """Logits (N, C) by contender, log-probabilities for the mean of them; "best" comes later."""
    output = load_model(out / "resnet_fusions" / fusion)(images)
    each = output.expert_logits.double()
    return {
        "fused": output.logits.double(),
        "mean_probabilities": each.softmax(dim=2).mean(dim=1).log(),
        "mean_logits": each.mean(dim=1),
        "expert_0": each[:, 0],
        "expert_1": each[:, 1],
    }


def best_expert(out: Path, fusion: str) -> str:
    data, splits = loaded(out)
    images = normalised(data, data.train_images[splits.fusion_val])
    found = answers(out, fusion, images)
    right = [accuracy(found[f"expert_{k}"], data.train_labels[splits.fusion_val]) for k in (0, 1)]
    return f"expert_{right.index(max(right))}"


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return 100 * float((scores.argmax(dim=1) == labels).double().mean())


# --- the numbers, computed anew ------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(FUSIONS)))
def test_accuracies_are_those_of_the_saved_networks(measured: Path, index: int) -> None:
    row, fusion = tree_of(measured)["rows"][index], FUSIONS[index]
    assert [contender["key"] for contender in row["contenders"]] == KEYS
    data, _ = loaded(measured)
    seed, best = tree_of(measured)["seed"], best_expert(measured, fusion)
    clean = normalised(data, data.test_images)
    states = {("clean", None): clean}
    states |= {("noise", sigma): add_noise(clean, sigma, seed) for sigma in NOISE_SIGMAS}
    for name in CORRUPTIONS:
        for level in SEVERITIES:
            made = corrupt(data.test_images, name, level, seed)
            states[name, level] = normalised(data, made)
    expected = {}
    for state, images in states.items():
        scores = answers(measured, fusion, images)
        expected[state] = {k: accuracy(s, data.test_labels) for k, s in scores.items()}
        expected[state]["best_expert"] = expected[state][best]
    for contender in row["contenders"]:
        own = {state: accuracies[contender["key"]] for state, accuracies in expected.items()}
        assert contender["clean"] == pytest.approx(own["clean", None])
        for noise in contender["noise"]:
            assert noise["top1"] == pytest.approx(own["noise", noise["sigma"]])
        suite = contender["made"]
        assert [part["name"] for part in suite["corruptions"]] == list(CORRUPTIONS)
        for part in suite["corruptions"]:
            levels = [own[part["name"], level] for level in SEVERITIES]
            assert part["top1"] == pytest.approx(levels)
            assert part["mean"] == pytest.approx(np.mean(levels))
        whole = np.mean([own[name, level] for name in CORRUPTIONS for level in SEVERITIES])
        assert suite["mean"] == pytest.approx(whole)
        assert suite["kept"] == pytest.approx(100 * whole / own["clean", None])
        assert contender["published"] is None
    # the images did change, and so did the answers
    assert len({part["mean"] for c in row["contenders"] for part in c["made"]["corruptions"]}) > 5


@pytest.mark.parametrize("index", range(len(FUSIONS)))
def test_detection_is_scikit_learns(measured: Path, index: int) -> None:
    tree, fusion = tree_of(measured), FUSIONS[index]
    data, _ = loaded(measured)
    best = best_expert(measured, fusion)
    assert [(of["name"], of["images"]) for of in tree["foreign"]] == [(name, N) for name in SETS]
    own = answers(measured, fusion, normalised(data, data.test_images))
    shown = built_in_sets("synthetic", N, SIZE, tree["seed"])
    foreign = {of.name: answers(measured, fusion, normalised(data, of.images)) for of in shown}
    found = tree["rows"][index]["detection"]
    assert len(found) == len(SETS) * len(KEYS[:4]) * 2
    for entry in found:
        key = best if entry["contender"] == "best_expert" else entry["contender"]
        pair = own[key], foreign[entry["set"]][key]
        numbers = [entry[name] for name in ("auroc", "aupr_in", "aupr_out", "fpr_at_95_tpr")]
        if entry["score"] == "energy" and key == "mean_probabilities":
            assert numbers == [None] * 4
            continue
        energy = entry["score"] == "energy"
        scores = torch.cat([s.logsumexp(1) if energy else s.softmax(1).amax(1) for s in pair])
        is_own = np.arange(2 * N) < N
        false_rate, true_rate, _ = roc_curve(is_own, scores, drop_intermediate=False)
        first = int(np.flatnonzero(true_rate >= 0.95 - 1e-12)[0])
        expected = [
            roc_auc_score(is_own, scores),
            average_precision_score(is_own, scores),
            average_precision_score(~is_own, -scores),
            false_rate[first],
        ]
        # a near tie may fall on the other side when sums are rounded otherwise
        assert numbers == pytest.approx([100 * value for value in expected], abs=100 / N)


def test_one_network_has_no_experts(measured: Path) -> None:
    row = tree_of(measured)["rows"][2]
    data, _ = loaded(measured)
    network = load_single(measured / "resnet_fusions" / "single")
    (contender,) = row["contenders"]
    assert (contender["key"], contender["label"]) == ("fused", "one network")
    with torch.no_grad():
        _, logits = network(normalised(data, data.test_images))
    assert contender["clean"] == pytest.approx(accuracy(logits, data.test_labels))
    assert {entry["contender"] for entry in row["detection"]} == {"fused"}


def test_json_csv_and_markdown_say_the_same(measured: Path) -> None:
    tree = tree_of(measured)
    assert (tree["format"], tree["images"], tree["corrupted"]) == (1, N, None)
    with (measured / "robustness.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    states = 1 + len(NOISE_SIGMAS) + 5 * len(CORRUPTIONS)
    assert len(lines) == states * (2 * len(KEYS) + 1)
    table = {
        (line["task"], line["set"], line["severity"], line["contender"]): float(line["top1"])
        for line in lines
    }
    assert len(table) == len(lines)
    text = (measured / "robustness.md").read_text()
    for row in tree["rows"]:
        for contender in row["contenders"]:
            task, key, suite = row["task"], contender["key"], contender["made"]
            assert table[task, "clean", "", key] == pytest.approx(contender["clean"], rel=1e-6)
            for part in suite["corruptions"]:
                for level, top1 in zip(SEVERITIES, part["top1"], strict=True):
                    assert table[task, part["name"], str(level), key] == pytest.approx(top1)
            if key in MAIN:
                start = f"| resnet | {row['variant']} | {contender['label']} | "
                line, each, *_ = (line for line in text.splitlines() if line.startswith(start))
                assert line.split(" | ")[3] == f"{contender['clean']:.0f}"  # few images
                assert line.endswith(f" | {suite['mean']:.0f} | {suite['kept']:.0f} |")
                means = " | ".join(f"{part['mean']:.0f}" for part in suite["corruptions"])
                assert each == f"{start}{means} |"
    assert "frost: drawn texture" in text


def test_it_agrees_with_evaluate_and_with_itself(
    measured: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each state is made once, whatever the number of rows."""
    made: list[tuple[str, int]] = []

    def counted(images: Tensor, name: str, severity: int, seed: int) -> Tensor:
        made.append((name, severity))
        return corrupt(images, name, severity, seed)

    monkeypatch.setattr(conditions, "corrupt", counted)
    assert main(["robustness", str(out)]) == 0
    assert made == [(name, level) for name in CORRUPTIONS for level in SEVERITIES]
    first, second = tree_of(measured), tree_of(out)
    assert first["rows"] == second["rows"] and first["foreign"] == second["foreign"]
    main(["evaluate", str(out)])
    evaluated = json.loads((out / "evaluation.json").read_text())
    for row, other in zip(second["rows"][:2], evaluated["rows"], strict=False):
        clean = {contender["key"]: contender["clean"] for contender in row["contenders"]}
        top1 = {contender["key"]: contender["top1"] for contender in other["contenders"]}
        assert clean["expert_1"] == other["experts"][1]["top1"]
        for key in (*MAIN, "mean_logits"):
            assert clean[key] == top1[key]


def test_batches_change_nothing(measured: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunContext, "evaluation_batch", 25)
    assert main(["robustness", str(out)]) == 0
    for row, other in zip(tree_of(out)["rows"], tree_of(measured)["rows"], strict=True):
        assert row["contenders"] == other["contenders"]


def test_a_subset_is_even_and_said(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Tensor] = []

    def seen(images: Tensor, *rest: Any) -> Tensor:
        shown.append(images)
        return images

    monkeypatch.setattr(conditions, "corrupt", seen)
    assert main(["robustness", str(out), "--images", "18"]) == 0
    data, _ = loaded(out)
    where = {image.numpy().tobytes(): i for i, image in enumerate(data.test_images)}
    index = [where[image.numpy().tobytes()] for image in shown[0]]
    assert len(set(index)) == 18 == len(index)
    assert Counter(data.test_labels[index].tolist()) == dict.fromkeys(range(C), 3)
    tree = tree_of(out)
    assert (tree["images"], tree["data"]["test_images"]) == (18, N)
    scores = answers(out, FUSIONS[0], normalised(data, data.test_images[index]))["fused"]
    fused = tree["rows"][0]["contenders"][0]
    assert fused["clean"] == pytest.approx(accuracy(scores, data.test_labels[index]))
    assert fused["made"]["mean"] == pytest.approx(fused["clean"])  # nothing was corrupted
    assert fused["made"]["kept"] == pytest.approx(100)
    said = capsys.readouterr()
    assert "18 of 60 test images" in said.out
    assert "18 of 60 test images" in (out / "robustness.md").read_text()
    lines = said.err.splitlines()
    assert [line.split()[0] for line in lines[-83:]] == [f"[{i}/83]" for i in range(1, 84)]
    assert "left" in lines[-2] and "fog, severity 3" in said.err


# --- the user's folders --------------------------------------------------------------------------


@pytest.fixture
def published(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like CIFAR-10-C of this study's images: fog is none at all, snow is black."""
    monkeypatch.setattr(run, "PUBLISHED_FOR", ("synthetic",))
    monkeypatch.setattr(corrupted, "IMAGES", N)
    monkeypatch.setattr(corrupted, "SHAPE", (5 * N, SIZE, SIZE, 3))
    data, _ = loaded(out)
    folder = tmp_path / "CIFAR-C"
    folder.mkdir()
    images = data.test_images.permute(0, 2, 3, 1).numpy()
    np.save(folder / "fog.npy", np.tile(images, (5, 1, 1, 1)))
    np.save(folder / "snow.npy", np.zeros((5 * N, SIZE, SIZE, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(data.test_labels.numpy(), 5))
    return folder


@pytest.mark.parametrize("words", [[], ["--images", "24"]])
def test_published_images_are_measured_too(out: Path, published: Path, words: list[str]) -> None:
    assert main(["robustness", str(out), "--corrupted", str(published), *words]) == 0
    tree = tree_of(out)
    assert tree["corrupted"] == str(published)
    for row in tree["rows"]:
        for contender in row["contenders"]:
            suite = contender["published"]
            assert [part["name"] for part in suite["corruptions"]] == ["snow", "fog"]
            snow, fog = suite["corruptions"]
            assert fog["top1"] == [contender["clean"]] * 5  # the same images, in the same order
            # one answer to every image: right for the images of that class
            assert snow["top1"] == pytest.approx([100 / C] * 5)
            assert (suite["mean"], suite["kept"]) == (None, None)  # thirteen are lacking
    with (out / "robustness.csv").open(newline="") as file:
        sets = Counter(line["set"] for line in csv.DictReader(file))
    assert sets["published:fog"] == sets["fog"] == 5 * (2 * len(KEYS) + 1)
    main_table = (out / "robustness.md").read_text().split("\n\n")[2]
    assert main_table.splitlines()[0].endswith("| published | kept of it |")
    assert all(line.endswith("| n/a | n/a |") for line in main_table.splitlines()[2:])


def test_published_images_of_a_study_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of a subset of the test set, of which again only some are asked for."""
    labels = torch.from_numpy(np.random.default_rng(3).permutation(np.arange(120) % C))
    images = torch.arange(120, dtype=torch.uint8).view(120, 1, 1, 1).expand(120, 3, 8, 8)
    part = corrupted.CorruptedImages("fog", 2, images, labels)
    monkeypatch.setattr(conditions, "read_corrupted", lambda folder, classes: iter([part]))
    whole = stratified_subset(labels.numpy(), 30, 7, "")
    chosen = torch.tensor([0, 4, 29])
    data = SimpleNamespace(test_labels=labels[whole], classes=range(C), name="cifar10")
    recipe = SimpleNamespace(data=SimpleNamespace(test_images=30, seed=7))
    context: Any = SimpleNamespace(data=data, study=SimpleNamespace(recipe=recipe))
    ((name, severity, found),) = conditions.published_images(context, chosen, Path())
    assert (name, severity) == ("fog", 2)
    assert found[:, 0, 0, 0].tolist() == whole[[0, 4, 29]].tolist()
    data.test_labels = (data.test_labels + 1) % C
    with pytest.raises(DataError, match="other labels than the test set of cifar10"):
        list(conditions.published_images(context, chosen, Path()))


def spoil_labels(folder: Path) -> str:
    np.save(folder / "labels.npy", np.tile((np.load(folder / "labels.npy")[:N] + 1) % C, 5))
    return "labels.npy: found other labels than the test set of synthetic has"


def cut_images(folder: Path) -> str:
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:500])
    return f"{folder / 'fog.npy'}: cannot be read"


def replace_with_file(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.write_text("")
    return f"{folder}: cannot be listed"


def lose_images(folder: Path) -> str:
    shutil.rmtree(folder)
    return f"--corrupted: {folder}: found no file named after a corruption"


@pytest.mark.parametrize("damage", [spoil_labels, cut_images, lose_images, replace_with_file])
def test_a_folder_that_will_not_do_is_said_before_anything_is_measured(
    out: Path, published: Path, damage: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = damage(published)
    assert main(["robustness", str(out), "--corrupted", str(published)]) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and "[1/" not in said
    assert not (out / "robustness.json").exists()


def test_what_cannot_be_asked_for_is_refused(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(status: int, *words: str) -> str:
        assert main(["robustness", str(out), *words]) == status
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said.splitlines()[-1]

    said = complaint(1, "--corrupted", str(tmp_path))
    assert "this study's data set is synthetic" in said and "cifar10 and cifar100" in said
    assert "--images: found 0, expected a number above 0" in complaint(2, "--images", "0")
    assert "--images is 61, but the data set has 60" in complaint(1, "--images", "61")
    assert f"{tmp_path / 'no'}: cannot be listed" in complaint(1, "--ood", str(tmp_path / "no"))
    (tmp_path / "empty").mkdir()
    assert "empty: found no file; expected image files directly in it" in complaint(
        1, "--ood", str(tmp_path / "empty")
    )
    (out / "robustness.json").mkdir()
    assert str(out / "robustness.json") in complaint(1, "--images", "6")


@pytest.mark.parametrize("flag", ["--ood", "--foreign"])  # the name that older scripts have
def test_a_folder_replaces_the_built_in_sets(
    out: Path, tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "pets", {f"{k}.png": (SIZE, SIZE) for k in range(5)})
    assert main(["robustness", str(out), "--images", "12", flag, str(tmp_path / "pets")]) == 0
    tree = tree_of(out)
    assert [(of["name"], of["images"]) for of in tree["foreign"]] == [("pets", 5)]
    for row in tree["rows"]:
        assert {entry["set"] for entry in row["detection"]} == {"pets"}
    assert main(["robustness", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--ood FOLDER" in said and "--foreign" not in said


# --- what can go wrong, and the report -----------------------------------------------------------


def test_a_broken_row_is_not_available_and_the_others_go_on(
    measured: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "resnet_fusions" / ROWS[0] / "manifest.json").unlink()
    assert main(["robustness", str(out)]) == 3
    shown = capsys.readouterr()
    assert f"fusionrun: task-0-resnet-{ROWS[0]}: " in shown.err and "Traceback" not in shown.err
    assert "n/a" in shown.out
    broken, *whole = tree_of(out)["rows"]
    assert "no such manifest" in broken["problem"] and broken["epoch"] is None
    assert not broken.keys() & {"contenders", "detection"}
    assert whole == tree_of(measured)["rows"][1:]
    line = f"| resnet | {ROWS[0]} |" + " n/a |" * 8
    assert (out / "robustness.md").read_text().count(line) >= 1
    with (out / "robustness.csv").open(newline="") as file:
        assert broken["task"] not in {line["task"] for line in csv.DictReader(file)}


def test_answers_that_are_not_finite_stop_one_row(
    measured: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle: what was measured before isn't told."""
    ask, calls = measure.forward_heads, Counter[int]()

    def diverge(model: Any, images: Tensor) -> Tensor:
        calls[id(model)] += 1
        heads = ask(model, images)
        is_first = id(model) == next(iter(calls))
        return heads * float("inf") if is_first and calls[id(model)] == 9 else heads

    monkeypatch.setattr(measure, "forward_heads", diverge)
    assert main(["robustness", str(out)]) == 3
    broken, *whole = tree_of(out)["rows"]
    assert "not finite" in broken["problem"] and "contenders" not in broken
    assert whole == tree_of(measured)["rows"][1:]
    assert sorted(calls.values()) == [9, 83, 83]  # it wasn't asked again


def test_the_report_shows_it(measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(measured, out)
    main(["evaluate", str(out)])
    assert main(["report", str(out)]) == 0
    page, tree = Page(out / "report.html"), tree_of(out)
    rows = tree["rows"]
    names = [f"resnet + {fusion}" for fusion in ROWS]
    order = ("fused", "mean_probabilities", "best_expert")
    cells = [[{c["key"]: c for c in row["contenders"]}.get(key) for key in order] for row in rows]

    def text(value: float | None, digits: int = 0) -> str:
        return "n/a" if value is None else f"{value:.{digits}f}"

    _, *lines = page.tables["Clean and corrupted images"]
    for line, name, of in zip(lines, names, cells, strict=True):
        expected = [text(c and c["clean"]) for c in of]
        expected += [text(c and c["made"][key]) for key in ("mean", "kept") for c in of]
        assert line == [name, *expected]
    _, *lines = page.tables["Corruption by corruption"]
    assert [line[:3] for line in lines[:2]] == [
        [names[0], "corrupted", name] for name in list(CORRUPTIONS)[:2]
    ]
    assert lines[1][3:] == [text(c["made"]["corruptions"][1]["mean"]) for c in cells[0] if c]
    _, *lines = page.tables["Accuracy with noise"]
    assert lines[3] == [names[0], "0.2", *(text(c["noise"][3]["top1"]) for c in cells[0] if c)]
    _, *lines = page.tables["Out-of-distribution detection, every number"]
    entries = [entry for row in rows for entry in row["detection"]]
    for line, entry in zip(lines, entries, strict=True):
        numbers = [text(entry[k], 2) for k in ("auroc", "aupr_in", "aupr_out", "fpr_at_95_tpr")]
        assert line[4:] == numbers
    _, *lines = page.tables["Out-of-distribution detection"]
    assert lines[1][:3] == [names[0], SETS[0], "energy"] and lines[1][4] == "n/a"
    tiles = page.chart(f"{names[0]}: corruptions", "rect", "heat")
    assert len(tiles) == 3 * len(CORRUPTIONS)
    assert (
        tiles[1][1] == f"gaussian_noise, mean: {cells[0][1]['made']['corruptions'][0]['mean']:.0f}"
    )
    label = f"{names[1]}: accuracy against noise"
    ((line, _),) = page.chart(label, "polyline", "fused")
    points = [pair.split(",") for pair in line["points"].split()]
    x, y = page.scale(label, "x"), page.scale(label, "y")
    for (across, up), noise in zip(points, rows[1]["contenders"][0]["noise"], strict=True):
        assert read_off(x, float(across)) == pytest.approx(noise["sigma"], abs=0.001)
        assert read_off(y, float(up)) == pytest.approx(noise["top1"], abs=0.1)
    assert "frost: drawn texture" in page.text and "Not measured" not in page.text
    assert "Out-of-distribution detection" in (out / "report.md").read_text()

    (out / "robustness.json").unlink()
    assert main(["report", str(out)]) == 0
    page = Page(out / "report.html")
    assert "Not measured: `python -m fusionrun robustness OUTPUT_DIR`" in page.text
    assert "Clean and corrupted images" not in page.tables


def test_the_report_says_what_it_cannot_read(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(measured, out)
    main(["evaluate", str(out)])
    path = out / "robustness.json"
    tree = tree_of(out)
    for spoiled, said in (
        ({**tree, "format": 2}, "format: found 2, expected 1; run this version's robustness again"),
        ({**tree, "notes": [1]}, "notes.0: found 1 (a number), expected text"),
    ):
        path.write_text(json.dumps(spoiled))
        capsys.readouterr()
        assert main(["report", str(out)]) == 1
        assert f"{path}: {said}" in capsys.readouterr().err
    broken = {**tree["rows"][0], "problem": "lost <it>"}
    path.write_text(json.dumps({**tree, "rows": [broken, *tree["rows"][1:]]}))
    assert main(["report", str(out)]) == 0
    page = Page(out / "report.html")
    assert f"resnet + {ROWS[0]}: n/a, not measured: lost <it>" in page.text
    assert len(page.tables["Clean and corrupted images"]) == 1 + len(ROWS) - 1
