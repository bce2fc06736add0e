"""Images of every kind in folders of every kind."""

import functools
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusionrun.common.memory import peak_memory, reset_peak
from fusionrun.data.datasets import DataError, load_dataset
from tests.unit.data.cifar_archives import start_children


def save_image(path, colour=(10, 20, 30), size=(40, 40), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def make_folder(root, classes=("ant", "bee"), per_class=2):
    for part in ("train", "test"):
        for c, name in enumerate(classes):
            for k in range(per_class):
                colour = (50 * c, 100, 10 * k + 5 * (part == "test"))
                save_image(root / part / name / f"{k}.png", colour)
    return root


def test_image_folder_reads_what_is_there(tmp_path):
    root = make_folder(tmp_path / "pics")
    save_image(root / "train" / "bee" / "a.jpg", (200, 30, 90), quality=100, subsampling=0)
    data = load_dataset("image_folder", root=root, image_size=16)
    assert data.classes == ("ant", "bee")
    assert data.train_images.shape == (5, 3, 16, 16)
    assert data.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    colours = data.train_images[:, :, 8, 8].tolist()
    assert colours[:4] == [[0, 100, 0], [0, 100, 10], [50, 100, 0], [50, 100, 10]]
    assert np.abs(np.array(colours[4]) - (200, 30, 90)).max() <= 3
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert data.notes == ()


def test_images_are_resized_to_cover_and_cropped_at_the_centre(tmp_path):
    root = make_folder(tmp_path)
    wide = np.zeros((20, 100, 3), dtype=np.uint8)
    wide[:, :40], wide[:, 40:60], wide[:, 60:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(wide).save(root / "train" / "ant" / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(root / "train" / "ant" / "tall.png")
    data = load_dataset("image_folder", root=root, image_size=10)
    for image in data.train_images[2:4]:  # tall, wide after 0 and 1
        # only the middle square is left: green, but for the border that the filter smooths
        assert image[:, 1:-1, 1:-1].permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [
            [0, 255, 0]
        ]


def png_chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_of_size(width, height):
    """A tiny file whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels)


def test_odd_images(tmp_path):
    root = make_folder(tmp_path)
    ant = root / "train" / "ant"
    save_image(ant / "b_grey.png", 77, mode="L")
    save_image(ant / "c_rgba.png", (9, 8, 7, 128), mode="RGBA")
    save_image(ant / "d_cmyk.jpg", (0, 0, 0, 0), mode="CMYK")
    save_image(ant / "e_palette.gif", 0, mode="P")
    save_image(ant / "f_1x1.png", (1, 2, 3), size=(1, 1))
    save_image(ant / "g_aspect.png", (4, 5, 6), size=(3000, 2))
    save_image(ant / "h_grey16.png", 40000, mode="I;16")
    save_image(ant / "i_bits.png", 1, mode="1")
    save_image(ant / "j_photo.jpg", (90, 80, 70), quality=100, size=(40, 20))
    bad = {
        "z0_empty.png": b"",
        "z1_text.txt": b"not a picture",
        "z2_bomb.png": png_of_size(60000, 60000),
        "z3_large.png": png_of_size(9000, 9000),
        "z4_cut.png": (ant / "0.png").read_bytes()[:60],
        "z5_cut.jpg": (ant / "d_cmyk.jpg").read_bytes()[:-300],
        "z6_odd.png": png_of_size(100, 100),
    }
    for name, content in bad.items():
        (ant / name).write_bytes(content)
    (ant / ".DS_Store").write_bytes(b"hidden")
    (ant / "sub").mkdir()
    data = load_dataset("image_folder", root=root, image_size=8)
    assert data.train_images.shape == (11 + 2, 3, 8, 8)
    colours = data.train_images[2:11, :, 4, 4].tolist()
    expected = [
        [77, 77, 77],
        [9, 8, 7],
        [255, 255, 255],
        None,  # any palette colour, but the file is read
        [1, 2, 3],
        [4, 5, 6],
        [40000 >> 8] * 3,
        [255, 255, 255],
        [90, 80, 70],
    ]
    for found, wanted in zip(colours, expected, strict=True):
        assert wanted is None or np.abs(np.array(found) - wanted).max() <= 2
    assert data.train_labels.tolist() == [0] * 11 + [1] * 2
    hidden, note, *changed = data.notes
    assert hidden == "left out: 1 hidden file, such as train/ant/.DS_Store"
    assert sorted(changed) == [
        "1 image in CMYK, converted to RGB",
        "1 image of 16-bit grey: [0,65535] read as black and white",
        "1 image with transparent parts, read as if opaque",
        "1 training image equal to another one, such as train/ant/i_bits.png to "
        "train/ant/d_cmyk.jpg",
    ]
    assert note.startswith("7 files skipped: ")
    assert "train/ant/z0_empty.png (empty)" in note
    assert "train/ant/z1_text.txt (not an image)" in note
    assert "train/ant/z2_bomb.png (too large)" in note
    assert "train/ant/z3_large.png (9000x9000 is too large)" in note
    assert "train/ant/z4_cut.png (damaged: " in note
    assert "and 2 more" in note
    again = load_dataset("image_folder", root=root, image_size=8)
    assert again.notes == data.notes


def test_photos_are_turned_upright(tmp_path):
    root = make_folder(tmp_path)
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:20] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(root / "train" / "ant" / "z.jpg", exif=exif, quality=95)
    data = load_dataset("image_folder", root=root, image_size=8)
    photo = data.train_images[2, 0].int()
    assert photo[:, :3].max() < 20
    assert photo[:, 5:].min() > 235


def test_a_changed_folder_is_read_again(tmp_path):
    root = make_folder(tmp_path / "pics")
    place = tmp_path / "c"
    lines = []
    load = functools.partial(
        load_dataset, "image_folder", root=root, cache_dir=place, progress=lines.append
    )
    first = load(image_size=8)
    assert any("8/8 images" in line for line in lines)
    lines.clear()
    assert load(image_size=8).fingerprint == first.fingerprint
    assert lines == []
    save_image(root / "train" / "ant" / "new.png", (255, 0, 0))
    more = load(image_size=8)
    assert len(more.train_labels) == 5
    assert more.fingerprint != first.fingerprint
    changed = root / "train" / "ant" / "new.png"
    before = changed.stat()
    save_image(changed, (0, 255, 0))
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    green = load(image_size=8)
    assert green.train_images[2, :, 4, 4].tolist() == [0, 255, 0]
    assert load(image_size=9).train_images.shape[-1] == 9
    # old tensors stay valid although their files were replaced
    assert first.train_images.shape == (4, 3, 8, 8)
    assert first.train_images[0, :, 4, 4].tolist() == [0, 100, 0]
    assert sorted(p.name[-2:] for p in place.iterdir() if p.is_dir()) == ["-8", "-9"]


def test_two_folders_share_a_cache_dir(tmp_path):
    one = make_folder(tmp_path / "one")
    two = make_folder(tmp_path / "two", classes=("cat", "dog", "elk"))
    place = tmp_path / "c"
    for _ in range(2):
        assert len(load_dataset("image_folder", root=one, cache_dir=place).classes) == 2
        assert len(load_dataset("image_folder", root=two, cache_dir=place).classes) == 3


def test_processes_build_an_image_folder_once(tmp_path):
    root = make_folder(tmp_path, per_class=20)
    answers = start_children(3, "image_folder", root, {"image_size": 8})
    said = [line for _, _, lines in answers for line in lines]
    assert sum("building" in line for line in said) == 1
    assert len({total for _, total, _ in answers}) == 1


def without(*parts):
    def change(root):
        target = root.joinpath(*parts)
        for path in sorted(target.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        target.rmdir()

    return change


def emptied(root):
    for path in (root / "test" / "bee").iterdir():
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "named", "message"),
    [
        (without("train"), "train", "cannot be listed"),
        (without("test"), "test", "cannot be listed"),
        (without("test", "bee"), "", r"only in train: \['bee'\]"),
        (without("train", "ant"), "", r"only in test: \['ant'\]"),
        (emptied, "test/bee", "no usable image"),
        (lambda root: [without(p, "ant")(root) for p in ("train", "test")], "train", "at least 2"),
    ],
)
def test_folders_that_cannot_be_a_data_set(tmp_path, change, named, message):
    make_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load_dataset("image_folder", root=tmp_path)
    assert str(tmp_path / named) in str(error.value)
    assert "<root>/train/<class>/<image files>" in str(error.value)


def test_an_unreadable_file_is_an_error_not_a_skip(tmp_path, monkeypatch):
    root = make_folder(tmp_path)
    original = Path.read_bytes

    def read(self):
        if self.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(DataError, match=r"1\.png: cannot be read \(Permission denied\)"):
        load_dataset("image_folder", root=root)


def test_equal_images_are_counted(tmp_path):
    root = make_folder(tmp_path)
    copies = {
        "test/ant/7.png": "train/ant/0.png",
        "train/bee/8.png": "train/bee/0.png",
        "train/bee/9.png": "train/ant/1.png",
    }
    for copy, source in copies.items():
        (root / copy).write_bytes((root / source).read_bytes())
    for _ in ("decoded", "from the cache"):
        data = load_dataset("image_folder", root=root, image_size=8)
        assert data.notes == (
            "1 test image equal to a training image, such as test/ant/7.png to train/ant/0.png",
            "2 training images equal to another one, such as train/bee/8.png to train/bee/0.png",
            "1 training image equal to one of another class, such as train/bee/9.png to "
            "train/ant/1.png",
        )


def test_one_damaged_file_costs_no_second_copy(tmp_path):
    """Nor does the first: what is decoded goes to the disk."""
    root = make_folder(tmp_path, per_class=60)
    (root / "train" / "ant" / "z.png").write_bytes(b"damaged")
    cpu = torch.device("cpu")
    load_dataset("image_folder", root=root, image_size=64)  # with all that has to be imported
    before = reset_peak(cpu)
    data = load_dataset("image_folder", root=root, image_size=512)
    peak = peak_memory(cpu)
    bytes_of_images = data.train_images.numel() + data.test_images.numel()
    working = 64 * 2**20  # blocks of the threads, counting greys: the same for any data set
    assert peak - before < 1.2 * bytes_of_images + working < 2 * bytes_of_images
