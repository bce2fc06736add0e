"""OOD images: folders as users have them, and the built-in sets."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fusionrun.data.errors import DataError
from fusionrun.robustness.ood_images import BUILT_IN, built_in_sets, read_ood_images


def write_images(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    for number, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * number, 200, 30)).save(folder / name)


def test_ood_images_are_read_from_both_layouts(tmp_path: Path) -> None:
    names = {"b/two.png": (40, 20), "one.png": (8, 8), "a/three.png": (16, 30)}
    write_images(tmp_path, {**names, "a/deeper/four.png": (8, 8), ".hidden/five.png": (8, 8)})
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    found = read_ood_images(tmp_path, 10, 12, seed=0)
    assert found.name == tmp_path.name and found.images.shape == (3, 3, 12, 12)
    assert found.images.dtype == torch.uint8
    # by path: a/three, b/two, one
    assert found.images[:, 0, 5, 5].tolist() == [20, 0, 10]
    assert (found.images[:, 1] == 200).all()
    assert "1 other files skipped" in found.about and str(tmp_path) in found.about
    (tmp_path / "a" / "notes.txt").unlink()
    two, again, other = (read_ood_images(tmp_path, 2, 12, seed=seed) for seed in (0, 0, 1))
    assert len(two.images) == 2 and torch.equal(two.images, again.images)
    assert not torch.equal(two.images, other.images)
    for path in tmp_path.rglob("*.png"):
        path.write_text("broken")
    with pytest.raises(DataError, match="found 3 files, none of them an image"):
        read_ood_images(tmp_path, 10, 12, seed=0)


def test_built_in_sets() -> None:
    found = built_in_sets("cifar10", 300, 20, seed=5)
    assert [of.name for of in found] == list(BUILT_IN) == ["uniform_noise", "clouds", "shapes"]
    for of, again in zip(found, built_in_sets("cifar10", 300, 20, seed=5), strict=True):
        assert of.images.shape == (300, 3, 20, 20) and of.images.dtype == torch.uint8
        assert torch.equal(of.images, again.images)
        assert len({image.numpy().tobytes() for image in of.images}) == 300
    noise, clouds, _ = (of.images.double() for of in found)
    assert float(noise.mean()) == pytest.approx(127.5, abs=1)
    assert float(noise.std()) == pytest.approx((256**2 / 12) ** 0.5, abs=1)
    # neighbours: unrelated in noise, alike in clouds; channels are drawn apart
    assert float((noise[..., 1:] - noise[..., :-1]).abs().mean()) == pytest.approx(256 / 3, abs=1)
    assert float((clouds[..., 1:] - clouds[..., :-1]).abs().mean()) < 40
    assert not torch.equal(clouds[:, 0], clouds[:, 1])
    assert [of.name for of in built_in_sets("cifar10", 3, 8, seed=5)] == ["uniform_noise", "clouds"]
    few = built_in_sets("cifar10", 3, 20, seed=5)
    assert [len(of.images) for of in few] == [3, 3, 3]
    assert torch.equal(few[1].images, found[1].images[:3])
