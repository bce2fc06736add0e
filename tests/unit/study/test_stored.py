"""The study that an output directory holds, and what a launch adds to it."""

from dataclasses import replace
from pathlib import Path

import pytest

from fusionrun.study.paths import Layout
from fusionrun.study.recipe import Recipe, RecipeError
from fusionrun.study.recipe_yaml import dump_recipe, load_recipe
from fusionrun.study.stored import has_results, join_stored

STORED = """
output_dir: out
rows:
  - {model: resnet, fusion: concatenation}
  - {model: resnet, fusion: multiplicative, seed: 7}
controls: [frozen]
models: {resnet: {width: 8}}
fusion: {epochs: 3}
"""
NAMES = ["concatenation", "multiplicative-7", "concatenation-frozen", "multiplicative-frozen-7"]


def recipe(folder: Path, *overrides: str, text: str = STORED) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


def store(folder: Path, stored: Recipe, *, trained: bool = True) -> Layout:
    layout = Layout(folder / "out")
    layout.output_dir.mkdir()
    layout.recipe.write_text(dump_recipe(stored))
    if trained:
        manifest = layout.row("resnet", "concatenation").manifest
        manifest.parent.mkdir(parents=True)
        manifest.touch()
    return layout


def names(of: Recipe) -> list[str]:
    return [
        "-".join(str(p) for p in (row.fusion, row.control, row.seed) if p and p != of.seed)
        for row in of.all_rows()
    ]


def test_an_empty_folder_changes_nothing(tmp_path: Path) -> None:
    own = recipe(tmp_path)
    assert join_stored(own, Layout(tmp_path / "out")) is own


def test_the_same_study_stays_as_it_is_written(tmp_path: Path) -> None:
    own = recipe(tmp_path)
    assert names(own) == NAMES
    assert join_stored(own, store(tmp_path, own)) == own


def test_fewer_rows_leave_the_stored_table(tmp_path: Path) -> None:
    whole = recipe(tmp_path)
    layout = store(tmp_path, whole)
    one = recipe(tmp_path, "rows=[{model: resnet, fusion: concatenation}]", "controls=[]")
    joined = join_stored(one, layout)
    assert (joined.rows, joined.controls) == (whole.rows, whole.controls)


def test_more_rows_come_after_the_stored_ones(tmp_path: Path) -> None:
    layout = store(tmp_path, recipe(tmp_path))
    rows = "rows=[{model: densenet, fusion: concatenation}, {model: resnet, fusion: concatenation}]"
    joined = join_stored(recipe(tmp_path, rows, "controls=[]"), layout)
    assert names(joined) == [*NAMES, "concatenation"]
    assert joined.all_rows()[-1].model == "densenet"
    assert joined.models == {"resnet": {"width": 8}}
    again = join_stored(joined, layout)
    assert names(again) == names(joined)


def test_rows_of_other_experts_come_after_the_stored_ones(tmp_path: Path) -> None:
    layout = store(tmp_path, recipe(tmp_path))
    grid = "grid={models: [resnet], fusions: [concatenation], expert_seeds: [42, 43]}"
    joined = join_stored(recipe(tmp_path, "rows=[]", grid, "controls=[]"), layout)
    assert names(joined) == [*NAMES, "concatenation"]
    assert [row.expert_seed for row in joined.all_rows()] == [*[None] * len(NAMES), 43]
    assert names(join_stored(recipe(tmp_path), layout)) == NAMES


def test_networks_that_are_made_already_stay_what_they_are(tmp_path: Path) -> None:
    """Whatever the recipe of a launch that doesn't use them says of them by now."""
    layout = store(tmp_path, recipe(tmp_path, "models.resnet.dropout=0.1"))
    rows = "rows=[{model: densenet, fusion: concatenation}]"
    joined = join_stored(recipe(tmp_path, rows, "controls=[]", "models.densenet.growth=4"), layout)
    assert joined.models == {"resnet": {"width": 8, "dropout": 0.1}, "densenet": {"growth": 4}}


MIXED = "rows=[{{model: [resnet, densenet], fusion: {fusion}, name: {name}}}]"


def test_different_experts_keep_the_name_that_they_have(tmp_path: Path) -> None:
    """Whoever adds rows of them needn't know it; nobody can give them another one."""
    stored = recipe(tmp_path, MIXED.format(fusion="concatenation", name="duo"))
    layout = store(tmp_path, stored, trained=False)
    manifest = layout.row("mixed-duo", "concatenation").manifest
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    for fusion, count in (("concatenation", 2), ("multiplicative", 4)):
        own = recipe(tmp_path, MIXED.format(fusion=fusion, name="null"), "experts.count=4")
        joined = join_stored(own, layout)
        assert {row.label for row in joined.all_rows()} == {"mixed-duo"}
        assert len(joined.all_rows()) == count  # with their controls
    for entry, said in (
        (MIXED.format(fusion="multiplicative", name="other"), "mixed-other are called mixed-duo"),
        ("rows=[{model: [densenet, resnet], fusion: concatenation, name: duo}]", "other experts"),
    ):
        with pytest.raises(RecipeError, match=said):
            join_stored(recipe(tmp_path, entry), layout)


def test_the_experts_of_a_mixed_row_belong_to_the_study(tmp_path: Path) -> None:
    layout = store(tmp_path, recipe(tmp_path))
    own = recipe(tmp_path, MIXED.format(fusion="concatenation", name="null"))
    assert names(join_stored(own, layout)) == [*NAMES, "concatenation", "concatenation-frozen"]
    with pytest.raises(RecipeError, match=r"models\.resnet\.width: 8 there, 9 in this recipe"):
        join_stored(replace(own, models={"resnet": {"width": 9}}), layout)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("fusion.dim=64", r"fusion\.dim: None there, 64 in this recipe"),
        ("fusion.epochs=4", r"fusion\.epochs: 3 there, 4 in this recipe.*scheduled over all"),
        ("experts.lr=0.2", r"experts\.lr: None there, 0\.2 in this recipe"),
        ("models.resnet.width=9", r"models\.resnet\.width: 8 there, 9 in this recipe"),
        ("data.name=cifar10", r"data\.name: 'cifar100' there, 'cifar10' in this recipe"),
        ("seed=3", r"seed: 42 there, 3 in this recipe"),
        ("fusion.recipe=shared", r"fusion\.recipe: 'per_type' there, 'shared' in this recipe"),
        ("fusion.schedule=annealed", r"fusion\.schedule: 'restarts' there, 'annealed' in this"),
    ],
)
def test_another_study_is_refused(tmp_path: Path, change: str, said: str) -> None:
    layout = store(tmp_path, recipe(tmp_path))
    with pytest.raises(RecipeError, match=said):
        join_stored(recipe(tmp_path, change), layout)


@pytest.mark.parametrize(
    "change",
    [
        "fusion.micro_batch=auto",
        "data.root=elsewhere",
        "data.splits_dir=elsewhere",
        "runtime.threads=3",
        "logs.tensorboard=false",
        "models.densenet.growth=4",
        "models.resnet.dropout=0.0",
    ],
)
def test_where_and_how_it_runs_is_free(tmp_path: Path, change: str) -> None:
    layout = store(tmp_path, recipe(tmp_path))
    if change.startswith("models.resnet"):  # dropout isn't the same for experts and rows
        with pytest.raises(RecipeError):
            join_stored(recipe(tmp_path, change), layout)
    else:
        assert names(join_stored(recipe(tmp_path, change), layout)) == NAMES


def test_a_recipe_that_nothing_was_trained_for_counts_for_nothing(tmp_path: Path) -> None:
    layout = store(tmp_path, recipe(tmp_path), trained=False)
    other = recipe(tmp_path, "fusion.epochs=9")
    assert join_stored(other, layout) is other
    assert not has_results(other, layout)
    expert = layout.expert_checkpoints / "resnet/expert_0_best.pth"
    expert.parent.mkdir(parents=True)
    expert.touch()
    assert has_results(other, layout)


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    layout = store(tmp_path, recipe(tmp_path))
    layout.recipe.write_text("rows: {")
    with pytest.raises(RecipeError, match=r"out/recipe\.yaml: is not valid YAML"):
        join_stored(recipe(tmp_path), layout)
