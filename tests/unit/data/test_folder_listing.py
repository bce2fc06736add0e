"""What lies in people's folders beside their images, and images below their classes' folders."""

import os
from pathlib import Path

import pytest

from fusionrun.data.datasets import DataError, load_dataset, survey_dataset
from fusionrun.data.datasets.folder_listing import list_folders
from tests.unit.data.test_image_folder import make_folder, save_image


def listed(root: Path):
    return list_folders(root, "train", "test", 8)


def test_files_below_a_class_are_its_own_in_torchvisions_order(tmp_path):
    from torchvision.datasets import ImageFolder

    root = make_folder(tmp_path)
    for k, place in enumerate(("tuesday", "monday/early", "monday")):
        save_image(root / "train" / "ant" / place / "x.png", (k, 0, 0))
    expected = [
        (str(Path(path).relative_to(root / "train")), label)
        for path, label in ImageFolder(str(root / "train")).samples
    ]
    found = listed(root)
    assert list(zip(found.train.paths, found.train.labels.tolist(), strict=True)) == expected
    assert found.notes == ("3 files in folders below those of their classes: read, too",)
    data = load_dataset("image_folder", root=root, image_size=8)
    assert data.train_labels.tolist() == [0] * 5 + [1] * 2
    assert data.notes == found.notes


def test_what_is_left_out_is_counted(tmp_path):
    root = make_folder(tmp_path)
    ant = root / "train" / "ant"
    before = listed(root)
    assert before.notes == ()
    (ant / ".DS_Store").write_bytes(b"x")
    (ant / "gone.png").symlink_to("nowhere.png")
    (ant / "self.png").symlink_to("self.png")
    (ant / "up").symlink_to(root / "train")
    os.mkfifo(ant / "pipe.png")
    for part in ("train", "test"):
        (root / part / "__MACOSX").mkdir()
    (root / "train" / "readme.txt").write_text("x")
    found = listed(root)
    assert found.train.paths == before.train.paths
    assert found.key == before.key  # nothing that is read has changed
    assert found.notes == (
        "left out: 2 broken links, such as train/ant/gone.png",
        "left out: 1 circular link, such as train/ant/up",
        "left out: 1 hidden file, such as train/ant/.DS_Store",
        "left out: 1 special file, such as train/ant/pipe.png",
        "left out: 1 stray file, such as train/readme.txt",
        "left out: 2 system folders, such as train/__MACOSX",
    )


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = make_folder(tmp_path / "pics")
    elsewhere = tmp_path / "elsewhere"
    save_image(elsewhere / "far.png")
    (root / "train" / "ant" / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root / "train" / "ant")
    found = listed(root)
    assert found.train.paths[:3] == ["ant/0.png", "ant/1.png", "ant/more/far.png"]
    assert "left out: 1 circular link, such as train/ant/more/back" in found.notes


def test_a_name_that_is_not_utf_8_is_text_from_here_on(tmp_path):
    root = make_folder(tmp_path)
    for part in ("train", "test"):
        (root / part / "ant").rename(root / part / os.fsdecode(b"fourmi_\xe9l"))
    (root / "train" / "bee" / "0.png").rename(root / "train" / "bee" / os.fsdecode(b"\xff"))
    (root / "train" / "bee" / os.fsdecode(b"bad\xfe")).write_bytes(b"no image")
    for _ in ("decoded", "from the cache"):
        data = load_dataset("image_folder", root=root, image_size=8)
        assert data.classes == ("bee", r"fourmi_\xe9l")
        assert len(data.train_labels) == 4
        assert any(r"shown as fourmi_\xe9l" in note for note in data.notes)
        assert any(r"train/bee/bad\xfe (not an image)" in note for note in data.notes)
        "".join((*data.classes, *data.notes)).encode()  # raises for what no file can hold


def test_an_empty_class_is_said_before_anything_is_decoded(tmp_path):
    root = make_folder(tmp_path)
    for part in ("train", "test"):
        (root / part / "cow").mkdir()
    with pytest.raises(DataError, match="train/cow: holds no usable image"):
        survey_dataset("image_folder", root=root)
