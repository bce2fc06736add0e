"""Components alone and together again; everything that doesn't fit refused with its reason."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.components.manifest import component_paths, file_hash, read_manifest, write_manifest
from fusionrun.components.store import (
    ComponentInfo,
    load_checked_state,
    load_component,
    load_expert,
    load_fusion_module,
    load_global_head,
    load_model,
    save_component,
    save_model,
    state_hash,
)
from fusionrun.experts import build_expert
from fusionrun.fusions import FUSIONS, FusionModel, build_fusion
from fusionrun.study.paths import RowFiles
from fusionrun.training.checkpoint import CheckpointError, load, save

CLASSES, SIZE, EXPERTS = 5, 8, 2
ARGUMENTS: dict[str, dict[str, Any]] = {
    "resnet": {"width": 8, "blocks": [1]},
    "densenet": {"growth": 4, "blocks": [2], "stem": 8, "compression": 1.0},
    "improved_wide_resnet": {"depth": 10, "width": 1},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 4, "stem": 4},
}


def make_about(model: str = "resnet", dim: int = 8, fusion: str = "concatenation") -> ComponentInfo:
    return ComponentInfo(
        component="row",
        model=model,
        arguments=ARGUMENTS[model],
        num_classes=CLASSES,
        feature_dim=dim,
        num_experts=EXPERTS,
        classes=[f"class {k}" for k in range(CLASSES)],
        mean=[0.5, 0.4, 0.3],
        std=[0.25, 0.2, 0.3],
        image_size=SIZE,
        epoch=7,
        val_accuracy=61.5,
        fusion=fusion,
    )


def make_model(fusion: str = "concatenation", model: str = "resnet") -> FusionModel:
    """Nothing in it is as a constructor leaves it: batch norms have seen images, weights moved."""
    torch.manual_seed(3)
    experts = [build_expert(model, CLASSES, **ARGUMENTS[model]) for _ in range(EXPERTS)]
    dim = experts[0].feature_dim
    whole = FusionModel(experts, build_fusion(fusion, EXPERTS, dim), CLASSES)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(3):
            whole.train()(make_images())
    return whole.eval()


def make_images() -> Tensor:
    return torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def write(files: RowFiles, model: FusionModel, about: ComponentInfo) -> None:
    manifest = {"settings": {"seed": 1}, "row": "a row", "validation": {}, "test": {}}
    experts = [dataclasses.replace(about, val_accuracy=accuracy) for accuracy in (50.0, 55.0)]
    save_model(files, model, about, experts, manifest)


@pytest.fixture
def model() -> FusionModel:
    return make_model()


@pytest.fixture
def files(tmp_path: Path, model: FusionModel) -> RowFiles:
    """The files of a saved row."""
    files = RowFiles(tmp_path / "resnet_fusions" / "concatenation", tmp_path / "log.csv")
    write(files, model, make_about())
    return files


def refusal(path: Path, call: Callable[[], object]) -> str:
    """The message of the refusal, which must name the file."""
    with pytest.raises(CheckpointError) as caught:
        call()
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- alone and together --------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_any_fusion_comes_back(tmp_path: Path, fusion: str) -> None:
    model = make_model(fusion)
    files = RowFiles(tmp_path / "row", tmp_path / "log.csv")
    write(files, model, make_about(fusion=fusion))
    found = load_model(files.directory)
    assert not any(module.training for module in found.modules())
    for one, other in zip(found(make_images()), model(make_images()), strict=True):
        assert torch.equal(one, other)
    assert state_hash(found.state_dict()) == state_hash(model.state_dict())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_any_expert_comes_back(tmp_path: Path, name: str) -> None:
    model = make_model(model=name)
    expert = model.experts[1]
    path = tmp_path / "expert.pth"
    dim = model.fusion.feature_dim
    about = dataclasses.replace(make_about(name, dim), component="expert", expert=1)
    save_component(path, expert, about)
    found = load_expert(path)
    assert not any(module.training for module in found.modules())
    for one, other in zip(found(make_images()), expert(make_images()), strict=True):
        assert torch.equal(one, other)


def test_each_component_works_alone(files: RowFiles, model: FusionModel) -> None:
    images = make_images()
    expected = model(images)
    experts = [load_expert(files.expert(k)) for k in range(EXPERTS)]
    for k, expert in enumerate(experts):
        features, logits = expert(images)
        assert torch.equal(features, expected.features[:, k])
        assert torch.equal(logits, expected.expert_logits[:, k])
    fused = load_fusion_module(files.fusion_module)(expected.features)
    assert torch.equal(fused, model.fusion(expected.features))
    assert torch.equal(load_global_head(files.global_head)(fused), expected.logits)


def test_components_of_two_rows_mix(tmp_path: Path, files: RowFiles, model: FusionModel) -> None:
    """Experts of one model under fusion and head of another: what a mixture by hand gives."""
    other = make_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    others = RowFiles(tmp_path / "other", tmp_path / "log.csv")
    write(others, other, make_about())
    experts = [load_expert(files.expert(0)), load_expert(others.expert(1))]
    mixed = FusionModel(experts, load_fusion_module(others.fusion_module), CLASSES)
    mixed.global_head = load_global_head(others.global_head)
    images = make_images()
    features = torch.stack([model.experts[0](images)[0], other.experts[1](images)[0]], dim=1)
    expected = other.global_head(other.fusion(features))
    torch.testing.assert_close(mixed.eval()(images).logits, expected)
    assert not torch.allclose(expected, other(images).logits)


def test_files_say_what_they_are(files: RowFiles) -> None:
    for k, accuracy in enumerate([50.0, 55.0]):
        info, _ = load_component(files.expert(k), "expert")
        assert (info.component, info.expert, info.val_accuracy) == (
            "expert",
            k,
            accuracy,
        )
        assert (info.model, info.arguments) == ("resnet", ARGUMENTS["resnet"])
        assert (info.mean, info.std) == ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3])
        assert (info.epoch, info.image_size) == (7, SIZE)
        assert info.classes == [f"class {k}" for k in range(CLASSES)]
    info, _ = load_component(files.fusion_module, "fusion_module")
    assert (info.fusion, info.val_accuracy, info.expert) == (
        "concatenation",
        61.5,
        None,
    )
    info, weights = load_component(files.global_head, "global_head")
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "weight": (CLASSES, 8),
        "bias": (CLASSES,),
    }


def test_the_manifest_vouches_for_every_file(files: RowFiles) -> None:
    manifest = read_manifest(files.manifest)
    assert manifest.components.keys() == {"expert_0", "expert_1", "fusion_module", "global_head"}
    for entry in manifest.components.values():
        content = (files.directory / entry.file).read_bytes()
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        assert entry.bytes == len(content)
    assert manifest.settings == {"seed": 1}
    assert manifest.val_accuracy == 61.5
    assert manifest.num_experts == EXPERTS


def test_what_is_loaded_knows_its_images(files: RowFiles, model: FusionModel) -> None:
    """As its files say, so that nobody has to normalise by hand."""
    info = make_about()
    images = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (info.mean, info.std))
    answer = model((images - mean) / std)
    loaded, expert = load_model(files.directory), load_expert(files.expert(1))
    torch.testing.assert_close(loaded.predict(images), answer.logits.softmax(dim=1))
    expected = answer.expert_logits[:, 1].softmax(dim=1)
    torch.testing.assert_close(expert.predict(images), expected)
    for network in (loaded, expert):
        assert network.classes == tuple(info.classes) and network.image_size == SIZE
        assert (network.mean, network.std) == (tuple(info.mean), tuple(info.std))
    assert list(loaded.state_dict()) == list(model.state_dict())


def test_a_saved_model_can_move(files: RowFiles, model: FusionModel, tmp_path: Path) -> None:
    moved = files.directory.rename(tmp_path / "elsewhere")
    assert torch.equal(load_model(moved)(make_images()).logits, model(make_images()).logits)
    assert torch.equal(load_model(str(moved))(make_images()).logits, model(make_images()).logits)


def test_a_state_dict_saves_like_its_module(tmp_path: Path, model: FusionModel) -> None:
    """The best epoch is a state dict; the model that made it may be half gone by then."""
    expert = model.experts[0]
    about = dataclasses.replace(make_about(), component="expert", expert=0)
    state = {name: value.clone() for name, value in expert.state_dict().items()}
    save_component(tmp_path / "a.pth", state, about)
    assert state_hash(load_expert(tmp_path / "a.pth").state_dict()) == state_hash(state)


# --- what doesn't fit ----------------------------------------------------------------------------

LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "expert_0": load_expert,
    "fusion_module": load_fusion_module,
    "global_head": load_global_head,
}
KINDS = {"expert_0": "expert", "fusion_module": "fusion_module", "global_head": "global_head"}


@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize("loader", LOADERS)
def test_another_component_is_refused(files: RowFiles, component: str, loader: str) -> None:
    path = component_paths(files, EXPERTS)[component]
    if component == loader:
        LOADERS[loader](path)
        return
    text = refusal(path, lambda: LOADERS[loader](path))
    assert f"found a component of kind {KINDS[component]!r}, expected {KINDS[loader]!r}" in text


Change = Callable[[dict[str, Any]], object]

EXPERT_CHANGES: list[tuple[Change, str]] = [
    (lambda p: p["state_dict"].pop("classifier.bias"), "lacks classifier.bias"),
    (
        lambda p: [p["state_dict"].pop(key) for key in sorted(p["state_dict"])[:5]],
        "classifier.weight, trunk.stage1.0.conv1.weight and 2 more",
    ),
    (lambda p: p["state_dict"].update(extra=torch.zeros(1)), "has unknown extra"),
    (lambda p: p["state_dict"].update({3: torch.zeros(1)}), "has unknown 3"),
    (
        lambda p: p["state_dict"].update({"classifier.bias": torch.zeros(7)}),
        r"classifier.bias: found shape (7,), expected (5,)",
    ),
    (lambda p: p["state_dict"].update({"classifier.bias": 3}), "found shape None, expected (5,)"),
    (lambda p: p.update(num_classes=9), "found shape (5, 8), expected (9, 8)"),
    (lambda p: p.update(arguments={"width": 16, "blocks": [1]}), "expected (16,"),
    (lambda p: p.update(arguments={"wdth": 8}), "has no argument 'wdth'"),
    (lambda p: p.update(arguments={"width": "8"}), "width must be a whole number"),
    (lambda p: p.update(arguments=3), "arguments: found a number, expected a mapping"),
    (lambda p: p.update(model="resnett"), "unknown expert 'resnett'"),
    (lambda p: p["state_dict"]["classifier.bias"].fill_(float("nan")), "not finite in classifier"),
    (
        lambda p: p["state_dict"]["trunk.stem_norm.running_var"][0].fill_(float("inf")),
        "not finite in trunk.stem_norm.running_var",
    ),
    (lambda p: p.pop("state_dict"), "state_dict: found no weights"),
    (lambda p: p.update(state_dict=torch.zeros(3)), "state_dict: found no weights"),
    (lambda p: p.update(format=2), "another version of fusionrun (format 2)"),
    (lambda p: p.pop("format"), "another version of fusionrun (format None)"),
    (lambda p: p.pop("component"), "component: found nothing"),
    (lambda p: [p.pop("saved_by"), p.pop("component")], "not saved by fusionrun (its keys: "),
    (lambda p: [p.pop("saved_by"), p.update(format="1")], "not saved by fusionrun (its keys: "),
    (lambda p: [p.pop("arguments"), p.pop("model")], "model: found nothing, expected a value"),
]


@pytest.mark.parametrize(("change", "words"), EXPERT_CHANGES)
def test_an_expert_that_does_not_fit(files: RowFiles, change: Change, words: str) -> None:
    path = files.expert(0)
    payload = load(path)
    change(payload)
    save(path, payload)
    assert words in refusal(path, lambda: load_expert(path))
    # the model says the same, or that the file isn't the one that it was saved with
    assert "sha256" in refusal(path, lambda: load_model(files.directory))


@pytest.mark.parametrize(
    ("component", "change", "words"),
    [
        ("fusion_module", {"fusion": "multiplicativ"}, "unknown fusion 'multiplicativ'"),
        ("fusion_module", {"fusion": "TransformerBase"}, "lacks attention.in_proj_bias"),
        ("fusion_module", {"num_experts": 3}, "expected (3, 8)"),
        ("fusion_module", {"feature_dim": 0}, "feature_dim"),
        ("global_head", {"num_classes": 6}, "found shape (5, 8), expected (6, 8)"),
        ("global_head", {"feature_dim": 9}, "found shape (5, 8), expected (5, 9)"),
        ("global_head", {"num_classes": None}, "num_classes: found None"),
    ],
)
def test_other_components_that_do_not_fit(
    files: RowFiles, component: str, change: dict[str, Any], words: str
) -> None:
    path = component_paths(files, EXPERTS)[component]
    save(path, {**load(path), **change})
    assert words in refusal(path, lambda: LOADERS[component](path))


@pytest.mark.parametrize("component", ["expert_0", "expert_1", "fusion_module", "global_head"])
def test_a_changed_or_missing_file_is_named(files: RowFiles, component: str) -> None:
    path = component_paths(files, EXPERTS)[component]
    payload = load(path)
    next(iter(payload["state_dict"].values())).view(-1)[0] += 1e-6
    save(path, payload)
    text = refusal(path, lambda: load_model(files.directory))
    assert "sha256 differs" in text
    assert str(files.manifest) in text
    path.unlink()
    assert "no such checkpoint" in refusal(path, lambda: load_model(files.directory))


def vouch(files: RowFiles, **changes: Any) -> None:
    """A manifest for the files as they are now."""
    manifest = json.loads(files.manifest.read_text())
    for name, path in component_paths(files, EXPERTS).items():
        manifest["components"][name]["sha256"] = file_hash(path)
    files.manifest.write_text(json.dumps({**manifest, **changes}))


def test_components_that_fit_themselves_but_not_each_other(files: RowFiles) -> None:
    original = {path: path.read_bytes() for path in component_paths(files, EXPERTS).values()}
    head = dataclasses.replace(make_about(), component="global_head", num_classes=6)
    save_component(files.global_head, nn.Linear(8, 6), head)
    vouch(files)
    text = refusal(files.global_head, lambda: load_model(files.directory))
    assert "found shape (6, 8), expected (5, 8)" in text
    files.global_head.write_bytes(original[files.global_head])
    expert = build_expert("resnet", 6, **ARGUMENTS["resnet"])
    about = dataclasses.replace(make_about(), component="expert", num_classes=6)
    save_component(files.expert(1), expert, about)
    vouch(files)
    text = refusal(files.directory, lambda: load_model(files.directory))
    assert "all experts must have 5 classes, found [5, 6]" in text
    files.expert(1).write_bytes(original[files.expert(1)])
    vouch(files)
    load_model(files.directory)
    vouch(files, num_experts=1)
    text = refusal(files.directory, lambda: load_model(files.directory))
    assert "built for 2 experts, found 1" in text


def test_a_missing_manifest(files: RowFiles) -> None:
    files.manifest.unlink()
    text = refusal(files.manifest, lambda: load_model(files.directory))
    assert "no such manifest" in text
    files.manifest.mkdir()
    assert "can't be read" in refusal(files.manifest, lambda: load_model(files.directory))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00garbage", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"epoch": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"model": ' + b"9" * 4000 + b"}", "model: found 9999"),
        (b"[]", "is not a manifest: found a list, expected fields of: format, model"),
        (b"{}", "model: found nothing, expected"),
        (b"null", "is not a manifest: found nothing"),
    ],
)
def test_a_garbage_manifest(files: RowFiles, content: bytes, words: str) -> None:
    files.manifest.write_bytes(content)
    text = refusal(files.manifest, lambda: load_model(files.directory))
    assert words in text
    assert "\n" not in text and len(text) < 2000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format: found 2, expected 1"),
        ({"components": []}, "components: found a list, expected a mapping"),
        ({"num_experts": "2"}, "num_experts: found '2' (text), expected a whole number"),
        ({"settings": 3}, "settings: found a number, expected a mapping"),
        ({"components": {}}, "sha256 differs"),
        ({"components": {"expert_0": "x"}}, "components.expert_0: found text, expected fields of"),
    ],
)
def test_a_manifest_that_says_something_else(
    files: RowFiles, change: dict[str, Any], words: str
) -> None:
    manifest = json.loads(files.manifest.read_text())
    files.manifest.write_text(json.dumps({**manifest, **change}))
    assert words in refusal(files.manifest, lambda: load_model(files.directory))


REQUIRED = {"format", "model", "fusion", "num_experts", "num_classes", "components", "settings"}
MEASURED = {"epoch", "val_accuracy", "validation", "test"}


def test_a_manifest_of_an_older_version_and_of_a_newer_one(
    files: RowFiles, model: FusionModel
) -> None:
    tree = json.loads(files.manifest.read_text())
    older = {key: value for key, value in tree.items() if key in REQUIRED | MEASURED}
    newer = {**tree, "later": {"x": 1}, "components": {**tree["components"]}}
    newer["components"]["expert_0"] = {**newer["components"]["expert_0"], "later": 1}
    for content in (older, newer):
        files.manifest.write_text(json.dumps(content))
        found = load_model(files.directory)
        assert torch.equal(found(make_images()).logits, model(make_images()).logits)
    files.manifest.write_text(json.dumps(older))
    assert (read_manifest(files.manifest).control, read_manifest(files.manifest).seed) == (
        None,
        None,
    )
    for key in older:
        lacking = {name: value for name, value in older.items() if name not in (key, "format")}
        files.manifest.write_text(json.dumps(lacking))
        if key != "format":
            assert f"{key}: found " in refusal(files.manifest, lambda: load_model(files.directory))


def test_a_manifest_is_written_as_it_is_read(files: RowFiles) -> None:
    before = files.manifest.read_bytes()
    write_manifest(files.manifest, read_manifest(files.manifest))
    assert files.manifest.read_bytes() == before


def test_weights_fit_or_nothing_is_loaded() -> None:
    layer = nn.Linear(2, 3)
    before = state_hash(layer.state_dict())
    with pytest.raises(CheckpointError, match=r"^file: bias: found shape \(4,\), expected \(3,\)"):
        load_checked_state(layer, {"weight": torch.ones(3, 2), "bias": torch.ones(4)}, "file")
    assert state_hash(layer.state_dict()) == before


# --- hash ----------------------------------------------------------------------------------------


def make_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(4, 3, 2, 2, generator=generator),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
    }


def test_state_hash_ignores_layout_and_order() -> None:
    state, expected = make_state(), state_hash(make_state())
    last = {**state, "weight": state["weight"].to(memory_format=torch.channels_last)}
    assert last["weight"].stride() != state["weight"].stride()
    strided = {**state, "half": torch.stack([state["half"]] * 2, dim=1)[:, 0]}
    for same in (last, strided, dict(reversed(state.items())), {**state, "count": torch.tensor(3)}):
        assert state_hash(same) == expected


def test_state_hash_changes_with_one_bit() -> None:
    expected = state_hash(make_state())
    hashes = {expected}
    for name, value in make_state().items():
        for position in range(value.numel() * value.element_size()):
            state = make_state()
            raw = bytearray(state[name].reshape(-1).view(torch.uint8).numpy().tobytes())
            raw[position] ^= 1
            changed = torch.frombuffer(raw, dtype=torch.uint8).view(value.dtype)
            hashes.add(state_hash({**state, name: changed.view(value.shape)}))
    assert len(hashes) == 1 + sum(v.numel() * v.element_size() for v in make_state().values())


def test_state_hash_knows_names_shapes_and_types() -> None:
    state = make_state()
    others = [
        {**{k: v for k, v in state.items() if k != "half"}, "Half": state["half"]},
        {k: v for k, v in state.items() if k != "half"},
        {**state, "weight": state["weight"].view(3, 4, 2, 2)},
        {**state, "half": state["half"].view(torch.float16)},
        {**state, "count": torch.tensor([3])},
        {**state, "empty": torch.zeros(2, 0)},
        {**state, "weight": state["weight"].flip(0)},
    ]
    assert len({state_hash(other) for other in [state, *others]}) == 1 + len(others)
