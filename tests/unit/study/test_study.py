"""A study: what its tasks are worth, what identifies them, and every name checked."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.data.augmentation.policies import AUGMENTATIONS
from fusionrun.data.splits import SplitRules, make_splits
from fusionrun.experts import BUILDERS, build_expert
from fusionrun.fusions import FUSIONS
from fusionrun.study.defaults import EXPERT_DEFAULTS, FUSION_DEFAULTS, SHARED_FUSION
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import Recipe, RecipeError
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.study import Study
from fusionrun.study.tasks import RowTask, Task

SMALL = """
output_dir: out
rows:
  - {model: resnet, fusion: concatenation}
  - {model: densenet, fusion: TransformerBase}
data: {name: synthetic, num_classes: 4, train_images: 200, test_images: 40, image_size: 16}
models:
  resnet: {width: 8, blocks: [1]}
  densenet: {growth: 4, blocks: [2, 2], stem: 8}
experts: {count: 2, epochs: 3}
fusion: {epochs: 5}
"""


def plan(folder: Path, *overrides: str, text: str = SMALL) -> Study:
    path = folder / "small.yaml"
    path.write_text(text)
    return plan_study(load_recipe(path, overrides), "small.yaml")


def task(study: Study, name: str) -> Task:
    return next(task for task in study.tasks if task.name == name)


# ------------------------------------------------------------------ settings

# a task is the same wherever it lies and however often it reports
PLACES: tuple[str, ...] = ("output_dir", "data.root", "data.cache_dir", "data.splits_dir")
PLACES += ("data.train_folder", "data.test_folder", "data.download", "experts.checkpoint_dir")
PLACES += ("experts.pattern",)
PLACES += ("checkpoint.", "logs.", "status.", "runtime.")
PLACES += ("experts.together", "fusion.micro_batch")  # how the hardware is used
# numbers on a GPU depend on these a little; they may be changed for a run that struggles
HARDWARE = ("runtime.device", "runtime.amp", "runtime.channels_last", "runtime.deterministic")
NAMES = {
    "data.name": "cifar10",
    "experts.pattern": "{model}-{k}.pth",
    "experts.augmentation": "color_jitter",
    "fusion.augmentation": "color_jitter",
}


def leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), f"{prefix}{name}.")
        elif f"{prefix}{name}" not in ("rows", "grid", "controls", "models", "plugins"):
            yield f"{prefix}{name}", hint


def value_at(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


def other_value(path: str, hint: Any, value: Any) -> Any:
    """A valid value of the field at `path` that isn't `value`."""
    if typing.get_origin(hint) is typing.Literal:
        return next(option for option in typing.get_args(hint) if option != value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        words = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
        if words and value in typing.get_args(words[0]):  # auto, or a number
            kinds, value = [kind for kind in kinds if kind not in words], None
        return other_value(path, kinds[0], value)
    if typing.get_origin(hint) is tuple:
        return list(value[1:]) if value else [0, 4095]
    if hint is bool:
        return not value
    if hint is int:
        return (value or 7) + 1
    if hint is float:
        return 0.9 * value if value else 0.05
    return NAMES.get(path, "elsewhere")


# fields that only go with others
NEEDS: dict[str, tuple[str, ...]] = {"experts.classes": ("data.split=non_iid",)}
FIELDS = [(path, hint) for path, hint in leaves(Recipe) if path not in HARDWARE]


@pytest.mark.parametrize(("path", "hint"), FIELDS, ids=[path for path, _ in FIELDS])
def test_settings_are_what_changes_the_result(tmp_path: Path, path: str, hint: Any) -> None:
    needed = NEEDS.get(path, ())
    before = plan(tmp_path, *needed)
    value = other_value(path, hint, value_at(before.recipe, path))
    after = plan(tmp_path, *needed, f"{path}={json.dumps(value)}")
    assert before.recipe != after.recipe
    row, expert = "task-1-densenet-TransformerBase", "expert-resnet-0"
    row_changed, expert_changed = (
        before.identity(task(before, name)).fields != after.identity(task(after, name)).fields
        for name in (row, expert)
    )
    if path.startswith(PLACES):
        assert not row_changed and not expert_changed
    elif path.startswith("experts.") and path not in ("experts.count", "experts.classes"):
        assert expert_changed
    elif path.startswith("fusion."):
        assert row_changed and not expert_changed
    else:  # data, seed, number and classes of experts
        assert row_changed and expert_changed


def test_settings_tell_all_tasks_apart_but_the_experts_of_one_model(tmp_path: Path) -> None:
    text = SMALL.replace("data:", "  - {model: resnet, fusion: concatenation, seed: 1}\ndata:")
    text = text.replace("data:", "  - {model: resnet, fusion: concatenation, alpha: 2}\ndata:")
    text = text.replace("data:", "  - {model: resnet, fusion: multiplicative}\ndata:")
    study = plan(tmp_path, text=text)
    found = [json.dumps(study.identity(task).fields, sort_keys=True) for task in study.tasks]
    assert len(study.tasks) == 5 + 4
    assert len(set(found)) == 5 + 2


def test_arguments_of_a_model_concern_its_own_tasks(tmp_path: Path) -> None:
    before, after = plan(tmp_path), plan(tmp_path, "models.densenet.growth=12")
    for one, other in zip(before.tasks, after.tasks, strict=True):
        same = before.identity(one).fields == after.identity(other).fields
        assert same == (one.model == "resnet")


def test_settings_survive_the_manifest(tmp_path: Path) -> None:
    study = plan(tmp_path)
    for one in study.tasks:
        settings = study.identity(one).fields
        assert json.loads(json.dumps(settings, allow_nan=False)) == settings


# ------------------------------------------------------------------ costs


def test_work_is_counted_as_by_hand() -> None:
    with torch.device("meta"):
        expert = build_expert("resnet", 4, width=8, blocks=[1])
    # a 3x3 stem from 3 channels, two 3x3 convolutions of 8 channels, the classifier
    assert multiply_accumulates(expert, 16) == 256 * 9 * (3 * 8 + 2 * 8 * 8) + 8 * 4


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.split=non_iid"],
        ["experts.count=4", "data.holdout_fraction=0.4", "data.val_fraction=0.5"],
        ["experts.count=4", "data.shared_fraction=0.8"],  # no room for 4 x 15 % of their own
        ["data.shared_fraction=0"],
        ["experts.epochs=7", "fusion.epochs=2"],
    ],
    ids=" ".join,
)
def test_costs_are_images_times_work(tmp_path: Path, overrides: list[str]) -> None:
    study = plan(tmp_path, *overrides)
    recipe, data = study.recipe, study.recipe.data
    splits = make_splits(
        np.arange(4000) % 4,
        SplitRules(
            seed=1,
            holdout_fraction=data.holdout_fraction,
            val_fraction=data.val_fraction,
            num_experts=recipe.experts.count,
            kind=data.split,
            shared_fraction=data.shared_fraction,
            unique_fraction=data.unique_fraction,
        ),
    )
    expert_images = len(splits.expert_train[0]) * recipe.experts.epochs
    # every expert of a row sees every image of the fusion's part
    row_images = len(splits.fusion_train) * recipe.fusion.epochs * recipe.experts.count
    expert, row = task(study, "expert-resnet-0"), study.tasks[0]
    assert row.kind == "row"
    assert row.cost / expert.cost == pytest.approx(row_images / expert_images, rel=0.03)


def test_larger_networks_and_images_cost_more(tmp_path: Path) -> None:
    def cost(*overrides: str) -> float:
        return task(plan(tmp_path, *overrides), "expert-resnet-0").cost

    assert cost("models.resnet.width=16") > 3 * cost()
    assert cost("data.image_size=32") == pytest.approx(4 * cost(), rel=0.01)
    assert cost("experts.epochs=6") == pytest.approx(2 * cost())


# ------------------------------------------------------------------ names and arguments

MISTAKES = [
    ("rows.1.model=resnt", "rows.1.model", "'resnt'", "did you mean 'resnet'?"),
    ("rows.0.model=ResNet", "rows.0.model", "'ResNet'", "resnet, resnext"),
    ("rows.0.model=timm", "rows.0.model", "'timm'", "did you mean 'timm:NAME'"),
    ("rows.0.fusion=concat", "rows.0.fusion", "'concat'", "did you mean 'concatenation'?"),
    ("rows.0.fusion=''", "rows.0.fusion", "''", "expected one of: TransformerBase"),
    ("models.desnet={}", "models.desnet", "'desnet'", "did you mean 'densenet'?"),
    ("data.name=cifar", "data.name", "'cifar'", "did you mean 'cifar10"),
    ("experts.augmentation=mixup", "experts.augmentation", "'mixup'", "expected one of: auto"),
    ("fusion.augmentation=strong", "fusion.augmentation", "'strong'", "expected one of: auto"),
    ("models.resnet.widht=8", "models.resnet.widht", "'widht'", "did you mean 'width'?"),
    ("models.resnet.num_classes=8", "models.resnet.num_classes", "'num_classes'", "blocks"),
    ("models.resnet.name=x", "models.resnet.name", "'name'", "blocks, dropout, frozen_stages"),
    ("models.resnext={wide: 1}", "models.resnext.wide", "'wide'", "cardinality"),  # has no row
    ("models.resnet.width=0", "models.resnet", "found 0", "at least 1"),
    ("models.resnet.width='8'", "models.resnet", "found '8'", "whole number"),
    ("models.resnet.width=1.5", "models.resnet", "found 1.5", "whole number"),
    ("models.resnet.width=", "models.resnet", "found None", "whole number"),
    ("models.resnet.width=2026-01-02", "models.resnet", "2026", "whole number"),
    ("models.resnet.width=100000000000", "models.resnet", "100000000000", ""),
    (f"models.resnet.width={2**80}", "models.resnet", "", ""),
    ("models.resnet.blocks=2", "models.resnet", "found 2", "a list"),
    ("models.resnet.blocks=[]", "models.resnet", "found []", "a list"),
    ("models.resnet.blocks=[1, x]", "models.resnet", "found 'x'", "blocks[1]"),
    ("models.resnet.blocks={1: 2}", "models.resnet", "{1: 2}", "a list"),
    ("models.resnet.dropout=1.0", "models.resnet", "1.0", "[0, 1)"),
    ("models.resnet.dropout=.nan", "models.resnet", "nan", "a number"),
    ("models.densenet.compression=0", "models.densenet", "0", "(0, 1]"),
    ("models.densenet.stem=10", "rows.1.fusion", "", "multiple of 8"),
    ("models.densenet.blocks=[1,1,1,1,1,1]", "data.image_size", "16x16", "densenet"),
    ("data.image_size=100000000000", "data.image_size", "100000000000", "resnet"),
]


@pytest.mark.parametrize(
    ("override", "path", "found", "expected"), MISTAKES, ids=[entry[0] for entry in MISTAKES]
)
def test_mistakes_are_named(
    tmp_path: Path, override: str, path: str, found: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, override)
    message = str(caught.value)
    assert message.startswith(f"small.yaml: {path}: ")
    assert found in message and expected in message
    assert "\n" not in message


def test_every_name_of_the_tables_is_accepted(tmp_path: Path) -> None:
    # full size, weightless; the longest tables decide how many rows that takes
    rows = [{"model": model, "fusion": fusion} for model in BUILDERS for fusion in FUSIONS]
    study = plan(tmp_path, f"rows={rows}", "models=", "data.image_size=32", "experts.count=4")
    assert len(study.rows) == len(BUILDERS) * len(FUSIONS)
    assert len({row.name for row in study.rows}) == len(study.rows)
    for name in AUGMENTATIONS:
        plan(tmp_path, f"experts.augmentation={name}", f"fusion.augmentation={name}")


# ------------------------------------------------------------------ what training gets

# reference/gmf-facts.md, section 5: rates of the experts, and of fusion module and global head
PUBLISHED = [
    ("multiplicative", 1024, 7e-5, 4e-4),
    ("multiplicative", 640, 1e-4, 5e-4),
    ("multiplicative", 512, 1e-4, 5e-4),
    ("multiplicativeAddition", 1024, 7e-5, 8e-4),
    ("multiplicativeAddition", 512, 1e-4, 1e-3),
    ("concatenation", 1024, 7e-5, 8e-4),
    ("concatenation", 640, 1e-4, 1e-3),
    ("simpleAddition", 1024, 7e-5, 8e-4),
    ("simpleAddition", 512, 1e-4, 1e-3),
    ("TransformerBase", 1024, 2.8e-5, 1.6e-4),
    ("TransformerBase", 640, 4e-5, 2e-4),
    ("multiplicative", 64, 1.3 * 1.1 * 1e-4, 1.2 * 5e-4),
]


@pytest.mark.parametrize(("fusion", "size", "experts", "heads"), PUBLISHED)
def test_rates_are_the_published_ones_unless_the_recipe_says_otherwise(
    tmp_path: Path, fusion: str, size: int, experts: float, heads: float
) -> None:
    assert plan(tmp_path).rates(fusion, size) == pytest.approx((experts, heads, heads))
    study = plan(tmp_path, "fusion.experts_lr=0.5")
    assert study.rates(fusion, size) == pytest.approx((0.5, heads, heads))
    study = plan(tmp_path, "fusion.fusion_lr=0.5")
    assert study.rates(fusion, size) == pytest.approx((experts, 0.5, 0.5))
    study = plan(tmp_path, "fusion.global_head_lr=0.5")
    assert study.rates(fusion, size) == pytest.approx((experts, heads, 0.5))
    study = plan(tmp_path, "fusion.fusion_lr=0.5", "fusion.global_head_lr=0.25")
    assert study.rates(fusion, size) == pytest.approx((experts, 0.5, 0.25))


def test_a_recipe_overrides_the_published_settings_and_only_those_it_names(tmp_path: Path) -> None:
    assert set(EXPERT_DEFAULTS) == set(BUILDERS)
    assert set(FUSION_DEFAULTS) == set(FUSIONS)
    study = plan(tmp_path)
    for model in BUILDERS:
        assert study.expert_defaults(model) == EXPERT_DEFAULTS[model]
    for fusion in FUSIONS:
        assert study.fusion_defaults(fusion) == FUSION_DEFAULTS[fusion]
    study = plan(
        tmp_path, "experts.lr=0.3", "experts.batch_size=7", "experts.augmentation=crop_flip",
        "experts.weight_decay=0", "experts.label_smoothing=0", "models.resnet.dropout=0.4",
        "fusion.weight_decay=0", "fusion.label_smoothing=0", "fusion.augmentation=crop_flip",
    )  # fmt: skip
    for model in BUILDERS:
        assert study.expert_defaults(model) == dataclasses.replace(
            EXPERT_DEFAULTS[model],
            lr=0.3,
            batch_size=7,
            augmentation="crop_flip",
            weight_decay=0,
            label_smoothing=0,
            dropout=0.4 if model == "resnet" else EXPERT_DEFAULTS[model].dropout,
        )
    for fusion in FUSIONS:
        assert study.fusion_defaults(fusion) == dataclasses.replace(
            FUSION_DEFAULTS[fusion], weight_decay=0, label_smoothing=0, augmentation="crop_flip"
        )


SHARED = "fusion.recipe=shared"


@pytest.mark.parametrize(
    ("size", "experts", "heads"),
    [
        (1024, 7e-5, 4e-4),
        (1000, 1e-4, 5e-4),
        (512, 1e-4, 5e-4),
        (100, 1e-4, 5e-4),
        (64, 1.3e-4, 6e-4),
    ],
)
def test_a_shared_recipe_is_the_same_for_every_fusion_type(
    tmp_path: Path, size: int, experts: float, heads: float
) -> None:
    """Adapted to the features' size by the general rule alone; what the recipe sets still wins."""
    study = plan(tmp_path, SHARED)
    own = plan(tmp_path, SHARED, "fusion.experts_lr=0.5", "fusion.label_smoothing=0")
    mixup = plan(tmp_path, SHARED, "fusion.mixing=mixup", "fusion.augmentation=crop_flip")
    for fusion in [*FUSIONS, "users_own"]:
        assert study.rates(fusion, size) == pytest.approx((experts, heads, heads))
        assert study.fusion_defaults(fusion) == SHARED_FUSION
        assert own.rates(fusion, size) == pytest.approx((0.5, heads, heads))
        expected = dataclasses.replace(SHARED_FUSION, label_smoothing=0)
        assert own.fusion_defaults(fusion) == expected
        augmentation = mixup.fusion_augmentation(fusion)
        assert (augmentation.policy, augmentation.mixing_alpha) == ("none", 0.2)


def test_shared_values_lie_between_the_published_ones() -> None:
    for name in ("experts_lr", "head_lr", "weight_decay", "mixup_alpha", "label_smoothing"):
        published = [getattr(defaults, name) for defaults in FUSION_DEFAULTS.values()]
        assert min(published) <= getattr(SHARED_FUSION, name) <= max(published), name
    used = {defaults.augmentation for defaults in FUSION_DEFAULTS.values()}
    assert SHARED_FUSION.augmentation in used


def test_rows_of_a_shared_recipe_draw_the_same_whatever_their_fusion(tmp_path: Path) -> None:
    types = ("multiplicative", "TransformerBase", "single")
    fusions = f"rows=[{', '.join(f'{{model: resnet, fusion: {name}}}' for name in types)}]"
    shared, own = plan(tmp_path, SHARED, fusions), plan(tmp_path, fusions)
    first, second, single = (shared.row_seed(row) for row in shared.rows)
    assert first == second != single
    assert len({first, *(own.row_seed(row) for row in own.rows)}) == 4
    # a single network has no fusion: in both recipes it's the same experiment
    assert single == own.row_seed(own.rows[2])
    another = plan(tmp_path, SHARED, fusions, "seed=43")
    assert another.row_seed(another.rows[0]) != first


def test_a_launch_can_do_some_of_the_rows(tmp_path: Path) -> None:
    """They keep their names and costs; only the experts that they need are left."""
    whole = plan(tmp_path)
    some = whole.matching(["densenet/*"])
    assert some.rows == whole.rows
    names = ["task-1-densenet-TransformerBase", "expert-densenet-0", "expert-densenet-1"]
    assert [task.name for task in some.tasks] == names
    for index, left in enumerate(some.tasks):
        assert left == dataclasses.replace(task(whole, left.name), index=index)
        assert some.identity(left).fields == whole.identity(left).fields


@pytest.mark.parametrize(
    ("patterns", "models"),
    [
        (["*"], ["resnet", "densenet"]),
        (["densenet/*", "resnet/conc*"], ["resnet", "densenet"]),
        (["*/TransformerBase"], ["densenet"]),
        (["re[sx]net/concatenation", "resnet/*"], ["resnet"]),
    ],
)
def test_patterns_are_the_shells(tmp_path: Path, patterns: list[str], models: list[str]) -> None:
    tasks = plan(tmp_path).matching(patterns).tasks
    assert [task.model for task in tasks if isinstance(task, RowTask)] == models


def test_a_pattern_that_fits_no_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"small\.yaml: --only: 'resnext/\*' fits no row; .*resnet"
    ):
        plan(tmp_path).matching(["resnet/*", "resnext/*"])


@pytest.mark.parametrize(
    ("grid", "place", "found"),
    [
        ("{models: [vgg], fusions: [concatenation]}", "grid.models.0", "vgg"),
        ("{models: [resnet], fusions: [multiplicative, sum]}", "grid.fusions.1", "sum"),
    ],
)
def test_names_in_a_grid_are_checked(tmp_path: Path, grid: str, place: str, found: str) -> None:
    with pytest.raises(RecipeError, match=rf"small\.yaml: {place}: found '{found}'"):
        plan(tmp_path, f"grid={grid}")


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    study = plan(tmp_path)
    assert study.layout.output_dir == Path("out")
    assert study.checkpoint_dir == Path("out/expert_checkpoints")
    assert study.splits_dir == Path("out/splits")
    study = plan(
        tmp_path, "output_dir=~/runs", "experts.checkpoint_dir=given", "data.splits_dir=~/splits"
    )
    assert study.layout.output_dir == tmp_path / "runs"
    assert study.checkpoint_dir == Path("given")
    assert study.splits_dir == tmp_path / "splits"
