"""What a recipe says of architectures: arguments, settings, other libraries' names."""

from pathlib import Path

import pytest

from fusionrun.experts import BUILDERS, Expert
from fusionrun.study import models
from fusionrun.study.paths import Layout, label_of
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import Recipe, RecipeError
from fusionrun.study.recipe_yaml import dump_for_study, load_recipe, make_recipe
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, RowTask

VIT = "timm:test_vit"


def recipe(*overrides: str, **more: object) -> Recipe:
    tree = {
        "output_dir": "out",
        "rows": [{"model": VIT, "fusion": "concatenation"}],
        "data": {"name": "synthetic", "image_size": 16},
        **more,
    }
    return make_recipe(tree, "r.yaml", overrides)


def plan(*overrides: str, **more: object) -> Study:
    return plan_study(recipe(*overrides, **more), "r.yaml")


def test_names_with_dots_in_overrides() -> None:
    dotted = "timm:test_vit.r160_in1k"
    overrides = (f"models.{dotted}.lr=0.1", f"models.{dotted}.image_size=32")
    assert recipe(*overrides).models == {dotted: {"lr": 0.1, "image_size": 32}}
    whole = recipe(f"models.{dotted}={{lr: 0.2}}", f"models.{dotted}.row_lr=0.1")
    assert whole.models == {dotted: {"lr": 0.2, "row_lr": 0.1}}
    inner = recipe(
        f"models.{dotted}.normalisation.1.0=2.0",
        models={dotted: {"normalisation": [[0, 0, 0], [1, 1, 1]]}},
    )
    assert inner.models[dotted]["normalisation"] == [[0, 0, 0], [2.0, 1, 1]]
    assert recipe("models.resnet.width=8").models == {"resnet": {"width": 8}}


def test_files_and_tasks_are_called_without_a_colon() -> None:
    assert label_of("timm:vit_x.y-z") == "timm-vit_x.y-z"
    assert label_of("größe") == "größe" != label_of("grüße")  # plug-ins may be called so
    study = plan("experts.count=2")
    assert [task.name for task in study.tasks] == [
        "task-0-timm-test_vit-concatenation",
        "expert-timm-test_vit-0",
        "expert-timm-test_vit-1",
    ]
    layout = Layout(Path("out"))
    files = layout.row(VIT, "concatenation")
    paths = [files.directory, files.csv, layout.expert_csv(VIT, 0), layout.expert_resume(VIT, 0)]
    paths += [layout.measured_row(VIT, "x"), layout.wandb_run(VIT, "x"), study.expert_file(VIT, 0)]
    assert not any(":" in str(path) for path in paths)


def test_images_that_a_network_cannot_take_are_a_mistake_of_the_field_that_says_their_size() -> (
    None
):
    inception = "timm:inception_v3"
    rows = [{"model": inception, "fusion": "concatenation"}]
    with pytest.raises(RecipeError, match=r"r\.yaml: data\.image_size: .* can't take 16x16 images"):
        plan(rows=rows)
    with pytest.raises(RecipeError, match=r"models\.timm:inception_v3\.image_size: .* 50x50"):
        plan(f"models.{inception}.image_size=50", rows=rows)
    mvit = "timm:mvitv2_tiny"  # which finds out by an IndexError
    rows = [{"model": mvit, "fusion": "concatenation"}]
    with pytest.raises(RecipeError, match=r"mvitv2_tiny\.image_size: it can't take 50x50 images: "):
        plan(f"models.{mvit}.image_size=50", rows=rows)


def test_what_builds_a_network_is_apart_from_how_it_is_trained() -> None:
    settings = {"normalisation": "imagenet", "image_size": 32, "frozen_stages": 2, "lr": 0.3}
    study = plan(models={VIT: {**settings, "row_lr": 0.2, "pretrained": "x.pth"}})
    assert study.model_arguments(VIT) == {"normalisation": "imagenet", "image_size": 32}
    expert = study.build_expert(VIT, 3)
    assert (expert.input_size, len(expert.frozen)) == (32, len(expert.frozen) or 1)
    assert any(not weight.requires_grad for weight in expert.parameters())
    assert study.expert_defaults(VIT).lr == 0.3
    assert plan("experts.lr=0.4").expert_defaults(VIT).lr == 0.4
    assert plan().expert_defaults(VIT).lr == 0.01


def test_each_setting_counts_where_it_decides_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"weights")
    file = str(tmp_path / "x.pth")
    plain, expert = plan(), ExpertTask(1, VIT, 0, 1.0, 1)
    row = plain.row_tasks[0]
    assert isinstance(row, RowTask)
    for name, value, changes in (
        ("lr", 0.3, (True, False)),
        ("row_lr", 0.3, (False, True)),
        ("pretrained", file, (True, False)),
        ("frozen_stages", 1, (True, True)),
        ("image_size", 32, (True, True)),
        ("normalisation", "imagenet", (True, True)),
        ("normalisation", "data", (False, False)),  # the default
        ("pretrained", False, (False, False)),
        ("normalisation", None, (False, False)),
    ):
        other = plan(models={VIT: {name: value}})
        found = [
            bool(other.identity(task).differences(plain.identity(task).fields))
            for task in (expert, row)
        ]
        assert tuple(found) == changes, name


def test_a_file_of_weights_is_its_content_and_not_its_place(tmp_path: Path) -> None:
    expert = ExpertTask(1, VIT, 0, 1.0, 1)
    texts = {"a/x.pth": b"1", "b/x.pth": b"1", "c/x.pth": b"2"}
    for name, content in texts.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    a, b, c, gone = (
        plan(models={VIT: {"pretrained": str(tmp_path / name)}}).identity(expert)
        for name in (*texts, "d/x.pth")
    )
    assert not b.differences(a.fields) and not gone.differences(a.fields)
    assert not a.differences(gone.fields)
    assert "models.timm:test_vit.pretrained" in "".join(c.differences(a.fields))


def test_a_stored_recipe_has_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", "w$")
    stored = tmp_path / "stored.yaml"
    stored.write_text(dump_for_study(recipe(models={VIT: {"pretrained": "$HERE/x.pth"}})))
    assert load_recipe(stored).models[VIT]["pretrained"] == str(tmp_path / "w$/x.pth")
    with pytest.raises(RecipeError, match=r"pretrained: found .*NOWHERE is not set"):
        recipe(models={VIT: {"pretrained": "$NOWHERE/x.pth"}})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=x", "models.timm:test_vit.lr: found 'x'"),
        ("lr=0", "models.timm:test_vit.lr: found 0"),
        ("frozen_stages=-1", "models.timm:test_vit.frozen_stages: found -1"),
        ("frozen_stages=99", "frozen_stages: found 99, its trunk has"),
        ("image_size=7", "image_size must be 8 to 384 pixels, found 7"),
        ("normalisation=imagnet", "normalisation must be data, imagenet or"),
        ("num_classes=4", "models.timm:test_vit.num_classes: found a value"),
        ("in_chans=1", "models.timm:test_vit.in_chans: found a value"),
        ("name=4", "models.timm:test_vit.name: found a value"),
        ("widht=4", "unexpected keyword argument 'widht'"),
    ],
)
def test_mistakes_are_the_recipes(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(f"models.{VIT}.{override}")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_networks_and_weights_of_none() -> None:
    with pytest.raises(RecipeError, match="did you mean 'test_vit"):
        plan(rows=[{"model": "timm:test_vitt", "fusion": "concatenation"}])
    with pytest.raises(RecipeError, match="no library has weights of it"):
        plan(models={"resnet": {"pretrained": True}})


def test_a_fifth_architecture_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fifth(BUILDERS["resnet"]):  # type: ignore[misc]
        """As another file would have it."""

        def __init__(self, num_classes: int, lr: float = 3.0) -> None:
            super().__init__(num_classes, [1], 8)
            self.own = lr

    monkeypatch.setitem(BUILDERS, "fifth", Fifth)
    rows = [{"model": "fifth", "fusion": "concatenation"}]
    study = plan(rows=rows, models={"fifth": {"lr": 5.0, "row_lr": 0.1}})
    expert = study.build_expert("fifth", 3)
    assert isinstance(expert, Expert) and expert.own == 5.0  # its own argument, not the setting
    assert models.settings_of(study.recipe, "fifth").lr is None
    assert study.expert_defaults("fifth").lr == 0.1
