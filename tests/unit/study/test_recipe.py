"""Recipes: exactly what is written, or a message that says where, what was found and expected."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusionrun.common.text import nearest
from fusionrun.common.typed_fields import flatten
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import ExpertsConfig, Recipe, RecipeError
from fusionrun.study.recipe_yaml import dump_for_study, dump_recipe, load_recipe

ROOT = Path(__file__).resolve().parents[3]

BASE = {
    "output_dir": "out",
    "rows": "[{model: resnet, fusion: concatenation}, {model: densenet, fusion: multiplicative}]",
}
SECTIONS = ("data", "models", "experts", "fusion", "runtime", "checkpoint", "logs", "status")


def text_of(**changes: str) -> str:
    """A recipe's YAML: the smallest one, with top-level keys added or replaced."""
    return "".join(f"{key}: {value}\n" for key, value in {**BASE, **changes}.items())


def load(
    folder: Path, text: str, *overrides: str, preset: Mapping[str, Any] | None = None
) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides, preset)


def problem(
    folder: Path, text: str, *overrides: str, preset: Mapping[str, Any] | None = None
) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *overrides, preset=preset)
    return str(caught.value)


# ------------------------------------------------------------------ what is wrong, said well

# (key, its value as YAML, dotted path of the mistake, what was found, what was expected)
WRONG: list[tuple[str, str, str, str, str]] = [
    ("fuson", "{}", "fuson", "'fuson'", "did you mean 'fusion'?"),
    ("xyz", "1", "xyz", "'xyz'", "expected one of: checkpoint, controls, data"),
    ("fusion", "{epcohs: 3}", "fusion.epcohs", "'epcohs'", "did you mean 'epochs'?"),
    ("data", "{holdout: 0.2}", "data.holdout", "'holdout'", "did you mean 'holdout_fraction'?"),
    ("1", "2", "1", "unknown key", "expected one of: checkpoint, controls, data"),
    ("seed", "ten", "seed", "'ten' (text)", "a whole number"),
    ("seed", "'10'", "seed", "'10' (text)", "a whole number"),
    ("seed", "1.0", "seed", "1.0", "a whole number"),
    ("seed", "yes", "seed", "'yes' (text)", "a whole number"),
    ("seed", "null", "seed", "None (nothing)", "a whole number"),
    ("seed", "[1]", "seed", "[1] (a list)", "a whole number"),
    ("seed", "2026-01-02", "seed", "2026", "a whole number"),
    ("seed", "-1", "seed", "-1", "0 or more"),
    ("seed", "18446744073709551616", "seed", "18446744073709551616", "64 bits"),
    ("output_dir", "3", "output_dir", "3 (a number)", "text"),
    ("output_dir", "{a: b}", "output_dir", "{'a': 'b'} (a mapping)", "text"),
    ("output_dir", "' '", "output_dir", "' '", "a folder"),
    ("output_dir", '"a\\0b"', "output_dir", "'a\\x00b'", "printable"),
    ("output_dir", '"a\\nb"', "output_dir", "'a\\nb'", "printable"),
    ("rows", "[]", "rows", "[]", "at least one"),
    ("grid", "{models: [a]}", "grid.fusions", "nothing", "expected a value"),
    ("grid", "{models: [], fusions: [b]}", "grid.models", "[]", "at least one"),
    ("grid", "{models: [a, a], fusions: [b]}", "grid.models.1", "'a'", "each one once"),
    ("grid", "{models: [a], fusions: [b], seeds: [1, -2]}", "grid.seeds.1", "-2", "0 or more"),
    ("grid", "{models: [a], fusions: [b], alphas: [x]}", "grid.alphas.0", "'x'", "a number"),
    (
        "grid",
        "{models: [a], fusions: [b], seed: [1]}",
        "grid.seed",
        "'seed'",
        "did you mean 'seeds'?",
    ),
    ("rows", "null", "rows", "nothing", "a list"),
    ("rows", "{model: resnet, fusion: concatenation}", "rows", "a mapping", "a list"),
    ("rows", "[resnet]", "rows.0", "text", "fields of: model, fusion"),
    ("rows", "[{model: resnet}]", "rows.0.fusion", "nothing", "expected a value"),
    ("rows", "[{model: a, fusion: b, alpa: 1}]", "rows.0.alpa", "'alpa'", "did you mean 'alpha'?"),
    ("rows", "[{model: 1, fusion: b}]", "rows.0.model", "1", "text"),
    ("rows", "[{model: [a, 2], fusion: b}]", "rows.0.model.1", "2", "text"),
    ("rows", "[{model: {a: 1, b: x}, fusion: c}]", "rows.0.model.b", "'x'", "a whole number"),
    ("rows", "[{model: {a: 0, b: 1}, fusion: c}]", "rows.0.model.a", "0", "1 or more"),
    ("rows", "[{model: , fusion: b}]", "rows.0.model", "nothing", "a value"),
    ("rows", "[{model: [], fusion: b}]", "rows.0.model", "[]", "two or more different"),
    ("rows", "[{model: [a, a], fusion: b}]", "rows.0.model", "['a', 'a']", "is written model:"),
    ("rows", "[{model: {a: 4, b: 1}, fusion: c}]", "rows.0.model", "'b']", "4 (experts.count)"),
    ("rows", "[{model: [a, b], fusion: single}]", "rows.0.model", "'b']", "one architecture"),
    ("rows", "[{model: a, fusion: b, name: c}]", "rows.0.name", "'c'", "null"),
    ("rows", "[{model: [a, b], fusion: c, name: d/e}]", "rows.0.name", "'d/e'", "letters"),
    (
        "rows",
        "[{model: [a, b], fusion: c, name: d}, {model: [b, a], fusion: c, name: d}]",
        "rows.1.name",
        "'d'",
        "whose experts are others",
    ),
    (
        "rows",
        "[{model: [a, b], fusion: c, name: d}, {model: [a, b], fusion: e, name: f}]",
        "rows.1.name",
        "'f'",
        "'d' as in rows.0",
    ),
    ("grid", "{models: [[a, b], {a: 1, b: 1}], fusions: [c]}", "grid.models.1", "'b'", "once"),
    ("grid", "{models: [{a: 9, b: 1}], fusions: [c]}", "grid.models", "'a'", "(experts.count)"),
    ("fusion", "{dim: 0}", "fusion.dim", "0", "above 0"),
    ("rows", "[{model: a, fusion: b, alpha: -1}]", "rows.0.alpha", "-1.0", "0 or more"),
    ("rows", "[{model: a, fusion: b}, {model: a, fusion: b}]", "rows.1", "rows.0", "another seed"),
    ("data", "cifar100", "data", "text", "fields of: name, root"),
    ("data", "[name]", "data", "a list", "fields of: name, root"),
    ("data", "{image_size: 7}", "data.image_size", "7", "8 or more"),
    ("data", "{num_classes: 1}", "data.num_classes", "1", "2 or more"),
    ("data", "{train_images: 0}", "data.train_images", "0", "above 0"),
    ("data", "{holdout_fraction: 0}", "data.holdout_fraction", "0.0", "between 0 and 1"),
    ("data", "{val_fraction: 1.0}", "data.val_fraction", "1.0", "between 0 and 1"),
    ("data", "{shared_fraction: 1.01}", "data.shared_fraction", "1.01", "from 0 to 1"),
    ("data", "{unique_fraction: 0, shared_fraction: 0}", "data.unique_fraction", "0.0", "above 0"),
    ("data", "{split: noniid}", "data.split", "'noniid'", "did you mean 'non_iid'?"),
    ("data", "{split: 3}", "data.split", "3", "expected one of: iid, non_iid"),
    ("data", "{download: 1}", "data.download", "1", "true or false"),
    ("models", "[resnet]", "models", "a list", "a mapping"),
    ("models", "{resnet: 18}", "models.resnet", "a number", "a mapping"),
    ("experts", "{count: 1}", "experts.count", "1", "2 or more"),
    ("experts", "{lr: 0}", "experts.lr", "0.0", "above 0"),
    ("experts", "{lr: fast}", "experts.lr", "'fast'", "a number"),
    ("experts", "{lr: .nan}", "experts.lr", "nan", "finite"),
    ("experts", "{lr: nan}", "experts.lr", "'nan' (text)", "a number"),
    ("experts", "{lr: .inf}", "experts.lr", "inf", "finite"),
    ("experts", "{lr: 1e999}", "experts.lr", "inf", "finite"),
    ("experts", f"{{lr: {'9' * 400}}}", "experts.lr", "9999", "a number"),
    ("experts", "{label_smoothing: 1}", "experts.label_smoothing", "1.0", "below 1"),
    ("fusion", "{alpha: -.inf}", "fusion.alpha", "-inf", "finite"),
    ("fusion", "{alpha: [1.0]}", "fusion.alpha", "[1.0]", "a number"),
    ("fusion", "{alpha: true}", "fusion.alpha", "True", "a number"),
    ("fusion", "{epochs: 0}", "fusion.epochs", "0", "above 0"),
    ("fusion", "{epochs: 1e2}", "fusion.epochs", "100.0", "a whole number"),
    ("fusion", "{batch_size: 1}", "fusion.batch_size", "1", "2 or more"),
    ("runtime", "{device: gpu}", "runtime.device", "'gpu'", "expected one of: auto, cpu, cuda"),
    ("runtime", "{amp: on}", "runtime.amp", "'on'", "expected one of: auto, bf16, fp16, off"),
    ("runtime", "{graphs: on}", "runtime.graphs", "'on'", "expected one of: auto, off"),
    ("runtime", "{compile: true}", "runtime.compile", "True", "expected one of: auto, off"),
    ("runtime", "{threads: 0}", "runtime.threads", "0", "above 0"),
    ("checkpoint", "{every_minutes: 0}", "checkpoint.every_minutes", "0.0", "above 0"),
    ("logs", "{wandb: true}", "logs.wandb", "True", "expected one of: off, offline, online"),
    ("logs", "{tensorboard: 'no'}", "logs.tensorboard", "'no'", "true or false"),
    ("status", "{every_seconds: 0}", "status.every_seconds", "0.0", "above 0"),
]
IDS = [f"{path}-{value[:30]}" for _, value, path, _, _ in WRONG]


@pytest.mark.parametrize(("key", "value", "path", "found", "expected"), WRONG, ids=IDS)
def test_a_mistake_in_the_file_is_named(
    tmp_path: Path, key: str, value: str, path: str, found: str, expected: str
) -> None:
    message = problem(tmp_path, text_of(**{key: value}))
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: {path}: ")
    rest = message.removeprefix(f"{tmp_path / 'recipe.yaml'}: {path}: ")
    assert found in rest and expected in rest
    assert "\n" not in message


@pytest.mark.parametrize(("key", "value", "path", "found", "expected"), WRONG, ids=IDS)
def test_a_mistake_in_an_override_is_named(
    tmp_path: Path, key: str, value: str, path: str, found: str, expected: str
) -> None:
    message = problem(tmp_path, text_of(), f"{key}={value}")
    source = f"override {f'{key}={value}'!r}: {path}: "
    assert message.startswith(source)
    assert found in message.removeprefix(source) and expected in message.removeprefix(source)
    assert "recipe.yaml" not in message


def fields(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, declared type) of every plain field of a dataclass and those inside it."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from fields(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def scalar(hint: Any) -> tuple[Any, bool]:
    """(the type, whether null is one of its values)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = typing.get_args(hint)
        return next(kind for kind in kinds if kind is not type(None)), type(None) in kinds
    return hint, False


NUMBERS = [path for path, hint in fields(Recipe) if scalar(hint)[0] in (int, float)]
PLAIN = [p for p, _ in fields(Recipe) if p not in ("rows", "grid", "models", "plugins")]


def test_the_fields_are_found() -> None:
    assert {"seed", "fusion.alpha", "experts.lr", "data.train_images"} <= set(NUMBERS)
    assert {"output_dir", "data.name", "logs.wandb", "data.download"} <= set(PLAIN) - set(NUMBERS)


@pytest.mark.parametrize("value", ["-1", ".nan", "-.inf", "{}", "[]", "some"])
def test_no_number_is_negative_or_none_at_all(tmp_path: Path, value: str) -> None:
    for path in NUMBERS:
        assert f": {path}: found" in problem(tmp_path, text_of(), f"{path}={value}")


def test_null_is_refused_where_it_has_no_meaning(tmp_path: Path) -> None:
    for path, hint in fields(Recipe):
        if path in PLAIN and scalar(hint)[1]:
            node: Any = load(tmp_path, text_of(), f"{path}=null")
            for name in path.split("."):
                node = getattr(node, name)
            assert node is None
        elif path in PLAIN:
            assert f": {path}: found" in problem(tmp_path, text_of(), f"{path}=null")


def test_long_values_are_shortened(tmp_path: Path) -> None:
    message = problem(tmp_path, text_of(seed="x" * 5000))
    assert "found 'xxx" in message and "expected a whole number" in message
    assert len(message) < len(str(tmp_path)) + 200


def test_the_nearest_name_ignores_far_ones() -> None:
    assert nearest("resnt", ["resnet", "resnext"]).startswith("did you mean 'resnet'? expected one")
    assert nearest("zzz", ["resnet", "densenet"]) == "expected one of: densenet, resnet"


# ------------------------------------------------------------------ what is meant, understood


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.0e-4", 1e-4), ("2", 2.0), (".5", 0.5), ("+1e2", 100.0)],
)
def test_numbers_as_people_write_them(tmp_path: Path, written: str, meant: float) -> None:
    for recipe in (
        load(tmp_path, text_of(experts=f"{{lr: {written}}}")),
        load(tmp_path, text_of(), f"experts.lr={written}"),
    ):
        assert recipe.experts.lr == meant
        assert type(recipe.experts.lr) is float


AMBIGUOUS = ["0042", "08", "0o42", "0x1F", "0b1", "1_000", "1:30", "1:00:00", "00:30", "1:30.5"]


@pytest.mark.parametrize("written", [*AMBIGUOUS, "-0042", "~"])
@pytest.mark.parametrize("key", ["seed", "fusion.alpha", "data.name", "models.resnet.width"])
def test_a_number_is_what_everybody_reads(tmp_path: Path, key: str, written: str) -> None:
    """YAML 1.1 reads 0042 as 34 and 1:30 as 90, YAML 1.2 as 42 and as text."""
    *sections, last = key.split(".")
    text = f"{{{last}: {written}}}" if sections else written
    text = f"{{{sections[1]}: {text}}}" if len(sections) > 1 else text
    place = f"{tmp_path / 'recipe.yaml'}: {key}: "
    assert problem(tmp_path, text_of(**{key.split(".")[0]: text})).startswith(
        f"{place}found {written}"
    )
    override = f"{key}={written}"
    message = problem(tmp_path, text_of(), override)
    assert message.startswith(f"override {override!r}: found {written}")
    assert "write " in message


@pytest.mark.parametrize("written", ["no", "on", "Yes", "2024-01-01", "1.5.2", "=", "12e", "y"])
def test_text_stays_text(tmp_path: Path, written: str) -> None:
    """YAML 1.1 makes booleans and dates of them."""
    assert load(tmp_path, text_of(data=f"{{name: {written}}}")).data.name == written
    assert load(tmp_path, text_of(), f"data.name={written}").data.name == written


@pytest.mark.parametrize("written", ["yes", "No", "ON", "off", "y"])
@pytest.mark.parametrize("key", ["data.download", "models.resnet.narrow"])
def test_a_switch_is_true_or_false(tmp_path: Path, key: str, written: str) -> None:
    if (key, written) == ("models.resnet.narrow", "y"):
        return  # to no reader of YAML a boolean
    message = problem(tmp_path, text_of(), f"{key}={written}")
    assert f"found {written!r} (text), expected true or false" in message


@pytest.mark.parametrize("word", [*AMBIGUOUS, "~", "1e3", "2024-01-01", "null", "=", "<<"])
def test_any_text_survives_the_stored_recipe(tmp_path: Path, word: str) -> None:
    recipe = load(tmp_path, text_of(models=f"{{resnet: {{kind: [{word!r}, x]}}}}"), "data.name=q")
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(recipe))
    assert load_recipe(copy) == recipe
    assert load_recipe(copy).models == {"resnet": {"kind": [word, "x"]}}


PATHS = ["output_dir", "data.root", "data.cache_dir", "data.splits_dir", "experts.checkpoint_dir"]


@pytest.mark.parametrize("key", PATHS)
def test_paths_are_read_as_a_shell_reads_them(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    section, _, last = key.rpartition(".")
    for written, meant in [
        ("$SCRATCH/x", "/scratch/me/x"),
        ("${SCRATCH}_x", "/scratch/me_x"),
        ("~/x", "/home/me/x"),
        ("a~b", "a~b"),
        ("./~/x", "./~/x"),
        ("a$$b", "a$b"),
    ]:
        tree = {section: f"{{{last}: {written!r}}}"} if section else {key: repr(written)}
        for recipe in (
            load(tmp_path, text_of(**tree)),
            load(tmp_path, text_of(), f"{key}={written}"),
        ):
            assert flatten(recipe)[key] == meant
            copy = tmp_path / "copy.yaml"
            copy.write_text(dump_recipe(recipe))
            assert load_recipe(copy) == recipe
    for written, found in [
        ("$NOWHERE/x", "NOWHERE is not set"),
        ("${NOWHERE}", "NOWHERE is not set"),
        ("${SCRATCH:-x}", "expected $NAME or ${NAME}"),
        ("$(pwd)/x", "expected $NAME or ${NAME}"),
        ("~nobody-is-called-so/x", "~nobody-is-called-so is nobody's home"),
        ("", "expected a path or null" if section else "(nothing)"),
    ]:
        message = problem(tmp_path, text_of(), f"{key}={written}")
        assert message.startswith(f"override '{key}={written}': ")
        assert found in message


@pytest.mark.parametrize("written", ["off", "'off'", "Off", "false"])
def test_off_is_off(tmp_path: Path, written: str) -> None:
    runtime = f"{{amp: {written}, graphs: {written}, compile: {written}}}"
    recipe = load(tmp_path, text_of(logs=f"{{wandb: {written}}}", runtime=runtime))
    assert (recipe.logs.wandb, recipe.runtime.amp) == ("off", "off")
    assert (recipe.runtime.graphs, recipe.runtime.compile) == ("off", "off")


@pytest.mark.parametrize("section", SECTIONS)
def test_an_empty_section_is_all_defaults(tmp_path: Path, section: str) -> None:
    default = load(tmp_path, text_of())
    assert load(tmp_path, text_of(**{section: ""})) == default
    assert load(tmp_path, text_of(**{section: "{}"})) == default
    assert load(tmp_path, text_of(), f"{section}=") == default


def test_a_model_without_arguments_has_none(tmp_path: Path) -> None:
    assert load(tmp_path, text_of(models="{resnet: }")).models == {"resnet": {}}


def test_rows_may_be_shared_by_anchor(tmp_path: Path) -> None:
    rows = "[&first {model: resnet, fusion: concatenation}, {<<: *first, seed: 7}]"
    first, second = load(tmp_path, text_of(rows=rows)).rows
    assert (first.seed, second.seed) == (None, 7)
    assert (second.model, second.fusion) == ("resnet", "concatenation")


def test_merged_mappings_are_no_duplicates(tmp_path: Path) -> None:
    # PyYAML merges into `y` before it builds `y`, which then holds `stem` twice
    models = "{resnext: {x: &a {growth: 4, stem: 8}, y: &b {<<: *a, stem: 4}}, resnet: {<<: *b}}"
    recipe = load(tmp_path, text_of(models=models))
    assert recipe.models["resnet"] == recipe.models["resnext"]["y"] == {"growth": 4, "stem": 4}


def test_a_grid_is_every_combination_with_the_models_first(tmp_path: Path) -> None:
    grid = "{models: [a, b], fusions: [c, d], seeds: [1, 2], alphas: [0.5]}"
    recipe = load(tmp_path, text_of(rows="[]", grid=grid))
    rows = recipe.all_rows()
    found = [(row.model, row.fusion, row.seed, row.alpha) for row in rows]
    assert found[:3] == [("a", "c", 1, 0.5), ("b", "c", 1, 0.5), ("a", "d", 1, 0.5)]
    assert sorted(map(str, found)) == sorted(
        str((model, fusion, seed, 0.5)) for model in "ab" for fusion in "cd" for seed in (1, 2)
    )


def test_a_grid_trains_the_experts_once_more_with_each_of_their_seeds(tmp_path: Path) -> None:
    grid = "{models: [a, b], fusions: [c], seeds: [1, 2], expert_seeds: [42, 43]}"
    text = text_of(rows="[{model: a, fusion: c, seed: 1}]", grid=grid, controls="[frozen, single]")
    rows = load(tmp_path, text).all_rows()
    asked = [row for row in rows if row.control is None and row.fusion != "single"]
    found = [(row.model, row.seed, row.expert_seed) for row in asked]
    assert found == [
        ("a", 1, None), ("b", 1, 42), ("a", 1, 43), ("b", 1, 43),
        ("a", 2, 42), ("b", 2, 42), ("a", 2, 43), ("b", 2, 43),
    ]  # fmt: skip
    frozen = [(row.model, row.seed, row.expert_seed) for row in rows if row.control == "frozen"]
    assert frozen == found
    # which has no experts
    single = [(row.model, row.seed, row.expert_seed) for row in rows if row.fusion == "single"]
    assert single == [("a", 1, None), ("b", 1, None), ("a", 2, None), ("b", 2, None)]
    message = problem(tmp_path, text_of(rows="[]", grid=grid.replace("43", "42")))
    assert "grid.expert_seeds.1: found 42, expected each one once" in message
    message = problem(tmp_path, text_of(rows="[{model: a, fusion: single, expert_seed: 1}]"))
    assert "rows.0.expert_seed: found 1, expected null: single has no experts" in message
    message = problem(tmp_path, text_of(rows="[{model: a, fusion: c, expert_seed: -1}]"))
    assert "rows.0.expert_seed: found -1" in message


def test_a_fusion_without_weights_has_no_row_of_frozen_experts(tmp_path: Path) -> None:
    """Nothing of it would learn; its other controls, and other fusions' rows, are as ever."""
    text = text_of(rows="[]", grid="{models: [a], fusions: [gated, meanLogits]}")
    found = load(tmp_path, text, "controls=[frozen, detached, single]").all_rows()
    assert [(row.fusion, row.control) for row in found[2:]] == [
        *(("gated", "frozen"), ("gated", "detached"), ("single", None), ("meanLogits", "detached")),
    ]
    own = "plugins={meanLogits: mine.py:MeanLogits}"  # a study's own, which may have weights
    assert len(load(tmp_path, text, "controls=[frozen]", own).all_rows()) == 4


def test_different_experts_have_one_name_wherever_they_stand(tmp_path: Path) -> None:
    rows = "rows=[{model: {resnet: 2, densenet: 1}, fusion: concatenation, name: three}]"
    grid = "grid={models: [[resnet, resnet, densenet], [densenet, resnet]], "
    grid += "fusions: [concatenation, multiplicative]}"
    found = load(tmp_path, text_of(), rows, grid, "controls=[frozen, single]").all_rows()
    unnamed = found[1].label
    assert unnamed != "mixed-three" and len(unnamed) == len("mixed-") + 8
    assert [(row.label, row.fusion) for row in found if row.control is None] == [
        ("mixed-three", "concatenation"),
        (unnamed, "concatenation"),
        ("mixed-three", "multiplicative"),
        (unnamed, "multiplicative"),
    ]
    assert found[0].model == ("resnet", "resnet", "densenet")
    assert len(found) == 8  # no single network stands beside different ones


def test_a_grid_adds_what_is_not_listed(tmp_path: Path) -> None:
    rows = "[{model: b, fusion: d}, {model: a, fusion: c, seed: 42}]"
    recipe = load(tmp_path, text_of(rows=rows, grid="{models: [a, b], fusions: [c, d]}"))
    assert recipe.all_rows()[:2] == recipe.rows
    assert [(row.model, row.fusion) for row in recipe.all_rows()[2:]] == [("b", "c"), ("a", "d")]


def test_equal_rows_that_differ_in_seed_or_alpha_are_different(tmp_path: Path) -> None:
    row = "model: resnet, fusion: concatenation"
    text = text_of(rows=f"[{{{row}}}, {{{row}, seed: 1}}, {{{row}, alpha: 2}}]")
    assert len(load(tmp_path, text).rows) == 3
    # the recipe's own seed and alpha, spelled out, are no difference
    for same in ("seed: 42", "alpha: 1.0", "expert_seed: 42"):
        message = problem(tmp_path, text_of(rows=f"[{{{row}}}, {{{row}, {same}}}]"))
        assert "rows.1: is the same experiment as rows.0" in message


# ------------------------------------------------------------------ YAML itself


@pytest.mark.parametrize(
    "text",
    [
        text_of() + "seed: 1\nseed: 1\n",
        text_of() + "seed: 1\n'seed': 2\n",
        text_of(fusion="{epochs: 3, epochs: 4}"),
        text_of(rows="[{model: a, model: b, fusion: c}]"),
        text_of(models="{resnet: {width: 8, width: 16}}"),
    ],
)
def test_a_key_written_twice_is_refused(tmp_path: Path, text: str) -> None:
    message = problem(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: ")
    assert "written twice" in message and "line" in message


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "word", "3", "---\n...\n"])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str) -> None:
    message = problem(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: found ")
    assert "expected keys such as output_dir and rows" in message


@pytest.mark.parametrize(
    "text",
    [
        "output_dir: [",
        "a: b: c",
        "\tseed: 1",
        "seed: *unknown",
        "seed: !!python/object/apply:os.getcwd []",
        "seed: !!bool perhaps",
        "seed: !!int ''",
        "seed: !!float q",
        "seed: !!timestamp x",
        "? [1, 2]\n: 3",
        "? {a: 1}\n: 3",
        "--- 1\n--- 2",
        "seed: \0",
        "[" * 2_000,
        "seed: !!int 0x" + "f" * 5000,  # Python can hold the number, but refuses to print it
        "seed: " + "9" * 5000,
    ],
    ids=lambda text: repr(text[:30]),
)
def test_malformed_yaml_is_a_recipe_error(tmp_path: Path, text: str) -> None:
    message = problem(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: is not valid YAML: ")
    assert "\n" not in message
    assert problem(tmp_path, text_of(), f"seed={text}").startswith(f"override {f'seed={text}'!r}: ")


@pytest.mark.parametrize("key", ["1", "null", "true", "1.5", "2026-01-02"])
@pytest.mark.parametrize("section", ["", "fusion", "rows.0"])
def test_keys_that_are_no_text_are_unknown_keys(tmp_path: Path, key: str, section: str) -> None:
    bad = f"{{{key}: 3}}"
    if section == "":
        message = problem(tmp_path, text_of() + f"{key}: 3\n")
    elif section == "fusion":
        message = problem(tmp_path, text_of(fusion=bad))
    else:
        message = problem(tmp_path, text_of(rows=f"[{bad}]"))
    assert f"{section}{'.' if section else ''}{yaml.safe_load(key)}: unknown key" in message


def laughs(levels: int, width: int, leaf: str, join: str) -> str:
    """`levels` of aliases, each standing for `width` of the one before: width ** levels leaves."""
    lines = [f"a0: &a0 {leaf}"]
    for level in range(1, levels + 1):
        parts = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {join.format(parts)}")
    return "{" + ", ".join(lines) + "}"


@pytest.mark.parametrize(
    "text",
    [
        # a million values: enough to tell, and harmless should the guard be gone
        text_of(models=laughs(6, 10, "[x, y]", "[{}]")),
        text_of(models=laughs(6, 10, "{x: y}", "{{<<: [{}]}}")),
        text_of(models=laughs(20, 2, "x", "[{}]")),
        text_of(models="&a {resnet: *a}"),
        text_of(rows="&a [*a, *a]"),
    ],
    ids=["lists", "merges", "pairs", "mapping in itself", "list in itself"],
)
def test_aliases_that_multiply_are_refused(tmp_path: Path, text: str) -> None:
    message = problem(tmp_path, text)
    prefix = f"{tmp_path / 'recipe.yaml'}: is not valid YAML: "
    assert message.startswith(prefix) and "alias" in message.removeprefix(prefix)


def test_a_large_honest_recipe_is_fine(tmp_path: Path) -> None:
    rows = ", ".join(f"{{model: resnet, fusion: concatenation, seed: {i}}}" for i in range(500))
    assert len(load(tmp_path, text_of(rows=f"[{rows}]")).rows) == 500


WORDS = """
a output_dir rows seed data fusion models epochs model resnet : , - ? | > >- ' " { } [ ]
&a *a &b *b <<: !!bool !!int !!float !!str !!set !!omap !!pairs !!null !!binary !!timestamp
!!python/name:os.system !x ! % %YAML --- ... # 1 -1 1e-4 0x 0b2 1_0 1:2:3 .nan .inf ~ yes off
2026-13-01 2026-01-02T99:00:00 = @ ` \\ \\u é 0o8 ._
"""
TOKENS = [*WORDS.split(), "\ufeff", "\x85", "\u2028", "\x00", "\x07", "\ud7ff"]
SOUP = st.lists(
    st.tuples(st.sampled_from(TOKENS), st.sampled_from(["", " ", "\n", "\n  ", "\n    ", "\t"])),
    max_size=40,
).map(lambda pairs: "".join(token + gap for token, gap in pairs))


def is_recipe_or_error(path: Path, *overrides: str) -> None:
    try:
        assert isinstance(load_recipe(path, overrides), Recipe)
    except RecipeError as error:
        message = str(error)
        assert message.startswith((f"{path}: ", "override "))
        assert "\n" not in message and len(message) < 2000


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(SOUP, st.text(max_size=60), SOUP.map(lambda soup: text_of() + soup)))
@example(text="? |\n  a\n")  # a key of two lines
def test_any_text_is_a_recipe_or_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "soup.yaml"
    path.write_text(text, encoding="utf-8", newline="", errors="surrogatepass")
    is_recipe_or_error(path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=80))
def test_any_bytes_are_a_recipe_or_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    is_recipe_or_error(path)


PATHS = st.lists(
    st.sampled_from(["", "0", "1", "-1", "²", "rows", "seed", "data", "fusion", "epochs", "x"]),
    min_size=1,
    max_size=4,
).map(".".join)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(PATHS, SOUP), max_size=3))
def test_any_override_is_taken_or_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "overridden.yaml"
    path.write_text(text_of(), encoding="utf-8")
    is_recipe_or_error(path, *(f"{key}={value}" for key, value in pairs))


# ------------------------------------------------------------------ files that can't be read


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_folder_for_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder, expected a YAML recipe"):
        load_recipe(tmp_path)


def test_a_picture_for_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(RecipeError, match=r"photo\.jpg: is not text in UTF-8"):
        load_recipe(path)


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / ("x" * 300)):
        with pytest.raises(RecipeError, match="can't be read: "):
            load_recipe(path)


# ------------------------------------------------------------------ overrides


def test_overrides_reach_any_field(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        text_of(fusion="{epochs: 7, alpha: 3}"),
        "fusion.epochs=2",
        "rows.1.seed=5",
        "rows.0.fusion=simpleAddition",
        "models.resnet.blocks=[1, 2]",
        "models.resnet.width=8",
        "data={name: synthetic}",
        "data.root=a=b",
        "output_dir=elsewhere",
        "logs.wandb=off",
    )
    assert (recipe.fusion.epochs, recipe.fusion.alpha) == (2, 3.0)  # its neighbours stay
    assert [row.seed for row in recipe.rows] == [None, 5]
    assert recipe.rows[0].fusion == "simpleAddition"
    assert recipe.models == {"resnet": {"blocks": [1, 2], "width": 8}}
    assert (recipe.data.name, recipe.data.root) == ("synthetic", "a=b")
    assert (recipe.output_dir, recipe.logs.wandb) == ("elsewhere", "off")


def test_the_last_override_wins_and_is_blamed(tmp_path: Path) -> None:
    assert load(tmp_path, text_of(), "seed=1", "seed=2").seed == 2
    assert load(tmp_path, text_of(), "fusion.epochs=1", "fusion={alpha: 2}").fusion.epochs == 100
    message = problem(
        tmp_path, text_of(), "fusion.epochs=1", "fusion={alpha: 2}", "fusion.epochs=0"
    )
    assert message.startswith("override 'fusion.epochs=0': fusion.epochs: ")
    # what an override didn't touch is still the file's
    message = problem(tmp_path, text_of(fusion="{batch_size: 0}"), "fusion.epochs=3")
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}: fusion.batch_size: ")


def test_an_empty_value_is_null(tmp_path: Path) -> None:
    assert load(tmp_path, text_of(experts="{lr: 0.1}"), "experts.lr=").experts.lr is None


def test_an_override_changes_one_of_two_aliases(tmp_path: Path) -> None:
    text = text_of(models="{resnet: &same {dropout: 0.1}, densenet: *same}")
    recipe = load(tmp_path, text, "models.resnet.dropout=0.5")
    assert recipe.models == {"resnet": {"dropout": 0.5}, "densenet": {"dropout": 0.1}}


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("seed", "", "key=value"),
        ("=3", "", "key=value"),
        ("  =3", "", "key=value"),
        ("rows.2.seed=1", "rows.2", "an index from 0 to 1"),
        ("rows.-1.seed=1", "rows.-1", "an index from 0 to 1"),
        ("rows.²=1", "rows.²", "an index from 0 to 1"),
        ("rows.model=resnet", "rows.model", "an index from 0 to 1"),
        (f"rows.{'9' * 5000}=1", "rows.9", "an index from 0 to 1"),
        ("seed.value=1", "seed", "has no fields"),
        ("output_dir.a.b=1", "output_dir.a", "has no fields"),
        ("..=1", "", "unknown key ''"),
    ],
    ids=lambda text: text[:20],
)
def test_an_override_of_nothing(tmp_path: Path, override: str, path: str, expected: str) -> None:
    message = problem(tmp_path, text_of(seed="42"), override)
    assert message.startswith(f"override {override!r}: ")
    assert path in message and expected in message


def test_flags_stand_between_the_file_and_the_overrides(tmp_path: Path) -> None:
    text = text_of(fusion="{epochs: 1, batch_size: 10, alpha: 0.1}")
    preset = {
        "fusion.batch_size": 20,
        "fusion.alpha": 0.2,
        "rows": [{"model": "a", "fusion": "b"}],
    }
    recipe = load(tmp_path, text, "fusion.alpha=0.3", "rows.0.seed=9", preset=preset)
    assert recipe.fusion == dataclasses.replace(recipe.fusion, epochs=1, batch_size=20, alpha=0.3)
    assert [(row.model, row.seed) for row in recipe.rows] == [("a", 9)]
    message = problem(tmp_path, text, preset={"fusion.epochs": 0})
    assert message == "command line: fusion.epochs: found 0, expected a number above 0"


# ------------------------------------------------------------------ dump, load, flatten

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
# but for what stands for another path: ~ and $VARIABLE
FOLDER = TEXT.filter(lambda text: bool(text.strip()) and "$" not in text and text[0] != "~")
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
COUNT = st.integers(1, 2**62)
FRACTION = st.floats(0.001, 0.999)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MODEL = TEXT | st.lists(TEXT, min_size=2, max_size=4, unique=True)
MODEL |= st.dictionaries(TEXT, st.integers(1, 2), min_size=2, max_size=2)
ROW = st.fixed_dictionaries(
    {"model": MODEL, "fusion": TEXT.filter(lambda text: text != "single")},
    optional={"seed": st.none() | COUNT, "alpha": st.none() | POSITIVE},
)
REQUIRED: dict[str, st.SearchStrategy[Any]] = {
    "output_dir": FOLDER,
    "rows": st.lists(ROW, min_size=1, max_size=3, unique_by=lambda r: r["fusion"]),
}
DATA = {
    "name": TEXT,
    "root": FOLDER,
    "cache_dir": st.none() | FOLDER,
    "download": st.booleans(),
    "val_fraction": FRACTION,
    "split": st.sampled_from(["iid", "non_iid"]),
}
OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "seed": COUNT,
    "data": st.fixed_dictionaries({}, optional=DATA),
    "models": st.dictionaries(TEXT, st.dictionaries(TEXT, ANYTHING, max_size=3), max_size=2),
    "experts": st.fixed_dictionaries({}, optional={"lr": st.none() | POSITIVE}),
    "fusion": st.fixed_dictionaries({}, optional={"alpha": POSITIVE, "epochs": COUNT}),
    "logs": st.fixed_dictionaries({}, optional={"wandb": st.sampled_from(["off", "offline"])}),
}
TREES = st.fixed_dictionaries(REQUIRED, optional=OPTIONAL)


@settings(max_examples=100, deadline=None)
@given(tree=TREES)
def test_a_dumped_recipe_loads_to_the_same_value(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    first, second = (tmp_path_factory.getbasetemp() / f"{name}.yaml" for name in ("one", "two"))
    text = yaml.safe_dump(tree, allow_unicode=True, default_style='"')
    first.write_text(text, encoding="utf-8", newline="")
    recipe = load_recipe(first)
    for section, value in tree.items():  # nothing is lost on the way in either
        if isinstance(value, dict) and section != "models":
            assert {key: getattr(getattr(recipe, section), key) for key in value} == value
    assert recipe.output_dir == tree["output_dir"]
    assert recipe.models == tree.get("models", {})
    second.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    assert load_recipe(second) == recipe


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    recipe = load(tmp_path, text_of())
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 3  # type: ignore[misc]


def test_flatten_names_every_leaf(tmp_path: Path) -> None:
    recipe = load(tmp_path, text_of(models="{resnet: {blocks: [1, 2]}}"))
    flat = flatten(recipe.fusion, "fusion")
    assert flat["fusion.alpha"] == 1.0
    assert len(flat) == len(dataclasses.fields(recipe.fusion))
    assert flatten({"a": {"b": 1, "c": (2, 3)}}) == {"a.b": 1, "a.c": [2, 3]}


SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def test_recipes_are_shipped() -> None:
    assert ROOT / "configs" / "demo.yaml" in SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_can_be_planned(tmp_path: Path, path: Path) -> None:
    recipe = load_recipe(path)
    study = plan_study(recipe, str(path))
    assert len(study.rows) == len(recipe.all_rows())
    assert all(task.cost > 0 for task in study.tasks)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe


def test_the_recipe_of_a_study_is_that_of_the_study_where_it_lies_now(tmp_path: Path) -> None:
    """Training goes on after a move; a copy of the file alone is a recipe like any other."""
    words = ("output_dir=a", "data.splits_dir=a/splits", "data.root=../data", "plugins.x=x.py:X")
    typed = load(tmp_path, text_of(), *words)
    study = tmp_path / "b"
    (study / ".fusionrun").mkdir(parents=True)
    (study / "recipe.yaml").write_text(dump_for_study(typed))
    (tmp_path / "mine.yaml").write_text(dump_for_study(typed))
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.output_dir == str(Path("a").absolute())
    assert recipe.plugins == {"x": str(Path("x.py:X").absolute())}
    moved = load_recipe(study / "recipe.yaml")
    assert Path(moved.output_dir) == study
    assert Path(moved.data.splits_dir or "") == study / "splits"
    assert (moved.data.root, moved.plugins) == (recipe.data.root, recipe.plugins)
    other = load_recipe(study / "recipe.yaml", ["output_dir=other", "data.root=here"])
    assert (other.output_dir, other.data.root) == ("other", "here")


def test_a_rank_tells_of_no_more_experts_than_a_row_has() -> None:
    """What all ranks send each other every second has room for as many."""
    assert ExpertsConfig(count=3, together=10**6).most_together == 3
    assert ExpertsConfig(count=3, together=2).most_together == 2
