"""Folders that are sorted otherwise: the message says what would read them."""

import re
import shlex

import pytest

from fusionrun.data.datasets import DataError, survey_dataset
from tests.unit.data.test_image_folder import make_folder


def renamed(root, **names):
    for old, new in names.items():
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)


@pytest.mark.parametrize(
    "names",
    [
        {"test": "val"},
        {"test": "valid"},
        {"test": "validation"},
        {"test": "dev"},
        {"train": "Train", "test": "Test"},
        {"train": "training", "test": "testing"},
        {"train": "images/train", "test": "images/test"},
        {"train": "images/train", "test": "images/val"},
        {"train": "a/b/train", "test": "a/b/test"},
    ],
)
def test_the_override_in_the_message_reads_the_images(tmp_path, names):
    root = make_folder(tmp_path / "pics")
    renamed(root, **names)
    with pytest.raises(DataError) as error:
        survey_dataset("image_folder", root=root)
    assert names["test"].rpartition("/")[2] in str(error.value)
    (words,) = re.findall("did you mean `(.*)`", str(error.value))
    overrides = dict(word.removeprefix("data.").split("=") for word in shlex.split(words))
    found = survey_dataset("image_folder", **{"root": root, **overrides})
    assert (found.train_images, found.test_images) == (4, 4)


def test_a_root_too_low_or_too_high(tmp_path):
    root = make_folder(tmp_path / "doubled" / "doubled")
    with pytest.raises(DataError, match=f"did you mean `data.root={root}`"):
        survey_dataset("image_folder", root=root.parent)
    with pytest.raises(DataError, match=f"did you mean `data.root={root}`"):
        survey_dataset("image_folder", root=root / "train")


def test_what_no_override_mends(tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*none. Set data\.root"):
        survey_dataset("image_folder", root=tmp_path / "none")
    root = make_folder(tmp_path / "pics")
    renamed(root, test="elsewhere/else")
    with pytest.raises(DataError, match=r"Found elsewhere, train: put images .* into test"):
        survey_dataset("image_folder", root=root)
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "train.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"Found train\.zip: unpack it"):
        survey_dataset("image_folder", root=tmp_path / "zipped")
    (tmp_path / "flat" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match=r"Found the folders ant: sort their images"):
        survey_dataset("image_folder", root=tmp_path / "flat")


def test_a_side_without_classes_but_a_list_of_them(tmp_path):
    root = make_folder(tmp_path)
    renamed(root, **{"test/ant": "test/images"})
    (root / "test" / "val_annotations.txt").write_text("0.png\tant\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt may say of which class each image"):
        survey_dataset("image_folder", root=root)
