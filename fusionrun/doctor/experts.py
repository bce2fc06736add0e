"""The experts that a study starts from: loaded, and asked on some validation images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fusionrun.common.text import plural
from fusionrun.components.read_checkpoint import load_expert_weights
from fusionrun.components.store import ComponentInfo
from fusionrun.data.datasets import Dataset
from fusionrun.launch.checks.doubts import doubt
from fusionrun.launch.checks.expert_files import (
    REPLACE_EXPERT,
    expert_paths,
    missing_experts,
    other_classes,
)
from fusionrun.launch.checks.finding import Finding
from fusionrun.study.context import RunContext
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.inference import collect_logits

ANSWERED_IMAGES = 512  # of validation, by every expert: a few seconds on a CPU
COMPARE_CLASSES = "compare the order of its classes with that of data.root's folders"


def examine_experts(context: RunContext) -> Iterator[Finding]:
    """Every expert that is there loads, fits, was trained for this data, and answers as if so."""
    study, data = context.study, context.data
    for (model, seed), paths in expert_paths(study).items():
        accuracies, others = [], []  # how good each is; whence those are that aren't ours
        for k, path in paths.items():
            if not path.exists():
                continue
            expert = context.build_expert(model, k=k)
            context.settle(expert)
            images = context.splits.expert_val[k]  # which may be sorted by their classes
            images = images[:: -(-len(images) // ANSWERED_IMAGES)]
            loader = context.loader(images, context.evaluation_batch)
            try:
                file = load_expert_weights(expert, path)
            except CheckpointError as error:
                yield Finding("experts", "fail", str(error), REPLACE_EXPERT)
                continue
            origin = [] if file.about is None else list(_check_origin(path, file.about, data))
            yield from origin
            if any(finding.state == "fail" for finding in origin):
                continue
            if file.about is None:
                others.append(file.origin)
            logits, labels = collect_logits([expert], loader, context.precision)
            answers = logits[:, 0].argmax(dim=1)
            accuracies.append(f"{100 * float((answers == labels).float().mean()):.0f}")
            if found := doubt(answers, labels, len(data.classes)):
                yield Finding("experts", "warn", f"{path}: {found}", COMPARE_CLASSES)
        if accuracies:
            who = model if seed is None else f"{model} with seed {seed}"
            found = f"{who}: {len(accuracies)} fit, right on {', '.join(accuracies)} %"
            found = f"{found} of {plural(len(images), 'validation image')}"
            if study.recipe.data.split == "non_iid":
                found = f"{found} of their own classes"
            yield Finding("experts", "pass", "; ".join([found, *dict.fromkeys(others)]))
    yield from missing_experts(study)


def _check_origin(path: Path, about: ComponentInfo, data: Dataset) -> Iterator[Finding]:
    """What an expert's file of ours says of its training against this study's data."""
    side = data.train_images.shape[-1]
    if found := other_classes(about, data.classes):
        advice = "use experts of this data set, or train them again"
        yield Finding("experts", "fail", f"{path}: {found}", advice)
        return
    normalised = [*about.mean, *about.std]
    ours = [*data.mean, *data.std]
    if any(abs(a - b) > 1e-3 for a, b in zip(normalised, ours, strict=True)):
        found = (
            f"{path}: was trained on inputs normalised with {_listed(normalised)} (mean, then "
            f"std), this study uses {_listed(ours)}"
        )
        yield Finding(
            "experts", "warn", found, "is it of the same data? It starts worse than it was"
        )
    if about.image_size != side:
        found = f"{path}: was trained on {about.image_size}x{about.image_size} images, here"
        yield Finding("experts", "warn", f"{found} {side}x{side}", "it starts worse than it was")


def _listed(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)
