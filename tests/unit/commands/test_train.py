"""The seed's one-row flags are fields of the recipe."""

from typing import Any

import pytest

from fusionrun.cli import make_parser
from fusionrun.commands.train import flags_as_fields
from fusionrun.study.recipe import RecipeError

ROW = ["--model", "resnet", "--fusion_type", "concatenation"]


def fields(*words: str) -> dict[str, Any]:
    return flags_as_fields(make_parser().parse_args(["train", *words]))


def test_flags_that_are_not_given_set_nothing() -> None:
    assert fields("recipe.yaml") == {}


def test_one_row_replaces_rows_and_grid() -> None:
    assert fields(*ROW) == {"rows": [{"model": "resnet", "fusion": "concatenation"}], "grid": None}


@pytest.mark.parametrize(
    ("folder", "meant"),
    [("d/resnet", "d"), ("d/resnet/", "d"), ("d", "d"), ("d/resnext", "d/resnext")],
)
def test_the_checkpoint_folder_may_be_the_models_own(folder: str, meant: str) -> None:
    assert fields(*ROW, "--checkpoint_dir", folder)["experts.checkpoint_dir"] == meant


def test_the_other_flags() -> None:
    found = fields("r", "--output_dir", "o", "--epochs", "7", "--batch_size", "64")
    assert found == {"output_dir": "o", "fusion.epochs": 7, "fusion.batch_size": 64}


def test_model_and_fusion_type_belong_together() -> None:
    for words in (ROW[:2], ROW[2:]):
        with pytest.raises(RecipeError, match="belong together: found only one of them"):
            fields(*words)
