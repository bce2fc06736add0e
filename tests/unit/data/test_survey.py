"""What is known of a data set before anything is decoded."""

import pytest

from fusionrun.data.datasets import DataError, load_dataset, survey_dataset
from tests.unit.data.cifar_archives import unpack
from tests.unit.data.test_image_folder import make_folder


def test_a_folder_by_its_listing(tmp_path):
    root = make_folder(tmp_path, per_class=3)
    found = survey_dataset("image_folder", root=root, image_size=10)
    assert (found.train_images, found.test_images, found.classes) == (6, 6, ("ant", "bee"))
    assert found.train_bytes == found.test_bytes == 6 * 3 * 10 * 10
    assert found.shared and not found.ready
    assert found.cache_bytes == 12 * 3 * 10 * 10
    assert not (root / ".fusionrun_cache").exists()
    load_dataset("image_folder", root=root, image_size=10)
    found = survey_dataset("image_folder", root=root, image_size=10)
    assert found.ready and found.cache_bytes == 0


def test_a_subset_is_a_copy_of_each_process(tmp_path):
    root = make_folder(tmp_path, per_class=3)
    found = survey_dataset("image_folder", root=root, train_images=4)
    assert (found.train_images, found.test_images, found.shared) == (4, 6, False)
    with pytest.raises(DataError, match=r"data\.test_images is 9, but the data set has 6"):
        survey_dataset("image_folder", root=root, test_images=9)


def test_made_up_images_are_not_drawn():
    found = survey_dataset("synthetic", root=".", num_classes=30, image_size=64)
    assert (found.train_images, found.test_images, found.ready) == (4000, 1000, True)
    assert found.classes is not None and len(found.classes) == 30
    with pytest.raises(DataError, match="num_classes is 999"):
        survey_dataset("synthetic", root=".", num_classes=999)
    with pytest.raises(DataError, match="unknown data set 'sintetic'"):
        survey_dataset("sintetic", root=".")


def test_an_archive_and_what_is_prepared_of_it(tmp_path, official, server):
    with pytest.raises(DataError, match=r"data\.download=true"):
        survey_dataset("cifar100", root=tmp_path)
    (note,) = survey_dataset("cifar100", root=tmp_path, download=True).notes
    assert "cifar-100-python.tar.gz will be fetched" in note
    files, _, archive = official["cifar100"]
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(archive)
    found = survey_dataset("cifar100", root=tmp_path, download=True)
    assert (found.train_images, found.test_images, found.notes) == (50_000, 10_000, ())
    (tmp_path / "cifar-100-python.tar.gz").unlink()
    unpack(tmp_path, files)
    assert not survey_dataset("cifar100", root=tmp_path).ready
    load_dataset("cifar100", root=tmp_path)
    assert survey_dataset("cifar100", root=tmp_path).ready
    assert server.requests == []


@pytest.mark.parametrize("call", [survey_dataset, load_dataset])
def test_too_little_memory_and_disk_are_said_before_decoding(tmp_path, monkeypatch, call):
    root = make_folder(tmp_path)
    monkeypatch.setattr("fusionrun.data.datasets.survey.free_host_memory", lambda: 2.0**20)
    with pytest.raises(DataError) as error:
        call("image_folder", root=root, image_size=224)
    message = str(error.value)
    assert "8 images with data.image_size=224 need 1.1 MiB of memory, but 1.0 MiB are" in message
    assert "\n" not in message
    fitting = message.split("data.image_size=")[2].partition(",")[0]
    call("image_folder", root=root, image_size=int(fitting))
    monkeypatch.setattr("fusionrun.data.datasets.survey.free_host_memory", lambda: None)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"are free.*data\.cache_dir"):
        call("image_folder", root=root, image_size=64)
