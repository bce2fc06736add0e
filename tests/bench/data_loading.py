"""Batches: made on the device that holds the images, against a DataLoader of torchvision."""

from dataclasses import replace
from itertools import count

import numpy as np
import torch

from fusionrun.data.augmentation.policies import AUGMENTATIONS
from fusionrun.study.context import RunContext
from tests.bench import reference
from tests.bench.fusionrun_side import run_context
from tests.bench.measure import Bench, Row, times_as_fast

FEW, MANY = 512, 8192  # images of an epoch on one core, and on all
BATCH = 128
GOALS = {
    "crop_flip": 10.0,
    "color_jitter": 5.0,
    "randaugment": 5.0,
    "randaugment_strong": 5.0,
    "trivialaugment": 5.0,
}


def measure(bench: Bench) -> list[Row]:
    """Every set with CutMix on one core, without workers; the first with all cores, too."""
    context = run_context(bench, "resnet", images=MANY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_compare(bench, context, policy, FEW, workers=0) for policy in GOALS]
    finally:
        torch.set_num_threads(threads)
    return [*rows, _compare(bench, context, "crop_flip", MANY, workers=bench.cores)]


def _compare(bench: Bench, context: RunContext, policy: str, images: int, *, workers: int) -> Row:
    augmentation = replace(AUGMENTATIONS[policy], mixing="cutmix")
    ours = context.loader(np.arange(images), BATCH, augmentation)
    data = context.data
    dataset = reference.Images(
        data.train_images[:images].numpy(),
        data.train_labels[:images].numpy(),
        reference.transform(augmentation, data.mean, data.std),
    )
    theirs = reference.loader(dataset, BATCH, workers=workers, shuffle=True)
    rng, seeds = np.random.default_rng(0), count()

    def ours_epoch() -> None:
        for _ in ours.training_batches(next(seeds)):
            pass

    def their_epoch() -> None:
        for batch in reference.training_batches(theirs, rng):
            batch[0].to(bench.device)

    their_seconds, our_seconds = bench.interleave(bench.timed(their_epoch), bench.timed(ours_epoch))
    where = f"{workers} workers, {torch.get_num_threads()} threads" if workers else "one core"
    return times_as_fast(
        "data",
        f"{policy} + cutmix, {where}",
        GOALS[policy],
        theirs=[1e6 * seconds / images for seconds in their_seconds],
        ours=[1e6 * seconds / images for seconds in our_seconds],
        unit="us/image",
    )
