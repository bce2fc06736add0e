"""`preview`: every fusion type on the frozen experts' features, in seconds instead of hours.

A ranking to choose rows by, not a result: the experts stay as their own training left them, images
aren't augmented, and the validation accuracies that rank the fusions also chose their epochs. The
test set is not touched.
"""

import time
from collections.abc import Sequence

from rich.console import Console

from fusionrun.common.distributed import RankInfo
from fusionrun.common.progress import Progress
from fusionrun.common.text import problem_of
from fusionrun.components.starting_experts import load_experts
from fusionrun.evaluation.frozen_features import Given, extract, train_fusion
from fusionrun.evaluation.measuring import ROW_PROBLEMS, measure_study, run_header, say
from fusionrun.evaluation.preview_results import (
    FailedModel,
    FusionPreview,
    ModelPreview,
    Preview,
    tables,
    write_preview,
)
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.evaluation.statistics.seeds import spread
from fusionrun.fusions import FUSIONS
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Member
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
        members = {row.model: row.experts for row in study.rows if not row.is_single}
        models = tuple(preview_model(context, *each, numbers, epochs) for each in members.items())
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
    context: RunContext, model: str, members: Sequence[Member], seeds: Sequence[int], epochs: int
) -> ModelPreview | FailedModel:
    """An architecture's entry; a problem is said at once and the others go on."""
    started = time.monotonic()
    try:
        experts, _ = load_experts(context, members)
        train = extract(context, experts, context.splits.fusion_train)
        validation = extract(context, experts, context.splits.fusion_val)
    except ROW_PROBLEMS as error:
        say(f"fusionrun: {model}: {problem_of(error)}")
        return FailedModel(model, problem_of(error))
    images = len(train.labels) + len(validation.labels)
    say(f"[{model}] features of {images} images, took {time.monotonic() - started:.0f} s")
    given = Given(context, model, experts, train, validation)
    names = dict.fromkeys([*FUSIONS, *(r.fusion for r in context.study.rows if not r.is_single)])
    progress, fusions = Progress(len(names), say), []
    shown = headline.digits(len(validation.labels))
    for name in names:
        fusions.append(preview_fusion(given, name, seeds, epochs))
        mean = fusions[-1].mean
        found = "not measured" if mean is None else f"{mean:.{shown}f} %"
        progress.done_with(f"{model}, {name}: {found}")
    fusions.sort(key=lambda fusion: fusion.mean or 0.0, reverse=True)
    alone = [accuracy(logits, validation.labels) for logits in validation.logits.unbind(dim=1)]
    return ModelPreview(
        model=model,
        problem="",
        images=len(train.labels),
        mean_probabilities=accuracy(mix_probabilities(validation.logits), validation.labels),
        best_expert=max(alone),
        fusions=tuple(fusions),
    )


def preview_fusion(given: Given, fusion: str, seeds: Sequence[int], epochs: int) -> FusionPreview:
    """A fusion's entry, over the seeds."""
    started = time.monotonic()
    try:
        found = [train_fusion(given, fusion, seed, epochs) for seed in seeds]
    except ROW_PROBLEMS as error:  # a fusion may not take this feature size
        say(f"fusionrun: {given.model}, {fusion}: {problem_of(error)}")
        return FusionPreview(fusion, problem_of(error))
    accuracies, best_epochs = zip(*found, strict=True)
    over, seconds = spread(accuracies), time.monotonic() - started
    return FusionPreview(fusion, "", accuracies, best_epochs, over.mean, over.deviation, seconds)
