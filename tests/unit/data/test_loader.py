"""Resident batches: every sample once, any step reproducible, normalised as defined."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusionrun.data.augmentation.policies import AUGMENTATIONS, Augmentation
from fusionrun.data.loader import ResidentLoader

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def make(count=40, total=60, augmentation=AUGMENTATIONS["none"], images=None, **changes):
    g = torch.Generator().manual_seed(1)
    if images is None:
        images = torch.randint(0, 256, (total, 3, 16, 16), dtype=torch.uint8, generator=g)
    labels = torch.arange(len(images))  # the label names the sample
    indices = np.random.default_rng(0).permutation(total)[:count]
    arguments = {
        "num_classes": len(images),
        "batch_size": 16,
        "mean": MEAN,
        "std": STD,
        "augmentation": augmentation,
        **changes,
    }
    return ResidentLoader(images, labels, indices, **arguments), images, indices


def normalised(images):
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


@pytest.mark.parametrize("channels_last", [False, True])
def test_evaluation_is_in_order_and_unaugmented(channels_last):
    loader, images, indices = make(
        augmentation=AUGMENTATIONS["randaugment_strong"], channels_last=channels_last
    )
    batches = list(loader.evaluation_batches())
    assert [len(b.labels) for b in batches] == [16, 16, 8]
    found = torch.cat([b.images for b in batches])
    assert torch.allclose(found, normalised(images[indices]), atol=1e-5)
    assert torch.cat([b.labels for b in batches]).tolist() == indices.tolist()
    assert torch.equal(torch.cat([b.targets for b in batches]), torch.eye(60)[indices])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(b.images.is_contiguous(memory_format=layout) for b in batches)
    assert all(b.images.dtype == b.targets.dtype == torch.float32 for b in batches)


def test_where_a_batch_does_not_fit_smaller_ones_are_made(monkeypatch):
    loader, images, indices = make()
    original = ResidentLoader._normalised

    def short(self, found):
        if len(found) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, found)

    monkeypatch.setattr(ResidentLoader, "_normalised", short)
    batches = list(loader.evaluation_batches())
    assert max(len(batch.labels) for batch in batches) <= 5
    assert torch.cat([batch.labels for batch in batches]).tolist() == indices.tolist()
    found = torch.cat([batch.images for batch in batches])
    assert torch.allclose(found, normalised(images[indices]), atol=1e-5)
    monkeypatch.setattr(ResidentLoader, "_normalised", lambda self, found: short(self, images))
    with pytest.raises(torch.OutOfMemoryError):  # not even one: no endless halving
        list(loader.evaluation_batches())


def test_an_epoch_is_a_permutation_given_by_its_seed():
    loader, images, indices = make()
    orders = []
    for seed in (1, 2, 1):
        batches = list(loader.training_batches(seed))
        order = torch.cat([b.labels for b in batches])
        found = torch.cat([b.images for b in batches])
        assert torch.allclose(found, normalised(images[order]), atol=1e-5)
        assert torch.equal(torch.cat([b.targets for b in batches]), torch.eye(60)[order])
        assert sorted(order.tolist()) == sorted(indices.tolist())
        orders.append(order.tolist())
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != indices.tolist()


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (32, 16, [16, 16]),
        (34, 16, [16, 16, 2]),
        (33, 16, [16, 17]),  # batch normalisation cannot train on one sample
        (17, 16, [17]),
        (1, 16, [1]),
        (5, 16, [5]),
        (3, 1, [1, 2]),
    ],
)
def test_batch_sizes(count, batch_size, sizes):
    loader, _, _ = make(count, batch_size=batch_size)
    assert loader.num_images == count
    assert len(loader) == len(sizes)
    assert [len(b.images) for b in loader.training_batches(0)] == sizes
    assert [len(b.images) for b in loader.evaluation_batches()] == sizes


@pytest.mark.parametrize("name", ["randaugment_strong", "color_jitter"])
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_an_epoch_entered_later_goes_on_identically(name, start):
    loader, _, _ = make(augmentation=AUGMENTATIONS[name])
    whole = list(loader.training_batches(9))
    torch.manual_seed(123)
    rest = list(loader.training_batches(9, start))
    assert len(rest) == 3 - start
    for one, other in zip(whole[start:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.labels, other.labels)


def test_augmentation_differs_between_steps_and_epochs():
    same = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).repeat(60, 1, 1, 1)
    loader, _, _ = make(48, images=same, augmentation=Augmentation())
    batches = [b.images for seed in (1, 2) for b in loader.training_batches(seed)]
    assert not any(torch.equal(batches[i], batches[j]) for i in range(6) for j in range(i))


def test_the_data_set_is_not_changed():
    loader, images, _ = make(augmentation=AUGMENTATIONS["randaugment_strong"])
    before = images.clone()
    for batch in [*loader.training_batches(0), *loader.evaluation_batches()]:
        batch.images.zero_()
        batch.labels.zero_()
    assert torch.equal(images, before)
    order = torch.cat([b.labels for b in loader.evaluation_batches()])
    assert len(order.unique()) == 40


def test_mixed_targets_and_plain_labels():
    for mixing in ("cutmix", "mixup"):
        loader, images, _ = make(augmentation=Augmentation(mixing=mixing))
        batch = next(loader.training_batches(4))
        assert torch.allclose(batch.targets.sum(1), torch.ones(16))
        assert (batch.targets > 0).sum() > 16
        assert batch.labels.unique().numel() == 16
        limits = normalised(torch.tensor([0, 255]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
        assert (batch.images >= limits[0] - 1e-4).all()
        assert (batch.images <= limits[1] + 1e-4).all()
        del images


def test_mixup_is_normalised_like_everything_else():
    plain = Augmentation(crop_padding=0, flip=0.0)
    loader, images, _ = make(augmentation=replace(plain, mixing="mixup"), channels_last=True)
    for batch in loader.training_batches(4):
        expected = torch.einsum("nk,kchw->nchw", batch.targets, normalised(images))
        assert torch.allclose(batch.images, expected, atol=1e-4)


def test_erased_pixels_are_zero_after_normalising():
    black = torch.zeros(60, 3, 16, 16, dtype=torch.uint8)
    loader, _, _ = make(images=black, augmentation=Augmentation(erasing=1.0))
    batch = next(loader.training_batches(0))
    levels = batch.images[:, 0].unique()
    assert len(levels) == 2  # the black image and the erased rectangle
    assert abs(levels[1]) <= 0.5 / 255 / 0.25 + 1e-6  # half a grey level


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_classes": 59}, r"labels cover 0\.\.59"),
        ({"count": 0}, "indices are"),
        ({"total": 61}, r"expected 0\.\.59"),
    ],
)
def test_unfit_arguments_are_refused(changes, message):
    images = torch.zeros(60, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        make(**{"count": 60, "images": images, **changes} if "total" in changes else changes)


def test_a_mask_is_not_taken_for_indices():
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="bool"):
        ResidentLoader(
            images,
            torch.zeros(4).long(),
            np.array([True, False, True, True]),
            num_classes=1,
            batch_size=2,
            mean=MEAN,
            std=STD,
            augmentation=Augmentation(),
        )


def test_a_start_step_beyond_the_epoch_is_refused_at_once():
    loader, _, _ = make()
    with pytest.raises(ValueError, match="start_step is 4"):
        loader.training_batches(0, 4)


@pytest.mark.cuda
def test_cuda_batches_equal_those_of_the_host_and_never_wait():
    loader, images, indices = make(augmentation=AUGMENTATIONS["trivialaugment"])
    there = ResidentLoader(
        images.cuda(),
        torch.arange(60).cuda(),
        indices,
        num_classes=60,
        batch_size=16,
        mean=MEAN,
        std=STD,
        augmentation=AUGMENTATIONS["trivialaugment"],
    )
    list(there.training_batches(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(there.training_batches(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(loader.training_batches(2), found, strict=True):
        assert torch.allclose(one.images, other.images.cpu(), atol=1e-5)
        assert torch.allclose(one.targets, other.targets.cpu())
