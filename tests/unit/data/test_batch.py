"""Augmented batches against torchvision's own policies and against counted pixels."""

import itertools
import math

import numpy as np
import pytest
import torch

from fusionrun.data.augmentation.batch import augment
from fusionrun.data.augmentation.policies import AUGMENTATIONS, Augmentation
from tests.fake_cuda import CUDA, fake_cuda
from tests.unit.data.test_image_ops import pictures

STILL = Augmentation(crop_padding=0, flip=0.0)


def run(images, augmentation, seed=0, labels=None, num_classes=None):
    labels = torch.arange(len(images)) if labels is None else labels
    return augment(
        images,
        labels,
        augmentation=augmentation,
        num_classes=num_classes or int(labels.max()) + 1,
        steps=[(seed, len(images))],
    )


# ---------------------------------------------------------------- crop and flip


def coordinates(count):
    """Each pixel says where it is: channel 0 the row, channel 1 the column."""
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    images[:, 0], images[:, 1] = torch.arange(32).view(32, 1), torch.arange(32)
    return images


def test_crops_and_flips_are_uniform_and_differ_within_a_batch():
    count = 16200
    images, _ = run(coordinates(count), Augmentation(flip=0.3), labels=torch.zeros(count).long())
    row = images[:, 0, 16, 16].long() - 16
    flipped = images[:, 1, 16, 16] > images[:, 1, 16, 17]
    column = torch.where(flipped, images[:, 1, 16, 15].long() - 16, images[:, 1, 16, 16].long())
    column = torch.where(flipped, column, column - 16)
    assert row.min() == column.min() == -4
    assert row.max() == column.max() == 4
    counts = torch.bincount((row + 4) * 9 + column + 4, minlength=81)
    chi_square = ((counts - count / 81) ** 2 / (count / 81)).sum()
    assert 40 < chi_square < 140  # 80 degrees of freedom; 5 sigma is 143
    assert abs(flipped.float().mean() - 0.3) < 0.02


def test_nothing_is_drawn_where_nothing_is_asked_for():
    images = pictures()
    found, targets = run(images, AUGMENTATIONS["none"])
    assert torch.equal(found, images)
    assert torch.equal(targets, torch.eye(len(images)))


# ---------------------------------------------------------------- policies


def scenes(count, size):
    """Every operation shows: not constant, contrast to spare, colours of all kinds."""
    return (pictures(count + 8, size, seed=3)[8:] * 0.7).to(torch.uint8) + 30


def candidates(images, wide):
    """{(operation, strength): images} for all outcomes of one torchvision operation."""
    from torchvision.transforms import v2

    transform = v2.TrivialAugmentWide() if wide else v2.RandAugment()
    outcomes = {}
    height, width = images.shape[2:]
    for name, (magnitudes_of, signed) in transform._AUGMENTATION_SPACE.items():
        magnitudes = magnitudes_of(31, height, width)
        bins = [0] if magnitudes is None else range(31) if wide else [9]
        for index, sign in itertools.product(bins, (1, -1) if signed else (1,)):
            strength = 0.0 if magnitudes is None else float(magnitudes[index]) * sign
            if name.startswith("Translate"):
                strength *= 1 + 1e-6  # float32 makes 15.999998 of 16 pixels, which is cut to 15
            result = transform._apply_image_or_video_transform(
                images, name, strength, interpolation=transform.interpolation, fill=transform._fill
            )
            outcomes[name, strength] = result
    return outcomes


def matches(found, outcomes, tolerance=1, share=0.02):
    """Per sample, the names of the outcomes that explain it; sample n shows scene n % scenes."""
    explained = [set() for _ in found]
    for (name, *_), result in outcomes.items():
        repeats = found.view(-1, *result.shape).short()
        wrong = ((repeats - result.short()).abs() > tolerance).flatten(2).float().mean(2)
        # pixels of geometry may round either way (a diagonal at 135 degrees); levels too
        for n in torch.nonzero(wrong.flatten() < share).flatten().tolist():
            explained[n].add(name)
    return explained


@pytest.mark.parametrize("wide", [False, True])
def test_policy_applies_each_torchvision_operation_equally_often(wide):
    different = scenes(16, 32)
    images = different.repeat(14, 1, 1, 1)
    policy = "trivialaugment" if wide else "randaugment"
    found, _ = run(images, Augmentation(policy, 1, 9, crop_padding=0, flip=0.0))
    explained = matches(found, candidates(different, wide))
    assert all(explained), "some sample is no outcome of any torchvision operation"
    alone = [next(iter(names)) for names in explained if len(names) == 1]
    # weak strengths look like the identity, so the wide policy leaves fewer clear cases; a
    # posterize that drops one bit looks like it as well
    clear = ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Brightness", "Color"]
    clear += ["Contrast", "Sharpness", "Solarize", "AutoContrast", "Equalize"]
    for name in clear:
        # 224 samples, 14 operations: 16 each, standard deviation 3.9
        assert 3 <= alone.count(name) <= 34, (name, alone.count(name))


def test_every_trivialaugment_strength_occurs():
    images = torch.full((4000, 3, 8, 8), 100, dtype=torch.uint8)  # brightness shows the factor
    found, _ = run(images, Augmentation("trivialaugment", crop_padding=0, flip=0.0))
    levels = set(found[:, 0, 4, 4].tolist())
    bins = np.linspace(0, 0.99, 31, dtype=np.float32)
    for factor in np.concatenate([1 + bins, 1 - bins]):
        assert int(100 * factor + 1e-4) in levels, factor


def test_randaugment_chains_operations():
    images = scenes(24, 16)
    first = candidates(images, wide=False)
    chains = {
        (f"{one[0]} {two[0]}", one[1], two[1]): result
        for one, middle in first.items()
        for two, result in candidates(middle, wide=False).items()
    }
    found, _ = run(images, Augmentation("randaugment", 2, 9, crop_padding=0, flip=0.0))
    # a level or a pixel that rounds differently in the first step is amplified by the second
    assert all(matches(found, chains, tolerance=6, share=0.03))
    unlike_one = [not names for names in matches(found, first)]
    assert sum(unlike_one) > 12, "two operations should rarely look like one"


def test_color_jitter_has_the_published_ranges():
    count = 3000
    grey = torch.full((count, 3, 8, 8), 100, dtype=torch.uint8)
    jitter = Augmentation("color_jitter", crop_padding=0, flip=0.0)
    found, _ = run(grey, jitter, labels=torch.zeros(count).long())
    level = found[:, 0, 4, 4].float()  # hue, saturation and contrast leave a plain grey alone
    assert 78 <= level.min() <= 82
    assert 117 <= level.max() <= 121
    assert abs(level.mean() - 99.3) < 1.5
    assert abs(level.std() - 40 / math.sqrt(12)) < 1

    red = grey.clone()
    red[:, 0] = 180
    found, _ = run(red, jitter, labels=torch.zeros(count).long())
    r, g, b = found[:, :, 4, 4].float().unbind(1)
    hue = torch.atan2(math.sqrt(3) * (g - b), 2 * r - g - b) / (2 * math.pi)
    # nothing but the hue turns the hue; a level of rounding is about 0.005
    assert -0.115 < hue.min() < -0.08
    assert 0.08 < hue.max() < 0.115
    assert abs(hue.mean()) < 0.01
    spread = r.max() - torch.minimum(g, b).min()
    assert spread > 90  # saturation and contrast move the channels apart as well


# ---------------------------------------------------------------- erasing


def test_erasing_rectangles_follow_torchvision():
    from torchvision.transforms import v2

    count = 4000
    images = torch.full((count, 3, 32, 32), 9, dtype=torch.uint8)
    found, _ = augment(
        images,
        torch.zeros(count).long(),
        augmentation=Augmentation(crop_padding=0, flip=0.0, erasing=0.25),
        num_classes=1,
        steps=[(1, count)],
        erase_value=(200, 100, 50),
    )
    erased = (found != 9).all(1)
    assert torch.equal((found != 9).any(1), erased)
    colours = found.permute(0, 2, 3, 1)[erased].unique(dim=0)
    assert colours.tolist() == [[200, 100, 50]]
    hit = erased.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.035
    boxes = erased[hit]
    rows, columns = boxes.any(2).sum(1), boxes.any(1).sum(1)
    area = boxes.flatten(1).sum(1)
    assert torch.equal(area, rows * columns), "not a rectangle"

    torch.manual_seed(0)
    reference = v2.RandomErasing(1.0)
    drawn = [reference.make_params([images[0]]) for _ in range(1000)]
    their_area = np.array([d["h"] * d["w"] for d in drawn])
    their_rows = np.array([d["h"] for d in drawn])
    assert abs(area.float().mean() - their_area.mean()) < 4 * their_area.std() / math.sqrt(500)
    assert abs(rows.float().mean() - their_rows.mean()) < 4 * their_rows.std() / math.sqrt(500)
    assert area.max() <= 0.34 * 1024
    # all four borders are reached, so positions cover the image
    assert boxes.any(0).all()


# ---------------------------------------------------------------- mixing


def numbered(count):
    """Sample n is all n."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    return images.contiguous()


def test_cutmix_targets_are_the_counted_pixels():
    images = numbered(200)
    found, targets = run(images, Augmentation(crop_padding=0, flip=0.0, mixing="cutmix"))
    assert found.dtype == torch.uint8
    for n in range(200):
        own = (found[n, 0] == n).float().mean()
        if own < 1:
            (partner,) = set(found[n].unique().tolist()) - {n}
            assert torch.equal(found[n, 0], found[n, 2])
            assert targets[n, partner] == pytest.approx(1 - float(own), abs=1e-6)
            box = found[n, 0] == partner
            assert box.sum() == box.any(1).sum() * box.any(0).sum(), "not a rectangle"
        assert targets[n, n] == pytest.approx(float(own), abs=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(200))
    mixed = targets * (1 - torch.eye(200))
    assert (mixed.gt(0).sum(0) <= 1).all(), "a partner was used twice"
    assert len(targets.diagonal().unique()) > 100, "weights are not drawn per sample"


def test_cutmix_weights_follow_the_paper():
    """Against the published procedure, one box at a time (Yun et al. 2019, appendix A)."""
    rng = np.random.default_rng(8)
    reference = []
    for _ in range(4000):
        weight = rng.beta(1, 1)
        cut = int(32 * np.sqrt(1 - weight))
        x, y = rng.integers(32), rng.integers(32)
        width = min(x + cut // 2, 32) - max(x - cut // 2, 0)
        height = min(y + cut // 2, 32) - max(y - cut // 2, 0)
        reference.append(1 - width * height / 1024)
    images = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(4000)
    _, targets = run(images, Augmentation(mixing="cutmix"), labels=labels)
    own = np.sort(targets.diagonal().numpy())
    distance = np.abs(own - np.sort(reference)).mean()  # between the two distributions
    assert distance < 0.02


def test_cutmix_alpha_reaches_the_draw():
    images = torch.zeros(2000, 3, 8, 8, dtype=torch.uint8)
    labels = torch.arange(2000)
    narrow = Augmentation(mixing="mixup", mixing_alpha=50.0)
    wide = Augmentation(mixing="mixup", mixing_alpha=0.2)
    spread = [run(images, a, labels=labels)[1].diagonal().std() for a in (narrow, wide)]
    # standard deviation of Beta(a, a) is 1 / (2 sqrt(2a + 1)); a sample may be its own partner
    assert spread[0] == pytest.approx(0.5 / math.sqrt(101), rel=0.1)
    assert spread[1] == pytest.approx(0.5 / math.sqrt(1.4), rel=0.1)


def test_mixup_blends_pixels_as_it_blends_labels():
    images = numbered(100)
    found, targets = run(images, Augmentation(crop_padding=0, flip=0.0, mixing="mixup"))
    assert found.dtype == torch.float32
    expected = targets @ torch.arange(100.0)
    assert torch.allclose(found[:, 1, 3, 5], expected, atol=1e-3)
    assert ((targets > 0).sum(1) <= 2).all()
    assert torch.allclose(targets.sum(1), torch.ones(100))
    assert targets.diagonal().lt(1).float().mean() > 0.9


def test_a_single_sample_can_be_mixed():
    for mixing in ("cutmix", "mixup"):
        found, targets = run(numbered(1) + 7, Augmentation(mixing=mixing))
        assert found.float().unique().tolist() == pytest.approx([7.0])
        assert targets.tolist() == [[pytest.approx(1.0)]]


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_same_seed_same_bytes_whatever_else_happened(name):
    images, labels = pictures(40), torch.arange(40) % 7
    kept = images.clone()
    torch.manual_seed(0)
    np.random.seed(0)
    first = run(images, AUGMENTATIONS[name], 5, labels)
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.get_rng_state()
    again = run(images, AUGMENTATIONS[name], 5, labels)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(images, kept), "the input was changed"
    assert torch.equal(torch.get_rng_state(), state), "global random state was used"
    other = run(images, AUGMENTATIONS[name], 6, labels)
    assert torch.equal(first[0], other[0]) == (name == "none")


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"none"}))
def test_copies_of_one_image_come_out_different(name):
    images = pictures(12)[9:10].repeat(64, 1, 1, 1)
    found, _ = run(images, AUGMENTATIONS[name], labels=torch.zeros(64).long())
    # crop and flip alone have 81 x 2 outcomes, of which 64 draws hit about 53
    assert len(found.unique(dim=0)) > 45


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_no_operation_waits_for_the_device(name):
    with fake_cuda() as watch:
        images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        labels = torch.arange(64, device=CUDA) % 5
        run(images, AUGMENTATIONS[name], labels=labels, num_classes=5)
        assert watch.waits == []


@pytest.mark.cuda
@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_cuda_gives_the_same_bytes_without_waiting(name):
    images, labels = pictures(128), torch.arange(128) % 5
    expected = run(images, AUGMENTATIONS[name], 3, labels, 5)
    there, labels_there = images.cuda(), labels.cuda()
    run(there, AUGMENTATIONS[name], 2, labels_there, 5)  # allocate and load kernels first
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run(there, AUGMENTATIONS[name], 3, labels_there, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.allclose(found[1].cpu(), expected[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "autoaugment"),
        ("mixing", "cutout"),
        ("flip", 1.5),
        ("erasing", -0.1),
        ("magnitude", 31),
        ("num_ops", -1),
        ("crop_padding", -4),
        ("mixing_alpha", 0.0),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        Augmentation(**{field: value})


def test_unfit_tensors_are_refused():
    images, labels = pictures(4), torch.arange(4)
    for bad, message in ((images.float(), "float32"), (images[:, :2], r"\(4, 2, 32, 32\)")):
        with pytest.raises(ValueError, match=message):
            run(bad, STILL)
    for bad_labels in (labels[:3], labels.int()):
        with pytest.raises(ValueError, match="labels"):
            run(images, STILL, labels=bad_labels, num_classes=4)
    with pytest.raises(ValueError, match="crop_padding"):
        run(images, Augmentation(crop_padding=32))
    with pytest.raises(ValueError, match="the steps have 5 images; expected 4"):
        augment(images, labels, augmentation=STILL, num_classes=4, steps=[(1, 3), (2, 2)])
