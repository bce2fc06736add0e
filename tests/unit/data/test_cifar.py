"""CIFAR from small archives over HTTP, extracted or not, damaged or missing."""

import hashlib

import pytest

from fusionrun.data.datasets import DataError, load_dataset
from tests.unit.data.cifar_archives import check_cifar, unpack


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_cifar_is_downloaded_prepared_and_then_needs_no_source(tmp_path, official, server, name):
    _, arrays, _ = official[name]
    lines = []
    data = load_dataset(name, root=tmp_path / "d", download=True, progress=lines.append)
    check_cifar(data, arrays)
    assert data.name == name
    assert data.classes == tuple(f"class {k}" for k in range(len(data.classes)))
    assert len(data.classes) == (100 if name == "cifar100" else 10)
    assert len(server.requests) == 1
    assert any("downloading" in line for line in lines)
    server.files.clear()
    for file in (tmp_path / "d").glob("cifar*"):
        file.rename(tmp_path / file.name)  # the source may go once it is prepared
    again = load_dataset(name, root=tmp_path / "d", progress=lines.append)
    check_cifar(again, arrays)
    assert again.fingerprint == data.fingerprint
    assert len(server.requests) == 1


def test_published_normalisation(tmp_path, official):
    hundred = load_dataset("cifar100", root=tmp_path, download=True)
    assert hundred.mean == (0.5071, 0.4867, 0.4408)
    assert hundred.std == (0.2675, 0.2565, 0.2761)
    ten = load_dataset("cifar10", root=tmp_path, download=True)
    assert ten.mean == (0.4914, 0.4822, 0.4465)
    assert ten.std == (0.2470, 0.2435, 0.2616)
    assert ten.fingerprint != hundred.fingerprint


def test_extracted_files_and_lone_archives_need_no_network(tmp_path, official, server):
    files, arrays, archive = official["cifar100"]
    unpack(tmp_path / "a", files)
    check_cifar(load_dataset("cifar100", root=tmp_path / "a"), arrays)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cifar-100-python.tar.gz").write_bytes(archive)
    check_cifar(load_dataset("cifar100", root=str(tmp_path / "b")), arrays)
    assert server.requests == []


def test_missing_data_names_folder_and_both_remedies(tmp_path, official, server):
    with pytest.raises(DataError) as error:
        load_dataset("cifar100", root=tmp_path / "none")
    message = str(error.value)
    for part in (
        str(tmp_path / "none"),
        "cifar-100-python",
        "data.download=true",
        "cifar-100-python.tar.gz",
    ):
        assert part in message
    assert server.requests == []


def test_a_corrupt_file_is_named(tmp_path, official):
    files, _, _ = official["cifar10"]
    unpack(tmp_path, files)
    bad = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    bad.write_bytes(bad.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"data_batch_3: wrong checksum.*data\.download=true"):
        load_dataset("cifar10", root=tmp_path)
    bad.unlink()
    with pytest.raises(DataError, match="data_batch_3: missing"):
        load_dataset("cifar10", root=tmp_path)


def test_a_partial_archive_is_named_and_replaced_by_a_download(tmp_path, official, server):
    _, arrays, archive = official["cifar100"]
    partial = tmp_path / "cifar-100-python.tar.gz"
    partial.write_bytes(archive[: len(archive) // 2])
    with pytest.raises(DataError, match=r"tar\.gz: found with .* MiB, but its checksum is wrong"):
        load_dataset("cifar100", root=tmp_path)
    check_cifar(load_dataset("cifar100", root=tmp_path, download=True), arrays)
    assert len(server.requests) == 1


def test_checksummed_files_of_another_format(tmp_path, official, monkeypatch):
    from torchvision import datasets

    files, _, _ = official["cifar100"]
    unpack(tmp_path, files)
    junk = b"no pickle at all"
    (tmp_path / "cifar-100-python" / "train").write_bytes(junk)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", hashlib.md5(junk).hexdigest()]])
    with pytest.raises(DataError, match="cannot be read as cifar100"):
        load_dataset("cifar100", root=tmp_path)


@pytest.mark.parametrize("problem", ["gone", "wrong content", "no server"])
def test_a_failed_download_says_where_from_and_what_to_do(tmp_path, official, server, problem):
    if problem == "gone":
        server.files.clear()
    elif problem == "wrong content":
        server.files["/cifar-100-python.tar.gz"] = b"<html>log in first</html>"
    else:
        server.shutdown()
        server.server_close()
    with pytest.raises(DataError) as error:
        load_dataset("cifar100", root=tmp_path, download=True)
    assert f"127.0.0.1:{server.server_port}/cifar-100-python.tar.gz" in str(error.value)
    assert "by hand" in str(error.value)


def test_cifar_has_one_size(tmp_path):
    with pytest.raises(DataError, match=r"image_size is 64.*32x32"):
        load_dataset("cifar100", root=tmp_path, image_size=64)


def test_what_lies_there_instead_is_named_with_what_would_read_it(tmp_path, official):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path / "here", files)

    def message(name, root):
        with pytest.raises(DataError) as error:
            load_dataset(name, root=root)
        return str(error.value)

    right = f"did you mean `data.root={tmp_path / 'here'}`?"
    assert right in message("cifar100", tmp_path)
    assert right in message("cifar100", tmp_path / "here" / "cifar-100-python")
    assert "did you mean `data.name=cifar100`?" in message("cifar10", tmp_path / "here")
    (tmp_path / "folders" / "train").mkdir(parents=True)
    assert "`data.name=image_folder`" in message("cifar10", tmp_path / "folders")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cifar-10-binary.tar.gz").touch()
    assert "the version for Python is needed" in message("cifar10", tmp_path / "other")
    check_cifar(load_dataset("cifar100", root=tmp_path / "here"), arrays)
