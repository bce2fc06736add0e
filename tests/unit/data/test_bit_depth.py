"""Images deeper than 8 bits keep their greys, or the message says what would keep them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from fusionrun.data.datasets import DataError, load_dataset, survey_dataset
from tests.unit.data.test_image_folder import make_folder

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)


def make_deep(root, top, dtype, suffix, low=0.0, count=3):
    """Dark and bright ramps from `low` up to `top`, in files of one kind."""
    for part in ("train", "test"):
        for name, scale in (("dark", 0.45), ("bright", 1.0)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                values = RAMP * scale * (top - low) + low
                values[0, 0] += k * (top - low) / 100
                Image.fromarray(values.astype(dtype)).save(folder / f"{k}.{suffix}")
    return root


def check(data):
    bright, dark = (data.train_images[data.train_labels == label].float() for label in (0, 1))
    assert len(bright.unique()) >= 100
    assert bright.mean() > 1.5 * dark.mean()
    (note,) = [note for note in data.notes if "read as black and white" in note]
    assert note.startswith("12 images of ")


KINDS = [
    (65535, np.uint16, "png", 0),
    (16383, np.uint16, "png", 0),
    (4095, np.uint16, "png", 0),
    (255, np.uint16, "png", 0),
    (4095, np.uint16, "tiff", 0),
    (255, np.int32, "tiff", 0),
    (2**31 - 1, np.int32, "tiff", 0),
    (1.0, np.float32, "tiff", 0),
    (255.0, np.float32, "tiff", 0),
    (2000.0, np.float32, "tiff", -1000),
    (1.0, np.float32, "tiff", -1),
]


@pytest.mark.parametrize(("top", "dtype", "suffix", "low"), KINDS)
def test_every_depth_keeps_its_greys_or_names_the_field(tmp_path, top, dtype, suffix, low):
    root = make_deep(tmp_path, top, dtype, suffix, low)
    given = None
    if top != 65535:
        for call in (survey_dataset, load_dataset):
            with pytest.raises(DataError, match=r"in 12 of 12 files looked at.*isn't known") as e:
                call("image_folder", root=root)
        assert f".{suffix}: " in str(e.value)
        (given,) = re.findall(r"data\.range=(\[.*?\])", str(e.value))
        given = tuple(json.loads(given))
    check(load_dataset("image_folder", root=root, value_range=given))


def test_whole_numbers_in_their_own_range_stay_as_they_are(tmp_path):
    root = make_folder(tmp_path)
    Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)).save(root / "train/ant/2.tiff")
    data = load_dataset("image_folder", root=root, image_size=16, value_range=(0, 255))
    assert data.train_images[2, 0].flatten().tolist() == list(range(256))
    full = load_dataset("image_folder", root=make_deep(tmp_path / "b", 65535, np.uint16, "png"))
    said = load_dataset("image_folder", root=tmp_path / "b", value_range=(0, 65535))
    assert full.fingerprint == said.fingerprint


def test_what_is_outside_the_range_or_no_number_is_told(tmp_path):
    root = make_folder(tmp_path)
    values = np.linspace(-1, 2, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    Image.fromarray(values).save(root / "train" / "ant" / "2.tiff")
    data = load_dataset("image_folder", root=root, image_size=8, value_range=(0, 1))
    image = data.train_images[2, 0]
    assert image[0].max() == 0 and image[-1].min() == 255
    assert "1 image with values outside data.range, clipped" in data.notes
    assert "1 image with values that are no finite number, read as 0" in data.notes
    Image.fromarray(values * np.nan).save(root / "train" / "ant" / "3.tiff")
    data = load_dataset("image_folder", root=root, image_size=8, value_range=(0, 1))
    assert "1 file skipped: train/ant/3.tiff (damaged: holds no finite number)" in data.notes


def test_a_range_that_nothing_needs_is_told(tmp_path):
    data = load_dataset("image_folder", root=make_folder(tmp_path), value_range=(0, 1))
    assert data.notes == ("data.range is set, but no image is deeper than 8 bits",)


def test_one_deep_image_among_many_is_found(tmp_path):
    root = make_folder(tmp_path, per_class=40)  # more than are looked into beforehand
    Image.fromarray(RAMP.astype(np.float32)).save(root / "train" / "bee" / "21.tiff")
    with pytest.raises(DataError, match=r"train/bee/21\.tiff: floating point.*data\.range=\[0,1\]"):
        load_dataset("image_folder", root=root)
    (root / "train" / "bee" / "21.tiff").unlink()
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(root / "train" / "bee" / "21.png")
    with pytest.raises(
        DataError, match=r"values from 0 to 4095 in 1 file;.*data\.range=\[0,4095\]"
    ):
        load_dataset("image_folder", root=root)


def test_colours_of_16_bits_lose_their_lower_half(tmp_path):
    """PIL reads the upper 8 bits alone."""
    import zlib

    from tests.unit.data.test_image_folder import png_chunk

    def save(path, values):  # (H, W, 3) uint16; PIL can't write it
        height, width, _ = values.shape
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        header = width.to_bytes(4) + height.to_bytes(4) + bytes((16, 2, 0, 0, 0))
        content = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + png_chunk(b"IEND", b""))

    root = make_folder(tmp_path)
    colours = np.stack([RAMP, RAMP / 2, RAMP], axis=-1)
    save(root / "train" / "ant" / "2.png", (colours * 65535).astype(np.uint16))
    data = load_dataset("image_folder", root=root)
    assert data.train_images[2, 0].max() == 255
    assert any("16 bits a colour: [0,65535]" in note for note in data.notes)
    with pytest.raises(DataError, match=r"2\.png: 16 bits a colour can only be read as 0\.\.65535"):
        load_dataset("image_folder", root=root, value_range=(0, 4095))
    save(root / "train" / "ant" / "2.png", (colours * 4095).astype(np.uint16))
    with pytest.raises(DataError, match="16 bits, values from 0 to 4095"):
        load_dataset("image_folder", root=root)


def test_lab_is_converted_by_its_profile(tmp_path):
    from PIL import ImageCms

    root = make_folder(tmp_path)
    with Image.open(root / "train" / "bee" / "0.png") as image:
        wanted = image.convert("RGB")
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(wanted, *profiles, outputMode="LAB")
    lab.save(root / "train" / "bee" / "2.tiff")
    data = load_dataset("image_folder", root=root, image_size=8)
    found = data.train_images[4, :, 4, 4].int()
    assert (found - data.train_images[2, :, 4, 4].int()).abs().max() <= 8
    assert "1 image in LAB, converted to RGB" in data.notes
