"""Which part of the data lacks which classes."""

import numpy as np

from fusionrun.data.split_notes import absent_classes
from fusionrun.data.splits import SplitRules, make_splits

NAMES = ("common", "rare", "rarer", "single")


def test_classes_with_few_images_vanish_from_parts_by_name():
    labels = np.repeat(np.arange(4), (120, 3, 2, 1))
    splits = make_splits(labels, SplitRules(seed=42, num_experts=2, val_fraction=0.25))
    notes = absent_classes(labels, np.array([0, 1, 2]), NAMES, splits)
    parts = {
        "expert 0 trains on": splits.expert_train[0],
        "expert 1 trains on": splits.expert_train[1],
        "fusion trains on": splits.fusion_train,
        "validation has": splits.fusion_val,
    }
    expected = {
        part: [name for k, name in enumerate(NAMES) if k not in labels[indices]]
        for part, indices in parts.items()
    }
    expected["the test set has"] = ["single"]
    found = dict(note.split(" no image of ") for note in notes)
    assert {part: names.split(": ")[1].split(", ") for part, names in found.items()} == {
        part: names for part, names in expected.items() if names
    }
    assert found["the test set has"] == "1 of 4 classes: single"


def test_nothing_is_said_where_every_part_has_every_class():
    labels = np.repeat(np.arange(4), 50)
    splits = make_splits(labels, SplitRules(seed=1, num_experts=2, val_fraction=0.25))
    assert absent_classes(labels, labels, NAMES, splits) == ()


def test_experts_that_divide_the_classes_lack_those_of_nobody():
    labels = np.append(np.repeat(np.arange(3), 50), 3)
    for seed in range(5):
        splits = make_splits(
            labels, SplitRules(seed=seed, num_experts=2, val_fraction=0.25, kind="non_iid")
        )
        notes = absent_classes(labels, labels, NAMES, splits)
        is_held_out = 150 not in np.concatenate(splits.expert_train)
        assert any("the experts train on no image of 1 of 4" in n for n in notes) == is_held_out
        assert not any(note.startswith("expert ") for note in notes)


def test_long_lists_are_cut_short():
    labels = np.repeat(np.arange(100), 10)
    splits = make_splits(labels, SplitRules(seed=1))
    names = [f"class {k}" for k in range(200)]
    notes = absent_classes(labels, labels, names, splits)
    assert notes[-1] == (
        "the test set has no image of 100 of 200 classes: "
        "class 100, class 101, class 102, class 103, class 104 and 95 more"
    )
