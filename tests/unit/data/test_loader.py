"""Resident batches: every sample once, any step reproducible, normalised as defined."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusionrun.data import loader as loader_module
from fusionrun.data.augmentation.policies import AUGMENTATIONS, MIXINGS, Augmentation
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


# ---------------------------------------------------------------- steps ahead


def same(batches, others):
    for one, other in zip(batches, others, strict=True):
        for name in ("images", "targets", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_a_batch_is_the_same_bytes_however_many_are_made_with_it(name, mixing, size, monkeypatch):
    g = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (90, 3, size, size), dtype=torch.uint8, generator=g)
    augmentation = replace(AUGMENTATIONS[name], mixing=mixing)
    # 22 steps, the last of five images: two times ahead, the second time of fewer
    arguments = {"augmentation": augmentation, "batch_size": 4, "images": images}
    together, _, _ = make(89, 90, **arguments)
    whole = list(together.training_batches(7))
    assert [len(batch.labels) for batch in whole] == [4] * 21 + [5]
    monkeypatch.setattr(loader_module, "STEPS_AHEAD", 1)
    alone, _, _ = make(89, 90, **arguments)
    same(alone.training_batches(7), whole)
    same(together.training_batches(7, 19), whole[19:])  # entered among others


def test_batches_are_those_of_earlier_versions():
    """Of every set and mixing, so that what was begun with one of them continues the same."""
    seen = hashlib.sha256()
    for name in sorted(AUGMENTATIONS):
        for mixing in MIXINGS:
            augmentation = replace(AUGMENTATIONS[name], mixing=mixing)
            loader, _, _ = make(augmentation=augmentation)
            for batch in loader.training_batches(11):
                # as levels: a CPU's last bit of a product may be another's
                shown = (batch.images - loader._shift) / loader._scale
                seen.update(shown.round().to(torch.uint8).numpy().tobytes())
                seen.update((batch.targets * 1e4).round().to(torch.int32).numpy().tobytes())
                seen.update(batch.labels.numpy().tobytes())
    assert seen.hexdigest()[:16] == "96a87e6642f4ea7b"


class Calls(TorchDispatchMode):
    """How many operations were called."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment", "color_jitter"])
def test_many_steps_cost_their_host_hardly_more_than_one(name):
    loader, _, _ = make(60, batch_size=3, augmentation=AUGMENTATIONS[name])
    batches, calls = loader.training_batches(1), Calls()
    with calls:
        next(batches)
        first = calls.count
        for _ in range(15):
            next(batches)
    assert first > 80
    assert calls.count - first <= 15 * 8


@pytest.mark.parametrize(
    ("size", "batch_size", "steps"),
    [
        (32, 128, 16),
        (32, 256, 10),
        (64, 128, 5),
        (224, 128, 1),
        (32, 10000, 1),
        # a sum of so many pixels depends on the order in which they are added
        (256, 1, 16),
        (257, 1, 1),
    ],
)
def test_of_large_batches_fewer_are_made_ahead(size, batch_size, steps):
    images = torch.zeros(4, 3, size, size, dtype=torch.uint8)
    loader, _, _ = make(4, 4, images=images, batch_size=batch_size)
    assert loader._ahead == steps


def test_fewer_are_made_ahead_where_memory_runs_out(monkeypatch):
    loader, _, _ = make(60, batch_size=4, augmentation=AUGMENTATIONS["randaugment"])
    expected = list(loader.training_batches(3))
    whole, made = loader_module.augment, []

    def short(images, labels, *, steps, **more):
        made.append(len(steps))
        if len(steps) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(images, labels, steps=steps, **more)

    limit = 5
    monkeypatch.setattr(loader_module, "augment", short)
    same(loader.training_batches(3), expected)
    assert made == [15, 8, 4, 4, 4, 3]
    made.clear()
    same(loader.training_batches(3), expected)
    assert made == [4, 4, 4, 3], "what was too many once isn't tried again"
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        next(loader.training_batches(3))


@pytest.mark.parametrize("mixing", MIXINGS)
def test_each_batch_has_memory_of_its_own(mixing):
    """At an address like any other's: by it some kernels decide how they add up."""
    augmentation = Augmentation(mixing=mixing)
    loader, _, _ = make(59, batch_size=5, augmentation=augmentation)
    kept, batches = [], loader.training_batches(2)
    for batch in batches:
        for tensor in (batch.images, batch.targets, batch.labels):
            assert tensor.storage_offset() == 0
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            kept.append((tensor, tensor.clone()))
        batch.images[:1].zero_()
        kept[-3][1][:1].zero_()
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_sample_shows_the_first_images_without_making_more_steps(mixing, monkeypatch):
    augmentation = replace(AUGMENTATIONS["randaugment"], mixing=mixing)
    loader, _, _ = make(augmentation=augmentation)
    shown = next(loader.training_batches(6)).images[:5]
    monkeypatch.setattr(loader, "_made_ahead", None)
    sample = loader.sample(6, 5)
    assert (sample.shape, sample.dtype) == ((5, 3, 16, 16), torch.uint8)
    assert (normalised(sample) - shown).abs().max() <= 0.5 / 255 / min(STD) + 1e-5
    assert len(loader.sample(6, 99)) == 16


# ---------------------------------------------------------------- what is in a batch


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
