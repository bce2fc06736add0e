"""What training takes, against numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from fusionrun.data.splits import Splits
from fusionrun.evaluation.statistics.training_work import (
    Training,
    training_work,
    trainings_of,
)
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from tests.tiny import TINY, write_recipe

ROWS = """
rows:
  - {model: resnet, fusion: concatenation}
  - {model: resnet, fusion: concatenation, control: frozen}
  - {model: resnet, fusion: concatenation, control: detached}
  - {model: resnet, fusion: single}
  - {model: [densenet, resnet], fusion: concatenation}
  - {model: resnet, fusion: full_ensemble}
"""
# two experts of 70 images each, 50 of them shared; 24 for the fusion
SPLITS = Splits(
    expert_train=(np.arange(70), np.arange(20, 90)),
    expert_val=(np.arange(124, 132),) * 2,
    fusion_train=np.arange(100, 124),
    fusion_val=np.arange(124, 132),
)


def test_images_count_once_steps_and_passes_each_time() -> None:
    one = Training(np.arange(10), batch_size=4, epochs=3)  # batches of 4, 4, 2
    other = Training(np.arange(5, 14), batch_size=4, epochs=2, networks=3)  # of 4 and 5
    assert training_work([one]) == (10, 9, 30)
    assert training_work([other]) == (9, 4, 54)
    assert training_work([one, other]) == (14, 13, 84)


@pytest.mark.parametrize(
    ("index", "images", "steps", "passes"),
    [
        # two experts, two epochs of 70 images in 5 batches; fusion: three of 24 images in 3
        (0, 90 + 24, 2 * 2 * 5 + 3 * 3, 2 * 2 * 70 + 24 * 3 * 2),
        (1, 90 + 24, 2 * 2 * 5 + 3 * 3, 2 * 2 * 70),
        (2, 90 + 24, 2 * 2 * 5 + 3 * 3, 2 * 2 * 70 + 24 * 3 * 2),
        (3, 114, 8 * 2, 114 * 2),  # one network on all of them
        (4, 90 + 24, 2 * 2 * 5 + 3 * 3, 2 * 2 * 70 + 24 * 3 * 2),
        (5, 114, 2 * 8 * 2, 2 * 114 * 2),  # as many such networks as experts
    ],
)
def test_rows_and_their_controls(
    tmp_path: Path, index: int, images: int, steps: int, passes: int
) -> None:
    _, rest = TINY.split("data:\n")
    text = f"output_dir: out\n{ROWS}data:\n{rest}"
    study = plan_study(load_recipe(write_recipe(tmp_path, text)), "tiny")
    found = training_work(trainings_of(study, SPLITS, study.rows[index]))
    assert found == (images, steps, passes)
