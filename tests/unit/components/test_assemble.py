"""`assemble`: the model is its components joined by hand; whatever doesn't fit is refused."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from fusionrun.cli import main
from fusionrun.components.manifest import component_paths, read_manifest
from fusionrun.components.store import (
    ComponentInfo,
    load_expert,
    load_model,
    save_component,
    save_model,
    state_hash,
)
from fusionrun.experts import build_expert
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.study.context import load_data
from fusionrun.study.paths import RowFiles
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.training.checkpoint import CheckpointError, load, save
from tests.tiny import copy_study

CLASSES, SIZE, EXPERTS = 5, 8, 2
ARGUMENTS: dict[str, dict[str, Any]] = {
    "resnet": {"width": 8, "blocks": [1]},
    "improved_wide_resnet": {"depth": 10, "widen": 1, "width": 2},
    "densenet": {"growth": 4, "blocks": [2], "stem": 8, "compression": 1.0},
}
ABOUT = ComponentInfo(
    component="row",
    model="resnet",
    arguments=ARGUMENTS["resnet"],
    num_classes=CLASSES,
    feature_dim=8,
    num_experts=EXPERTS,
    classes=[f"class {k}" for k in range(CLASSES)],
    mean=[0.5, 0.4, 0.3],
    std=[0.25, 0.2, 0.3],
    image_size=SIZE,
    epoch=7,
    val_accuracy=61.5,
    fusion="concatenation",
)


@dataclass(frozen=True)
class Saved:
    """A row on disk and what is in it."""

    files: RowFiles
    model: FusionModel

    @property
    def folder(self) -> str:
        return str(self.files.directory)


def make_row(
    directory: Path, seed: int, about: ComponentInfo = ABOUT, models: Sequence[str] = ()
) -> Saved:
    """A row as training saves it, of weights that no constructor makes; `models`: a mixed one."""
    torch.manual_seed(seed)
    names = models or [about.model] * about.num_experts
    arguments = [ARGUMENTS[name] if models else about.arguments for name in names]
    experts = [
        build_expert(name, about.num_classes, **own)
        for name, own in zip(names, arguments, strict=True)
    ]
    fusion = build_fusion(about.fusion, about.num_experts, about.feature_dim)
    model = FusionModel(experts, fusion, about.num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(3):
            model.train()(torch.randn(6, 3, SIZE, SIZE))
    files = RowFiles(directory, csv=Path())
    numbers = {"validation": {"fused": 61.5}, "test": {"fused": 60.0}}
    manifest = {"row": f"task-{seed}", "settings": {"data.seed": 1}, **numbers}
    each = [
        replace(
            about,
            model=names[k],
            arguments=arguments[k],
            feature_dim=expert.feature_dim,
            val_accuracy=50.0 + k,
        )
        for k, expert in enumerate(experts)
    ]
    save_model(files, model.eval(), about, each, manifest)
    return Saved(files, model)


@pytest.fixture
def a(tmp_path: Path) -> Saved:
    return make_row(tmp_path / "a", 1)


@pytest.fixture
def b(tmp_path: Path) -> Saved:
    return make_row(tmp_path / "b", 2, dataclasses.replace(ABOUT, fusion="multiplicativeAddition"))


def make_images() -> Tensor:
    return torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def write_plan(folder: Path, **keys: Any) -> Path:
    path = folder / "mix.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def assembled(folder: Path, **keys: Any) -> Path:
    """The folder of the model that the manifest of these keys makes."""
    out = folder / "assembled"
    assert main(["assemble", str(write_plan(folder, **keys)), str(out)]) == 0
    return out


def refused(folder: Path, capsys: pytest.CaptureFixture[str], plan: Path, status: int = 2) -> str:
    """The one line of the refusal, after which nothing is there."""
    out = folder / "refused"
    capsys.readouterr()
    assert main(["assemble", str(plan), str(out)]) == status
    text = capsys.readouterr().err
    assert text.startswith("fusionrun: ") and text.count("\n") == 1 and not out.exists()
    return text


def joined(experts: list[torch.nn.Module], fusion: Saved, head: Saved) -> Tensor:
    """Fused logits, put together by hand."""
    images = make_images()
    with torch.no_grad():
        features = torch.stack([expert(images)[0] for expert in experts], dim=1)
        fused = fusion.model.fusion(features)
        weight, bias = head.model.global_head.weight, head.model.global_head.bias
        return fused @ weight.T + bias


# --- the model -----------------------------------------------------------------------------------


def test_it_is_the_experts_of_one_row_under_the_fusion_of_another(
    tmp_path: Path, a: Saved, b: Saved
) -> None:
    model = load_model(assembled(tmp_path, experts=a.folder, fusion=b.folder))
    assert not any(module.training for module in model.modules())
    found = model(make_images())
    torch.testing.assert_close(found.logits, joined([*a.model.experts], b, b))
    for row in (a, b):
        assert not torch.allclose(found.logits, row.model(make_images()).logits, atol=1e-2)


def test_every_component_can_come_from_its_own_place(tmp_path: Path, a: Saved, b: Saved) -> None:
    experts = [str(b.files.expert(1)), str(a.files.expert(0))]
    fusion, head = str(a.files.fusion_module), b.folder
    out = assembled(tmp_path, experts=experts, fusion=fusion, global_head=head)
    expected = joined([b.model.experts[1], a.model.experts[0]], a, b)
    torch.testing.assert_close(load_model(out)(make_images()).logits, expected)


def test_a_mean_of_logits_takes_experts_of_any_size_and_no_head(
    tmp_path: Path, a: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    about = dataclasses.replace(ABOUT, fusion="meanLogits")
    mean = make_row(tmp_path / "mean", 3, about)
    wide = make_row(
        tmp_path / "wide", 4, dataclasses.replace(ABOUT, model="densenet", feature_dim=24),
        models=["densenet"] * ABOUT.num_experts,
    )  # fmt: skip
    experts = [str(a.files.expert(0)), str(wide.files.expert(1))]
    model = load_model(assembled(tmp_path, experts=experts, fusion=mean.folder))
    images = make_images()
    by_hand = [a.model.experts[0](images)[1], wide.model.experts[1](images)[1]]
    torch.testing.assert_close(model(images).logits, torch.stack(by_hand).mean(dim=0))
    for fusion, head, problem in (
        (mean, a, "has unknown bias"),
        (a, mean, "lacks bias"),
    ):
        plan = write_plan(tmp_path, experts=a.folder, fusion=fusion.folder, global_head=head.folder)
        text = refused(tmp_path, capsys, plan)
        assert "global_head: " in text and problem in text


def test_architectures_mix_where_features_fit(tmp_path: Path, a: Saved) -> None:
    name = "improved_wide_resnet"
    wide = make_row(
        tmp_path / "wide", 3, dataclasses.replace(ABOUT, model=name, arguments=ARGUMENTS[name])
    )
    experts = [str(wide.files.expert(0)), str(a.files.expert(1))]
    out = assembled(tmp_path, experts=experts, fusion=a.folder)
    expected = joined([wide.model.experts[0], a.model.experts[1]], a, a)
    torch.testing.assert_close(load_model(out)(make_images()).logits, expected)
    manifest = read_manifest(out / "manifest.json")
    assert manifest.model == f"{name}+resnet"
    assert [manifest.assembled["from"][f"expert_{k}"]["model"] for k in range(2)] == [
        name,
        "resnet",
    ]


MIXED = dataclasses.replace(ABOUT, model="mixed-ab", arguments={}, feature_dim=16, num_experts=3)
MODELS = ["densenet", "resnet", "improved_wide_resnet"]  # of feature sizes 16, 8, 8


@pytest.fixture
def mixed(tmp_path: Path) -> Saved:
    return make_row(tmp_path / "mixed", 5, MIXED, MODELS)


def test_a_rows_adapters_come_along(tmp_path: Path, mixed: Saved) -> None:
    """With its fusion or with its experts, whichever row's folder is named."""
    files = mixed.files
    experts = [str(files.expert(k)) for k in range(3)]
    plain = make_row(
        tmp_path / "plain",
        6,
        dataclasses.replace(MIXED, model="densenet", arguments=ARGUMENTS["densenet"]),
    )
    fused = [plain.model.fusion, plain.model.global_head]
    for keys, modules in (
        ({"experts": mixed.folder, "fusion": mixed.folder}, None),
        ({"experts": experts, "fusion": mixed.folder}, None),
        ({"experts": experts, "fusion": plain.folder, "adapters": mixed.folder}, fused),
        ({"experts": experts, "fusion": plain.folder, "adapters": str(files.adapters)}, fused),
        ({"experts": mixed.folder, "fusion": plain.folder}, fused),
    ):
        out = assembled(tmp_path, **keys)
        images = make_images()
        with torch.no_grad():
            expected = mixed.model(images)
            logits = expected.logits
            if modules is not None:
                logits = modules[1](modules[0](expected.features))
            found = load_model(out)(images)
        torch.testing.assert_close(found.logits, logits)
        torch.testing.assert_close(found.features, expected.features)
        manifest = read_manifest(out / "manifest.json")
        assert manifest.model == "+".join(MODELS) and manifest.feature_dim == 16
        assert manifest.members == [f"{name} {k}" for k, name in enumerate(MODELS)]
        assert manifest.weights == state_hash(load_model(out).state_dict())
        origin = manifest.assembled["from"]["adapters"]
        assert origin["file"] == str(files.adapters) and origin["row"] == "task-5"
        probabilities = load_model(out).predict(torch.rand(2, 3, SIZE, SIZE))
        assert probabilities.shape == (2, CLASSES)
        shutil.rmtree(out)


def test_an_assembled_mixed_model_is_a_source_too(tmp_path: Path, mixed: Saved) -> None:
    first = assembled(tmp_path, experts=mixed.folder, fusion=mixed.folder)
    plan = write_plan(tmp_path, experts=str(first), fusion=str(first))
    assert main(["assemble", str(plan), str(tmp_path / "second")]) == 0
    found = load_model(tmp_path / "second")(make_images()).logits
    torch.testing.assert_close(found, mixed.model(make_images()).logits)


def test_experts_before_fusion_take_part_too(tmp_path: Path, a: Saved) -> None:
    """They lie in no row's folder, so no manifest vouches for them."""
    paths = [tmp_path / f"expert_checkpoints/resnet/expert_{k}_best.pth" for k in range(EXPERTS)]
    experts = [build_expert("resnet", CLASSES, **ARGUMENTS["resnet"]).eval() for _ in paths]
    for k, path in enumerate(paths):
        about = dataclasses.replace(ABOUT, component="expert", expert=k, fusion="")
        save_component(path, experts[k], about)
    out = assembled(tmp_path, experts=[str(path) for path in paths], fusion=a.folder)
    torch.testing.assert_close(load_model(out)(make_images()).logits, joined([*experts], a, a))
    assert read_manifest(out / "manifest.json").assembled["from"]["expert_0"]["row"] is None


def test_an_assembled_model_is_a_source_too(tmp_path: Path, a: Saved, b: Saved) -> None:
    first = assembled(tmp_path, experts=a.folder, fusion=b.folder)
    plan = write_plan(tmp_path, experts=str(first), fusion=a.folder)
    assert main(["assemble", str(plan), str(tmp_path / "second")]) == 0
    found = load_model(tmp_path / "second")(make_images()).logits
    torch.testing.assert_close(found, a.model(make_images()).logits)


# --- what the manifest says ----------------------------------------------------------------------


def test_the_manifest_says_where_everything_is_from_and_claims_nothing(
    tmp_path: Path, a: Saved, b: Saved
) -> None:
    out = assembled(tmp_path, experts=a.folder, fusion=b.folder)
    manifest = read_manifest(out / "manifest.json")
    assert (manifest.epoch, manifest.val_accuracy, manifest.settings) == (None, None, {})
    assert (manifest.validation, manifest.test) == ({}, {})
    assert manifest.assembled["evaluated_on"] is None
    assert (manifest.model, manifest.fusion) == ("resnet", "multiplicativeAddition")
    assert (manifest.mean, manifest.std, manifest.image_size) == (
        ABOUT.mean,
        ABOUT.std,
        SIZE,
    )
    assert manifest.weights == state_hash(load_model(out).state_dict())
    sources = {**component_paths(a.files, EXPERTS), **component_paths(b.files, 0)}
    copies = component_paths(RowFiles(out, csv=Path()), EXPERTS)
    for name, path in sources.items():
        content, origin = path.read_bytes(), manifest.assembled["from"][name]
        assert copies[name].read_bytes() == content
        hashed = hashlib.sha256(content).hexdigest()
        assert origin["sha256"] == manifest.components[name].sha256 == hashed
        assert origin["file"] == str(path)
        assert origin["row"] == ("task-1" if name.startswith("expert") else "task-2")
        assert origin["epoch"] == 7
    assert manifest.assembled["from"]["expert_1"]["val_accuracy"] == 51.0


def test_only_an_assembled_model_may_have_no_epoch(tmp_path: Path, a: Saved) -> None:
    tree = json.loads(a.files.manifest.read_text())
    a.files.manifest.write_text(json.dumps({**tree, "epoch": None}))
    with pytest.raises(CheckpointError, match="epoch: found None, expected a whole number"):
        read_manifest(a.files.manifest)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("experts: A\nfusion: B\nglobalhead: B", "unknown key 'globalhead'; did you mean"),
        ("experts: A\nfusion: B\nfusion: A", "'fusion' is written twice"),
        ("fusion: B", "experts: found None, expected a row's folder or a list of expert files"),
        ("experts: A", "fusion: found None, expected a row's folder or a file"),
        ("experts: []\nfusion: B", "experts: found [], expected"),
        ("experts: [A, 3]\nfusion: B", "experts: found ['A', 3], expected"),
        ("experts: A\nfusion: [B]", "fusion: found ['B'], expected"),
        ("experts: A\nfusion: B\nglobal_head: null", "global_head: found None, expected"),
        ("experts: A\nfusion: B\nevaluate: true", "evaluate: found True, expected a study's"),
        ("- A\n- B", "expected keys such as experts and fusion"),
        ("", "expected keys such as experts"),
        ("experts: {", "is not valid YAML"),
        ("experts: !!bool perhaps", "is not valid YAML"),
        ("experts: A\nfusion: nowhere", "fusion: nowhere: found nothing there"),
        ("experts: nowhere\nfusion: B", "experts: nowhere: found nothing there"),
        ("experts: A/manifest.json\nfusion: B", "found a file there, expected a row's folder"),
        ("experts: [A/experts/expert_7.pth]\nfusion: B", "experts.0: A/experts/expert_7.pth: no"),
        ("experts: A\nfusion: A/experts", "fusion: A/experts/manifest.json: no such manifest"),
        (
            "experts: A\nfusion: A/manifest.json",
            "fusion: A/manifest.json: is a text file that begins '{'",
        ),
        ("experts: A\nfusion: B\nevaluate: nowhere", "evaluate: nowhere/recipe.yaml: no such"),
        (
            "experts: A\nfusion: A/experts/expert_0_best.pth",
            "fusion: A/experts/expert_0_best.pth: found a component of kind 'expert', expected",
        ),
        (
            "experts: [A/experts/expert_0_best.pth, B/global/global_head_best.pth]\nfusion: B",
            "experts.1: B/global/global_head_best.pth: found a component of kind 'global_head'",
        ),
    ],
)
def test_a_manifest_that_is_wrong(
    tmp_path: Path,
    a: Saved,
    b: Saved,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    words: str,
) -> None:
    a.files.directory.rename(tmp_path / "A")
    b.files.directory.rename(tmp_path / "B")
    monkeypatch.chdir(tmp_path)
    Path("mix.yaml").write_text(text)
    found = refused(tmp_path, capsys, Path("mix.yaml"))
    assert "mix.yaml: " in found and words in found


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        f"{ALIASES}experts: *i\nfusion: B",  # 250 bytes, tens of millions of values
        "experts: &a [*a]\nfusion: B",
        f"experts: {'9' * 4000}\nfusion: B",
        f"experts: {'9' * 9000}\nfusion: B",
        f"experts: !!float {'x' * 100_000}\nfusion: B",
        f"experts: !!{'x' * 100_000} 3\nfusion: B",
        f"experts: {'A' * 100_000}\nfusion: B",
        f"experts: [{'A/' * 50_000}]\nfusion: B",
        f"experts: [{', '.join(['A'] * 5000)}]\nfusion: B",
        f"experts: A\nfusion: [{', '.join(['B'] * 5000)}]",
        f"experts: A\nfusion: B\n{'k' * 100_000}: B",
        f"experts: A\nfusion: B\n? {'k' * 100_000}\n: B\n? {'k' * 100_000}\n: B",
        f"experts: A\nfusion: B\nevaluate: {'x' * 100_000}",
        f"experts: A\nfusion: {'B/' * 100_000}",
        f"experts: {'[' * 5000}",
        f"{'- A' * 5000}",
    ],
)
def test_whatever_a_manifest_holds_its_refusal_can_be_read(
    tmp_path: Path,
    a: Saved,
    b: Saved,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    a.files.directory.rename(tmp_path / "A")
    b.files.directory.rename(tmp_path / "B")
    monkeypatch.chdir(tmp_path)
    Path("mix.yaml").write_text(text)
    assert len(refused(tmp_path, capsys, Path("mix.yaml"))) < 2000


def test_a_manifest_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.yaml: no such manifest" in refused(tmp_path, capsys, tmp_path / "none.yaml")


MISFITS: list[tuple[dict[str, Any], str]] = [
    (
        {"num_classes": 6, "classes": [*ABOUT.classes, "class 5"]},
        "num_classes: found 6, expected 5",
    ),
    (
        {"classes": [*ABOUT.classes[:3], "cat", "class 4"]},
        "classes.3: found 'cat', expected 'class 3'",
    ),
    ({"image_size": 16}, "image_size: found 16, expected 8"),
    ({"mean": [0.5, 0.41, 0.3]}, "mean.1: found 0.41, expected 0.4"),
    ({"std": [0.25, 0.2, 0.31]}, "std.2: found 0.31, expected 0.3"),
    ({"num_experts": 3}, "num_experts: found 3, expected 2, as many as"),
]


@pytest.mark.parametrize(("changes", "words"), MISFITS)
def test_a_fusion_that_does_not_fit_the_experts(
    tmp_path: Path, a: Saved, capsys: pytest.CaptureFixture[str], changes: Any, words: str
) -> None:
    other = make_row(tmp_path / "other", 3, dataclasses.replace(ABOUT, **changes))
    plan = write_plan(tmp_path, experts=a.folder, fusion=other.folder)
    found = refused(tmp_path, capsys, plan)
    assert f"mix.yaml: fusion: {other.files.fusion_module}: {words}" in found
    # and among the experts, and for the head alone
    if "num_experts" not in changes:
        experts = [str(a.files.expert(0)), str(other.files.expert(0))]
        found = refused(tmp_path, capsys, write_plan(tmp_path, experts=experts, fusion=a.folder))
        assert f"experts.1: {other.files.expert(0)}: {words}, as in {a.files.expert(0)}" in found
        keys = {"experts": a.folder, "fusion": a.folder, "global_head": other.folder}
        found = refused(tmp_path, capsys, write_plan(tmp_path, **keys))
        assert f"global_head: {other.files.global_head}: {words}" in found


def test_experts_whose_sizes_do_not_meet_the_fusion(
    tmp_path: Path, a: Saved, mixed: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = dataclasses.replace(ABOUT, feature_dim=16, arguments={"width": 16, "blocks": [1]})
    other = make_row(tmp_path / "other", 3, wide)
    for experts in (a.folder, [str(other.files.expert(0)), str(a.files.expert(0))]):
        found = refused(
            tmp_path, capsys, write_plan(tmp_path, experts=experts, fusion=other.folder)
        )
        path, k = a.files.expert(0), 0 if experts == a.folder else 1
        assert f"experts.{k}: {path}: feature_dim: found 8, expected 16, as in" in found
        assert f"{other.files.fusion_module}, or a row in `adapters` that has" in found
    # adapters are those of one order of experts, and lead to one size
    experts = [str(mixed.files.expert(k)) for k in (1, 0, 2)]
    found = refused(tmp_path, capsys, write_plan(tmp_path, experts=experts, fusion=mixed.folder))
    assert (
        f"adapters: {mixed.files.adapters}: adapts expert 1 from 8 to 16, expert 2 from 8 to 16; "
        f"here the fusion needs expert 0 from 8 to 16, expert 2 from 8 to 16"
    ) in found
    keys = {"experts": a.folder, "fusion": a.folder, "global_head": other.folder}
    found = refused(tmp_path, capsys, write_plan(tmp_path, **keys))
    assert f"global_head: {other.files.global_head}: feature_dim: found 16, expected 8" in found


def test_adapters_that_cannot_be_used(
    tmp_path: Path, a: Saved, mixed: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    experts = [str(mixed.files.expert(k)) for k in range(3)]
    keys = {"experts": experts, "fusion": mixed.folder}
    found = refused(tmp_path, capsys, write_plan(tmp_path, **keys, adapters=a.folder))
    assert f"adapters: {a.files.adapters}: no such checkpoint" in found
    plan = write_plan(tmp_path, **keys, adapters=str(mixed.files.fusion_module))
    assert "found a component of kind 'fusion_module', expected 'adapters'" in refused(
        tmp_path, capsys, plan
    )
    payload = load(mixed.files.adapters)
    payload["state_dict"]["1.bias"][0] += 1e-6
    save(mixed.files.adapters, payload)
    found = refused(tmp_path, capsys, write_plan(tmp_path, **keys))
    assert f"adapters: {mixed.files.adapters}: is not the file that" in found
    # where nothing is adapted, none are taken
    plan = write_plan(tmp_path, experts=a.folder, fusion=a.folder, adapters=mixed.folder)
    found = refused(tmp_path, capsys, plan)
    assert "adapters: none are needed" in found


def test_another_number_of_experts(
    tmp_path: Path, a: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    for names in ([0], [0, 1, 0]):
        experts = [str(a.files.expert(k)) for k in names]
        found = refused(tmp_path, capsys, write_plan(tmp_path, experts=experts, fusion=a.folder))
        assert f"fusion: {a.files.fusion_module}: num_experts: found 2" in found
        assert f"expected {len(names)}, as many as `experts` names" in found


@pytest.mark.parametrize("component", ["expert_1", "fusion_module", "global_head"])
@pytest.mark.parametrize("as_file", [False, True])
def test_an_altered_component(
    tmp_path: Path, a: Saved, capsys: pytest.CaptureFixture[str], component: str, as_file: bool
) -> None:
    paths = component_paths(a.files, EXPERTS)
    experts = [str(paths[f"expert_{k}"]) for k in range(EXPERTS)]
    files = {"experts": experts, "fusion": str(paths["fusion_module"])}
    files["global_head"] = str(paths["global_head"])
    plan = write_plan(tmp_path, **(files if as_file else {"experts": a.folder, "fusion": a.folder}))
    payload = load(paths[component])
    next(iter(payload["state_dict"].values())).view(-1)[0] += 1e-6
    save(paths[component], payload)
    field = {"expert_1": "experts.1", "fusion_module": "fusion"}.get(component, component)
    found = refused(tmp_path, capsys, plan)
    assert f"mix.yaml: {field}: {paths[component]}: is not the file that" in found
    assert f"{a.files.manifest} describes (sha256 differs)" in found
    content = paths[component].read_bytes()
    paths[component].write_bytes(content[: len(content) // 2])
    assert f"{paths[component]}: is damaged" in refused(tmp_path, capsys, plan)


def test_nothing_is_overwritten(
    tmp_path: Path, a: Saved, b: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, experts=a.folder, fusion=b.folder)
    before = {path: path.read_bytes() for path in b.files.directory.rglob("*.*")}
    assert main(["assemble", str(plan), b.folder]) == 2
    assert f"{b.folder}: is there already" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in b.files.directory.rglob("*.*")}
    assert main(["assemble", str(plan), str(plan)]) == 2
    assert main(["assemble", str(plan), str(plan / "below")]) == 1
    assert str(plan / "below") in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["assemble", str(plan), str(tmp_path / "empty")]) == 0


# --- measured on a study -------------------------------------------------------------------------


@pytest.fixture
def study(trained_study: Path, tmp_path: Path) -> Path:
    """A copy of a finished study, to do with as one likes."""
    return copy_study(trained_study, tmp_path / "out")


def row_of(study: Path, fusion: str) -> Path:
    return study / "resnet_fusions" / fusion


def test_its_numbers_are_those_of_the_modules_joined_by_hand(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experts = row_of(study, "TransformerBase")
    keys = {"fusion": str(row_of(study, "simpleAddition")), "evaluate": str(study)}
    out = assembled(tmp_path, experts=str(experts), **keys)
    manifest = read_manifest(out / "manifest.json")
    recipe = load_recipe(study / "recipe.yaml", preset={"output_dir": str(study)})
    data, splits = load_data(plan_study(recipe, "recipe"), lambda text: None)
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (data.mean, data.std))
    other = load_model(row_of(study, "simpleAddition"))
    networks = [load_expert(experts / f"experts/expert_{k}_best.pth") for k in range(2)]
    pixels = {"test": (data.test_images, data.test_labels)}
    chosen = torch.from_numpy(splits.fusion_val)
    pixels["validation"] = (data.train_images[chosen], data.train_labels[chosen])
    right: dict[str, list[float]] = {}
    for split, (images, labels) in pixels.items():
        with torch.no_grad():
            answers = [network((images / 255 - mean) / std) for network in networks]
            features = torch.stack([features for features, _ in answers], dim=1)
            logits = [logits.double() for _, logits in answers]
            fused = other.global_head(other.fusion(features))
        mixtures = [sum(each.softmax(dim=1) for each in logits), sum(logits)]
        right[split] = [
            100 * float((scores.argmax(dim=1) == labels).double().mean())
            for scores in (fused, *mixtures, *logits)
        ]
        found = getattr(manifest, split)
        assert [found[key] for key in ("fused", "mean_probabilities", "mean_logits")] == (
            pytest.approx(right[split][:3])
        )
        assert found["experts"] == pytest.approx(right[split][3:])
    best = right["validation"].index(max(right["validation"][3:]), 3)
    assert manifest.test["best_expert"] == pytest.approx(right["test"][best])
    assert manifest.val_accuracy == manifest.validation["fused"]
    on = manifest.assembled["evaluated_on"]
    assert (on["study"], on["test_images"], on["val_images"]) == (str(study), 60, len(chosen))
    assert "Nothing trained or selected this model" in on["note"] and on["cautions"] == []
    shown = capsys.readouterr().out
    assert "gain over averaging, test: " in shown and "Nothing trained or selected" in shown
    assert f" {right['test'][0]:.0f} " in shown  # as many digits as 60 images carry
    assert load_model(out) is not None  # the copies are the files of the manifest


def change_settings(files: RowFiles, **changes: Any) -> None:
    tree = json.loads(files.manifest.read_text())
    settings = {**tree["settings"], **changes} if changes else {}
    files.manifest.write_text(json.dumps({**tree, "settings": settings}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.seed": 7}, "on other data or splits (data.seed: 7 there, 42 in this recipe)"),
        ({}, "it isn't known on which data"),
        ({"fusion.epochs": 9}, ""),
    ],
)
def test_what_a_component_may_have_seen_is_said(
    tmp_path: Path,
    study: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    shutil.copytree(row_of(study, "simpleAddition"), tmp_path / "other")
    change_settings(RowFiles(tmp_path / "other", csv=Path()), **changes)
    keys = {"fusion": str(tmp_path / "other"), "evaluate": str(study)}
    out = assembled(tmp_path, experts=str(row_of(study, "TransformerBase")), **keys)
    cautions = read_manifest(out / "manifest.json").assembled["evaluated_on"]["cautions"]
    shown = capsys.readouterr().out
    fields = [caution.split(":")[0] for caution in cautions]
    assert fields == (["fusion", "global_head"] if words else [])
    assert all(words in caution and caution in shown for caution in cautions)


def test_images_that_the_components_do_not_take(
    tmp_path: Path, study: Path, a: Saved, b: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, experts=a.folder, fusion=b.folder, evaluate=str(study))
    found = refused(tmp_path, capsys, plan)
    assert f"evaluate: {study}: num_classes: found 6, expected 5, as in" in found


def lose_recipe(study: Path) -> tuple[int, str]:
    (study / "recipe.yaml").unlink()
    return 2, f"evaluate: {study / 'recipe.yaml'}: no such recipe"


def lose_images(study: Path) -> tuple[int, str]:
    path = study / "recipe.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["data"] |= {"name": "image_folder", "root": str(study / "images")}
    path.write_text(yaml.safe_dump(tree))
    return 1, str(study / "images")


@pytest.mark.parametrize("damage", [lose_recipe, lose_images])
def test_a_study_that_cannot_be_opened(
    tmp_path: Path,
    study: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], tuple[int, str]],
) -> None:
    row = str(row_of(study, "TransformerBase"))
    status, words = damage(study)
    plan = write_plan(tmp_path, experts=row, fusion=row, evaluate=str(study))
    assert words in refused(tmp_path, capsys, plan, status)
