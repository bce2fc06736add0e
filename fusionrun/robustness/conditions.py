"""The test images in every condition that a row is measured in, one condition at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fusionrun.data.datasets.subset import stratified_subset
from fusionrun.data.errors import DataError
from fusionrun.data.loader import Batch
from fusionrun.robustness.cifar_c import corrupted_names, read_corrupted
from fusionrun.robustness.corruptions import (
    CORRUPTIONS,
    NOISE_SIGMAS,
    SEVERITIES,
    add_noise,
    corrupt,
)
from fusionrun.study.context import RunContext

SEED = 2019  # of all random numbers


class ImageCondition(NamedTuple):
    """What was done to the test images."""

    kind: Literal["clean", "noise", "made", "published"]
    name: str = ""  # of a corruption
    level: float = 0.0  # sigma of noise, severity of a corruption

    def __str__(self) -> str:
        if self.kind == "noise":
            return f"noise, sigma {self.level:g}"
        prefix = "published " if self.kind == "published" else ""
        return f"{prefix}{self.name}, severity {self.level}" if self.name else self.kind


CLEAN = ImageCondition("clean")


def image_conditions(
    context: RunContext, chosen: Tensor, folder: Path | None
) -> Iterator[tuple[ImageCondition, Iterator[Batch]]]:
    """Batches of the test images `chosen` (N,) by index, condition by condition.

    `folder` holds published corrupted images. They come first, as the user's files can be wrong.
    Raises DataError.
    """
    device = context.device
    images = context.data.test_images[chosen].to(device)
    labels = context.data.test_labels[chosen].to(device)
    if folder is not None:
        for name, severity, published in published_images(context, chosen, folder):
            condition = ImageCondition("published", name, severity)
            yield condition, image_batches(context, published, labels)
    yield CLEAN, image_batches(context, images, labels)
    for sigma in NOISE_SIGMAS:
        batches = _noisy(image_batches(context, images, labels), sigma)
        yield ImageCondition("noise", level=sigma), batches
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            made = corrupt(images, name, severity, SEED)
            condition = ImageCondition("made", name, severity)
            yield condition, image_batches(context, made, labels)


def number_of_conditions(folder: Path | None) -> int:
    """How many `image_conditions` yields."""
    published = 0 if folder is None else len(corrupted_names(folder))
    return 1 + len(NOISE_SIGMAS) + (len(CORRUPTIONS) + published) * len(SEVERITIES)


def image_batches(context: RunContext, images: Tensor, labels: Tensor) -> Iterator[Batch]:
    """Images (N, 3, S, S) uint8 and their labels (N,) as the study's networks are shown them."""
    data = replace(context.data, test_images=images, test_labels=labels)
    return replace(context, data=data).test_loader().evaluation_batches()


def _noisy(batches: Iterator[Batch], sigma: float) -> Iterator[Batch]:
    first = 0
    for batch in batches:
        yield replace(batch, images=add_noise(batch.images, sigma, SEED, first_index=first))
        first += len(batch.labels)


def published_images(
    context: RunContext, chosen: Tensor, folder: Path
) -> Iterator[tuple[str, int, Tensor]]:
    """(corruption, severity, what became of the test images `chosen`). Raises DataError."""
    recipe, data = context.study.recipe.data, context.data
    for part in read_corrupted(folder, len(data.classes)):
        # the study's test set may be a subset already
        whole = stratified_subset(
            part.labels.numpy(), recipe.test_images, recipe.seed, "data.test_images"
        )
        index = torch.from_numpy(whole)[chosen]
        if not torch.equal(part.labels[index], data.test_labels[chosen]):
            raise DataError(
                f"--corrupted: {folder}: labels.npy: found other labels than the test set of "
                f"{data.name} has, expected the same in the same order"
            )
        yield part.name, part.severity, part.images[index]
