"""`preview`: every fusion type on the frozen experts' features, in seconds instead of hours.

A ranking to choose rows by, not a result: the experts stay as their own training left them, images
aren't augmented, and the validation accuracies that rank the fusions also chose their epochs. The
test set is not touched.
"""

import time
from collections.abc import Sequence

import torch
from rich.console import Console

from fusionrun.common.distributed import RankInfo
from fusionrun.common.progress import Progress
from fusionrun.evaluation import frozen_features
from fusionrun.evaluation.measuring import measure_study, run_header
from fusionrun.evaluation.preview_results import (
    FailedModel,
    FusionPreview,
    ModelPreview,
    Preview,
    tables,
    write_preview,
)
from fusionrun.evaluation.problems import problem_said, say
from fusionrun.evaluation.row_names import row_name
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.evaluation.statistics.seeds import spread
from fusionrun.fusions import FUSIONS
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.tables import headline
from fusionrun.training.scores import mix_probabilities


def preview(
    study: Study,
    rank_info: RankInfo,
    console: Console,
    *,
    seeds: int,
    epochs: int,
    new_splits: bool = False,
) -> int:
    """Rank the fusions for each of the study's architectures; returns 0, or 3 where one has none.

    `new_splits` may be drawn for somebody's experts with which nothing was trained yet.
    Raises LaunchError when the data or the device isn't there, or results can't be written.
    """

    def measure(context: RunContext) -> Preview:
        numbers = tuple(study.recipe.seed + i for i in range(seeds))
        rows: dict[object, Row] = {}  # the first with these experts
        for row in study.rows:
            if row.experts:
                rows.setdefault(row.experts, row)
        known: frozen_features.Known = {}
        models = tuple(preview_model(context, r, known, numbers, epochs) for r in rows.values())
        return Preview(**run_header(context), epochs=epochs, seeds=numbers, models=models)

    return measure_study(
        study,
        rank_info,
        console,
        measure=measure,
        write=write_preview,
        show=tables,
        new_splits=new_splits,
    )


def preview_model(
    context: RunContext, row: Row, known: frozen_features.Known, seeds: Sequence[int], epochs: int
) -> ModelPreview | FailedModel:
    """The entry of all rows with the experts of `row`; what these see is looked up in `known`.

    A problem is said at once and the others go on.
    """
    started, name = time.monotonic(), row_name(row)
    who = row.model if row.expert_seed is None else f"{row.model}, experts' seed {row.expert_seed}"
    try:
        given = frozen_features.see(context, row, known)
    except Exception as error:
        return FailedModel(who, problem_said(who, error), name.members)
    train, validation = given.train, given.validation
    images = len(train.labels) + len(validation.labels)
    say(f"[{who}] features of {images} images, took {time.monotonic() - started:.0f} s")
    rows = context.study.rows
    wanted = dict.fromkeys([*FUSIONS, *(each.fusion for each in rows if each.experts)])
    progress, fusions = Progress(len(wanted), say), []
    shown = headline.digits(len(validation.labels))
    for fusion in wanted:
        fusions.append(preview_fusion(given, fusion, seeds, epochs))
        mean = fusions[-1].mean
        found = "not measured" if mean is None else f"{mean:.{shown}f} %"
        progress.done_with(f"{who}, {fusion}: {found}")
    fusions.sort(key=lambda fusion: fusion.mean or 0.0, reverse=True)
    logits = torch.stack([seen.logits for seen in validation.experts], dim=1)
    alone = [accuracy(each, validation.labels) for each in logits.unbind(dim=1)]
    return ModelPreview(
        model=who,
        problem="",
        images=len(train.labels),
        mean_probabilities=accuracy(mix_probabilities(logits), validation.labels),
        best_expert=max(alone),
        fusions=tuple(fusions),
        best_expert_name=name.expert_name(alone.index(max(alone))),
        members=name.members,
    )


def preview_fusion(
    given: frozen_features.Given, fusion: str, seeds: Sequence[int], epochs: int
) -> FusionPreview:
    """A fusion's entry, over the seeds."""
    started = time.monotonic()
    try:
        found = [frozen_features.train_fusion(given, fusion, seed, epochs) for seed in seeds]
    except Exception as error:  # a fusion may not take this feature size
        return FusionPreview(fusion, problem_said(f"{given.row.model}, {fusion}", error))
    accuracies, best_epochs = zip(*found, strict=True)
    over, seconds = spread(accuracies), time.monotonic() - started
    return FusionPreview(fusion, "", accuracies, best_epochs, over.mean, over.deviation, seconds)
