"""Every finished row of a study, measured on noisy, corrupted and OOD images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fusionrun.common.progress import Progress
from fusionrun.data.datasets.subset import stratified_subset
from fusionrun.data.loader import Batch
from fusionrun.evaluation.measuring import noted, run_header
from fusionrun.evaluation.problems import say
from fusionrun.evaluation.schema import FailedRow
from fusionrun.robustness.conditions import (
    SEED,
    image_batches,
    image_conditions,
    number_of_conditions,
)
from fusionrun.robustness.corruptions import NOTES
from fusionrun.robustness.ood_images import OODImages, built_in_sets, read_ood_images
from fusionrun.robustness.row_under_test import RowUnderTest
from fusionrun.robustness.schema import OODSet, Robustness
from fusionrun.study.context import RunContext
from fusionrun.training.fitting import Parts
from fusionrun.training.inference import forward_heads
from fusionrun.training.precision import keep_casts

Failures = dict[str, FailedRow]  # by the row's name


@dataclass(frozen=True)
class RobustnessOptions:
    """What the command line asks for."""

    corrupted: Path | None = None  # the unpacked CIFAR-10-C or CIFAR-100-C
    ood: Path | None = None  # a folder of images; None: the built-in sets
    images: int | None = None  # of the test set; None: all


def measure(context: RunContext, options: RobustnessOptions) -> Robustness:
    """All rows in every image condition and on every OOD set. Raises DataError."""
    data, folder = context.data, options.corrupted
    subset = stratified_subset(data.test_labels.numpy(), options.images, SEED, "--images")
    chosen = torch.from_numpy(subset)
    ood_sets = load_ood_sets(context, options.ood, len(chosen))
    failures: Failures = {}
    rows = load_rows(context, failures)
    progress = Progress(number_of_conditions(folder) + len(ood_sets), say)
    for condition, batches in image_conditions(context, chosen, folder):
        for each, logits in answers(context, rows, failures, batches):
            with noted(each.row, failures):
                each.measure(condition, logits, data.test_labels[chosen])
        progress.done_with(str(condition))
    for shown in ood_sets:
        batches = image_batches(context, shown.images, torch.zeros(len(shown.images)).long())
        for each, logits in answers(context, rows, failures, batches):
            with noted(each.row, failures):
                each.measure_ood(shown.name, logits)
        progress.done_with(shown.name)
    notes = [f"{name}: {note}" for name, note in NOTES.items()]
    if len(chosen) < len(data.test_labels):
        notes.insert(
            0, f"{len(chosen)} of {len(data.test_labels)} test images, stratified by class"
        )
    measured = {each.row: each for each in rows}
    return Robustness(
        **run_header(context),
        images=len(chosen),
        seed=SEED,
        corrupted=None if folder is None else str(folder),
        ood_sets=tuple(OODSet(of.name, of.about, len(of.images)) for of in ood_sets),
        notes=tuple(notes),
        entries=tuple(
            failures[row.name] if row.name in failures else measured[row].result()
            for row in context.study.rows
        ),
    )


def load_ood_sets(context: RunContext, folder: Path | None, count: int) -> list[OODImages]:
    """The user's images or the built-in sets, `count` of each at most. Raises DataError."""
    size = context.data.test_images.shape[-1]
    if folder is not None:
        value_range = context.study.recipe.data.range
        return [read_ood_images(folder, count, size, SEED, say, value_range)]
    return built_in_sets(context.data.name, count, size, SEED)


def load_rows(context: RunContext, failures: Failures) -> list[RowUnderTest]:
    """The rows that can be measured.

    All networks stay on the device, 4 bytes a parameter: each condition is made once, for all rows.
    """
    rows = []
    for row in context.study.rows:
        with noted(row, failures):
            rows.append(RowUnderTest.load(context, row))
    return rows


@torch.no_grad()
def answers(
    context: RunContext, rows: list[RowUnderTest], failures: Failures, batches: Iterable[Batch]
) -> Iterator[tuple[RowUnderTest, Tensor]]:
    """Each row's logits (N, H, C) of all batches, on the CPU; those with a problem are left out."""
    logits: dict[str, list[Tensor]] = {each.row.name: [] for each in rows}
    parts = {each.row.name: Parts() for each in rows}

    def ask(each: RowUnderTest, batch: Batch) -> Tensor:
        with context.precision.autocast(context.device):
            return forward_heads(each.model, batch.images).float()

    with keep_casts(context.device):
        for batch in batches:
            for each in rows:
                if each.row.name not in failures:
                    with noted(each.row, failures):
                        logits[each.row.name] += parts[each.row.name].of(
                            [batch], partial(ask, each)
                        )
    for each in rows:
        if each.row.name not in failures:
            yield each, torch.cat(logits.pop(each.row.name)).cpu()
