"""Data sets by name."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fusionrun.common import wheels
from fusionrun.data.datasets import DATASETS, DataError, load_dataset
from tests.unit.data.cifar_archives import unpack
from tests.unit.data.test_image_folder import make_folder


def test_unknown_names_get_the_nearest_one(tmp_path):
    with pytest.raises(
        DataError, match=r"data set 'cifar-100'; did you mean 'cifar100'.*synthetic"
    ):
        load_dataset("cifar-100", root=tmp_path)
    with pytest.raises(DataError, match="unknown") as error:
        load_dataset("zzz", root=tmp_path)
    assert "did you mean" not in str(error.value)
    assert set(DATASETS) == {"cifar100", "cifar10", "image_folder", "synthetic"}


def test_importing_and_using_prepared_data_needs_no_torchvision(tmp_path, official):
    files, _, _ = official["cifar100"]
    unpack(tmp_path, files)
    load_dataset("cifar100", root=tmp_path)
    make_folder(tmp_path / "pics")
    load_dataset("image_folder", root=tmp_path / "pics")
    code = (
        "import sys\n"
        "from fusionrun.data import datasets, loader, splits\n"
        "from fusionrun.data.augmentation import policies\n"
        f"datasets.load_dataset('cifar100', root={str(tmp_path)!r})\n"
        f"datasets.load_dataset('image_folder', root={str(tmp_path / 'pics')!r})\n"
        "print(sorted({'torchvision', 'PIL'} & set(sys.modules)))\n"
    )
    repository = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_images_that_are_all_the_same_are_refused(tmp_path):
    make_folder(tmp_path, per_class=1)
    for path in tmp_path.rglob("*.png"):
        Image.new("I;16", (8, 8), 37).save(path)
    with pytest.raises(DataError, match=r"values from 37 to 37.*data\.range=\[0,255\]"):
        load_dataset("image_folder", root=tmp_path)
    with pytest.raises(DataError, match=r"all 2 training images are the same.*every pixel is 37"):
        load_dataset("image_folder", root=tmp_path, value_range=(0, 255))


def test_a_torchvision_of_another_build_than_torch_is_one_line(tmp_path, monkeypatch):
    broken = tmp_path / "torchvision/__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    for label, where in [
        ("+cpu", "whl/cpu"),
        ("+cu126", "whl/cu126"),
        ("a0+gitabc", "torchvision"),
    ]:
        monkeypatch.setattr(wheels, "version", lambda name, label=label: f"2.14.1{label}")
        with pytest.raises(DataError, match=f"nms does not exist.*pip install .*{where}$"):
            load_dataset("cifar10", root=tmp_path)
