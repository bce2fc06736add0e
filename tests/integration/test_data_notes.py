"""Folders with odd names, damaged files and rare classes: told at the start and in all results."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import alone, torchrun, write_recipe

RECIPE = """
output_dir: out
rows: [{model: resnet, fusion: concatenation}]
data: {name: image_folder, root: pics, image_size: 16, val_fraction: 0.25}
models: {resnet: {width: 8, blocks: [1]}}
experts: {count: 2, epochs: 1, batch_size: 16}
fusion: {epochs: 1, batch_size: 8}
runtime: {device: cpu, threads: 1}
status: {every_seconds: 0.2}
logs: {tensorboard: false}
"""
TWO_ROWS = "rows=[{model: resnet, fusion: concatenation}, {model: resnet, fusion: simpleAddition}]"
# a zip from elsewhere without its code page, and what markup, CSV and terminals make something of
NAMES = (os.fsdecode(b"fourmi_\xe9l"), "<b>[red]a|b", "new\nline", '=1+1, "q"', "‮\x1b[2J猫")
NOTES = (
    r"note: 1 class folder with a name that isn't UTF-8, shown as fourmi_\xe9l",
    r"note: 1 file skipped: train/fourmi_\xe9l/cut\xff.png (damaged: ",
    r"no image of 1 of 6 classes: rare",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images and a recipe for them."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name in (*NAMES, "rare"):
            place = folder / "pics" / part / name
            place.mkdir(parents=True)
            for k in range(1 if name == "rare" else count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{k}.png")
    whole = (folder / "pics" / "train" / NAMES[0] / "0.png").read_bytes()
    (folder / "pics" / "train" / NAMES[0] / os.fsdecode(b"cut\xff.png")).write_bytes(whole[:80])
    write_recipe(folder, RECIPE)
    return folder


def test_they_are_told_by_every_verb_and_stand_in_every_file(folder: Path) -> None:
    said = {}
    for words in (
        ("prepare", "tiny.yaml"),
        ("train", "tiny.yaml"),
        ("doctor", "tiny.yaml"),
        ("evaluate", "out"),
        ("preview", "tiny.yaml"),
        ("robustness", "out", "--images", "10"),
        ("report", "out"),
    ):
        done = alone(*words, cwd=folder)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        said[words[0]] = " ".join(done.stdout.split())
    for note in NOTES:
        text = note.removeprefix("note: ")
        assert said["prepare"].count(text) >= 1
        assert note in said["train"]
    row = folder / "out/resnet_fusions/concatenation"
    notes = json.loads((row / "manifest.json").read_text())["notes"]
    assert json.loads((folder / "out/evaluation.json").read_text())["data"]["notes"] == notes
    for note in notes:
        assert f"- note: {note}\n" in (folder / "out/evaluation.md").read_text()
    page, text = ((folder / f"out/report.{kind}").read_text() for kind in ("html", "md"))
    assert "damaged: " in page and "of 6 classes: rare" in page
    assert "damaged: " in text and "of 6 classes: rare" in text
    assert "\x1b" not in said["train"] + text


def test_rank_0_says_them_once_even_where_another_rank_does_the_work(folder: Path) -> None:
    """And they are the same from the cache."""
    done = torchrun("train", "tiny.yaml", TWO_ROWS, "output_dir=two", ranks=2, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for note in NOTES[:2]:
        assert done.stdout.count(note) == 1
    (folder / "two/resnet_fusions/simpleAddition/manifest.json").unlink()
    done = torchrun("train", "tiny.yaml", TWO_ROWS, "output_dir=two", ranks=2, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for note in NOTES[:2]:
        assert done.stdout.count(note) == 1
