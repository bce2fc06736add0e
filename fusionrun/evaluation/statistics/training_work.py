"""What training takes, counted and not timed: images seen, optimizer steps, image passes.

Controls can only be compared with a row where this stands beside them: what saw more images, or
learned from them for longer, is ahead for that alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fusionrun.components.store import peek_info
from fusionrun.data.loader import batch_starts
from fusionrun.data.splits import Indices, Splits
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.study.study import Study


@dataclass(frozen=True)
class Training:
    """One task's: from which images it learns, and how often."""

    images: Indices  # into the training set
    batch_size: int  # of an optimizer step
    epochs: int
    networks: int = 1  # that each image goes through forward and backward


class Work(NamedTuple):
    """Of several trainings together; None: not known."""

    images_seen: int | None = None  # each training image counts once, whoever learned from it
    steps: int | None = None  # of optimizers
    image_passes: int | None = None  # images x epochs x networks, forward and backward


def training_work(trainings: Sequence[Training]) -> Work:
    """All of it, whether they ran side by side or not; validation isn't counted."""
    seen = np.unique(np.concatenate([each.images for each in trainings]))
    steps = (len(batch_starts(len(t.images), t.batch_size)) * t.epochs for t in trainings)
    passes = (len(t.images) * t.epochs * t.networks for t in trainings)
    return Work(len(seen), sum(steps), sum(passes))


def trainings_of(study: Study, splits: Splits, row: Row) -> list[Training]:
    """A row's and its experts' own; what has no experts learns from all that those would see.

    Frozen experts aren't gone through backward: then fusion training adds steps and no passes.
    """
    own = study.recipe.experts
    if not row.experts:
        batch = study.expert_defaults(row.model).batch_size
        alone = Training(splits.everything, batch, own.epochs)
        return [alone] * (row.networks or 1)
    of_experts = [
        Training(
            splits.expert_train[member.k],
            study.expert_defaults(member.model).batch_size,
            own.epochs,
        )
        for member in row.experts
    ]
    tuned = 0 if row.control == "frozen" else len(row.experts)
    fusion = study.recipe.fusion
    return [
        *of_experts,
        Training(splits.fusion_train, fusion.batch_size, fusion.epochs, tuned),
    ]


def work_of(context: RunContext, row: Row) -> Work:
    """Of the row and its experts; not known where an expert isn't what this study would train."""
    for member in row.experts:
        about = peek_info(context.study.expert_file(*member))
        identity = context.identity(context.study.expert_task(member))
        if about is None or not about.settings or identity.differences(about.settings):
            return Work()
    return training_work(trainings_of(context.study, context.splits, row))
