"""Folders like CIFAR-10-C, whole and damaged. The files are sparse: only what is set takes room."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fusionrun.data.errors import DataError
from fusionrun.robustness.cifar_c import corrupted_names, read_corrupted

SHAPE = (50_000, 32, 32, 3)


def write_images(folder: Path, name: str, mark: int) -> None:
    """Black but for the first and last pixel of each severity: `mark`, its number, 200."""
    array = write_black(folder, name, SHAPE)
    for severity in range(1, 6):
        array[10_000 * (severity - 1), 0, 0] = (mark, severity, 200)
        array[10_000 * severity - 1, 31, 30] = (mark, severity, 200)


def write_black(
    folder: Path, name: str, shape: tuple[int, ...], kind: type = np.uint8
) -> np.ndarray:
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)


def labels(num_classes: int = 10) -> np.ndarray:
    one = np.random.default_rng(0).permutation(np.arange(10_000) % num_classes)
    return np.tile(one, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for mark, name in enumerate(("fog", "gaussian_noise", "speckle_noise"), 1):
        write_images(tmp_path, name, mark)
    np.save(tmp_path / "labels.npy", labels().astype(np.uint8))
    return tmp_path


def test_what_is_there_is_found_in_the_published_order(folder: Path) -> None:
    (folder / "README").write_text("not an array")
    assert corrupted_names(folder) == ("gaussian_noise", "fog")
    assert corrupted_names(folder / "CIFAR-10-C") == ()
    assert list(read_corrupted(folder / "CIFAR-10-C", 10)) == []


def test_every_severity_is_read(folder: Path) -> None:
    seen = []
    for part in read_corrupted(folder, 10):
        seen.append((part.name, part.severity))
        assert part.images.shape == (10_000, 3, 32, 32) and part.images.dtype == torch.uint8
        assert part.images.is_contiguous()
        colour = [{"fog": 1, "gaussian_noise": 2}[part.name], part.severity, 200]
        assert part.images[0, :, 0, 0].tolist() == colour
        assert part.images[-1, :, 31, 30].tolist() == colour
        assert int(part.images.sum(dtype=torch.int64)) == 2 * sum(colour)
        assert part.labels.dtype == torch.int64
        assert part.labels.tolist() == labels()[:10_000].tolist()
    assert seen == [(name, s) for name in ("gaussian_noise", "fog") for s in range(1, 6)]


def test_files_are_left_as_they_are(folder: Path) -> None:
    before = (folder / "fog.npy").stat()
    part = next(iter(read_corrupted(folder, 10)))
    part.images.fill_(9)
    again = next(iter(read_corrupted(folder, 10)))
    assert int(again.images.max()) == 200
    assert (folder / "fog.npy").stat() == before


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_labels_of_either_type(folder: Path, kind: type) -> None:
    np.save(folder / "labels.npy", labels(100).astype(kind))
    part = next(iter(read_corrupted(folder, 100)))
    assert part.labels.tolist() == labels(100)[:10_000].tolist()


def fails(folder: Path, message: str, num_classes: int = 10) -> None:
    with pytest.raises(DataError, match=message):
        next(iter(read_corrupted(folder, num_classes)))


def test_damaged_images_stop_before_the_first_is_read(folder: Path) -> None:
    """The damage is in the last file; gaussian_noise, before it, is whole."""
    path = folder / "fog.npy"
    whole = path.read_bytes()[:200]
    with path.open("r+b") as file:
        file.truncate(70_000_000)
    fails(folder, r"fog\.npy: cannot be read as \.npy .*mmap.*Unpack the published archive")
    for content in (b"", whole[:20], b"PK\x03\x04 of a zip file", b"<html>no such file</html>"):
        path.write_bytes(content)
        fails(folder, r"fog\.npy: cannot be read as \.npy")
    path.unlink()
    path.mkdir()
    fails(folder, r"fog\.npy: cannot be read as \.npy \(Is a directory\)")


def test_arrays_of_another_kind_are_refused(folder: Path) -> None:
    write_black(folder, "fog", (10_000, 32, 32, 3))
    fails(folder, r"fog\.npy: holds \(10000, 32, 32, 3\) uint8; expected \(50000, 32, 32, 3\)")
    write_black(folder, "fog", (50_000, 3, 32, 32))
    fails(folder, r"fog\.npy: holds \(50000, 3, 32, 32\) uint8; expected \(50000, 32, 32, 3\)")
    write_black(folder, "fog", SHAPE, np.float32)
    fails(folder, r"fog\.npy: holds \(50000, 32, 32, 3\) float32; expected .* uint8")
    np.save(folder / "fog.npy", np.array([{"an": "object"}]), allow_pickle=True)
    fails(folder, r"fog\.npy: cannot be read as \.npy")


def test_labels_that_cannot_be_right_are_refused(folder: Path) -> None:
    path = folder / "labels.npy"
    np.save(path, labels()[:10_000])
    fails(folder, r"labels\.npy: holds \(10000,\) int64; expected \(50000,\) of integers")
    np.save(path, labels().astype(np.float32))
    fails(folder, r"labels\.npy: holds \(50000,\) float32; expected \(50000,\) of integers")
    shuffled = labels()
    shuffled[20_000:30_000] = shuffled[20_000:30_000][::-1]
    np.save(path, shuffled)
    fails(folder, r"labels\.npy: severities have different labels")
    path.unlink()
    fails(folder, r"labels\.npy: cannot be read as \.npy \(No such file")


def test_the_other_cifar_is_noticed(folder: Path) -> None:
    """Fewer classes would all be in range of the larger set."""
    fails(folder, "holds 10 classes, 0 to 9; expected 100, 0 to 99.*another data set", 100)
    np.save(folder / "labels.npy", labels(100))
    fails(folder, "holds 100 classes, 0 to 99; expected 10, 0 to 9", 10)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    """Only a missing one means that there is nothing to measure."""
    (tmp_path / "CIFAR-10-C").write_text("a file")
    with pytest.raises(DataError, match=r"CIFAR-10-C: cannot be listed \(Not a directory\)"):
        corrupted_names(tmp_path / "CIFAR-10-C")
