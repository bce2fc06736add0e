"""`robustness OUTPUT_DIR`: every finished row on noisy, corrupted and foreign images.

robustness.json, format 1; accuracies, AUROC and the like in percent, null where not measured:

    study, output_dir, evaluated (when), data, device, threads, versions: as in evaluation.json
    images: of the test set that were asked about
    seed: of all draws; the same images for every row and study
    corrupted: the folder of published images, or null
    foreign: [{name, about, images}]
    notes: what a reader of the numbers needs to know
    rows: [{task, model, fusion, variant, control, seed, alpha, epoch, problem,
        contenders: [{key, label, clean, noise: [{sigma, top1}], made: SUITE, published: SUITE}],
        detection: [{set, contender, score, auroc, aupr_in, aupr_out, fpr_at_95_tpr}]}]
    SUITE: null, or {corruptions: [{name, top1: [of severity 1 to 5], mean}], mean, kept}

A suite's mean is over the fifteen corruptions at five severities, null where one is lacking; kept
is that mean as percent of the clean accuracy. A row with a problem has neither contenders nor
detection.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.distributed import LaunchError, RankInfo, choose_device, divide_threads
from fusionrun.common.exit_status import ExitStatus
from fusionrun.data.datasets import DataError
from fusionrun.data.datasets.subset import even_subset
from fusionrun.data.loader import Batch
from fusionrun.evaluation.evaluate import ROW_PROBLEMS, about, load_row, name_row, say
from fusionrun.evaluation.statistics.metrics import (
    check_scores,
    correct,
    mix_probabilities,
    percent,
)
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel
from fusionrun.logs.csv import write_csv
from fusionrun.robustness.cifar_c import corrupted_names, read_corrupted
from fusionrun.robustness.corruptions import (
    CORRUPTIONS,
    NOISE_SIGMAS,
    NOTES,
    SEVERITIES,
    add_noise,
    corrupt,
)
from fusionrun.robustness.ood_images import ForeignImages, built_in_sets, read_foreign
from fusionrun.robustness.ood_metrics import Detection, detect, max_probability, negative_energy
from fusionrun.robustness.tables import CSV_COLUMNS, long_rows, markdown, tables
from fusionrun.study.context import EVALUATION_BATCH, RunContext, open_context
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.trainer import forward_heads

FORMAT = 1
SEED = 2019  # of all draws
PUBLISHED_FOR = ("cifar10", "cifar100")
FUSED = "fused"
LABELS = {
    FUSED: "fused",
    "best_expert": "best expert",
    "mean_probabilities": "mean of probabilities",
    "mean_logits": "mean of logits",
}
# of (N, C) scores; energy means nothing of probabilities that were averaged: theirs sum to one
CONFIDENCES = {"max_probability": max_probability, "energy": negative_energy}

Scores = Mapping[str, Tensor]  # contender -> (N, C), the highest of a line being its answer


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    corrupted: Path | None = None  # the unpacked CIFAR-10-C or CIFAR-100-C
    foreign: Path | None = None  # a folder of images; None: the built-in sets
    images: int | None = None  # of the test set; None: all


class State(NamedTuple):
    """What was done to the test images."""

    kind: Literal["clean", "noise", "made", "published"]
    name: str = ""  # of a corruption
    level: float = 0.0  # sigma of noise, severity of a corruption

    def __str__(self) -> str:
        if self.kind == "noise":
            return f"noise, sigma {self.level:g}"
        prefix = "published " if self.kind == "published" else ""
        return f"{prefix}{self.name}, severity {self.level}" if self.name else self.kind


@dataclass
class Entrant:
    """A row that is asked, and how it did so far."""

    row: Row
    model: FusionModel | Expert
    epoch: int
    best: int  # expert on validation
    top1: dict[State, dict[str, float]] = field(default_factory=dict)  # by contender
    own: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # confidence in clean images
    detection: list[dict[str, Any]] = field(default_factory=list)


def robustness(study: Study, rank_info: RankInfo, console: Console, asked: Asked) -> int:
    """Measure every row that can be; returns 0 when that was all of them, else 3.

    Raises LaunchError when data, device or a folder isn't there, or results can't be written.
    """
    try:
        _check(study, asked)
        context = open_context(
            study,
            choose_device(rank_info, study.recipe.runtime.device),
            divide_threads(rank_info, study.recipe.runtime.threads),
            progress=say,
        )
        tree = _measure(context, asked)
        _write(study, tree)
    except (DataError, OSError) as error:
        raise LaunchError(str(error)) from None
    console.print(tables(tree))
    console.print(f"all of it: {study.layout.robustness('json')}", markup=False, soft_wrap=True)
    return ExitStatus.ROW_FAILED if any(row["problem"] for row in tree["rows"]) else ExitStatus.DONE


def _check(study: Study, asked: Asked) -> None:
    """Refuse a folder of published images where it says nothing. Raises DataError."""
    name, folder = study.recipe.data.name, asked.corrupted
    if folder is None:
        return
    if name not in PUBLISHED_FOR:
        raise DataError(
            f"--corrupted: this study's data set is {name}, the published corrupted images are "
            f"those of {' and '.join(PUBLISHED_FOR)}; go without it, the corruptions are made here"
        )
    if not corrupted_names(folder):
        raise DataError(
            f"--corrupted: {folder}: found no file named after a corruption (gaussian_noise.npy, "
            "...), expected the unpacked CIFAR-10-C or CIFAR-100-C"
        )


def _measure(context: RunContext, asked: Asked) -> dict[str, Any]:
    labels = context.data.test_labels.numpy()
    chosen = torch.from_numpy(even_subset(labels, asked.images, SEED, "--images"))
    some = _on_device(context, context.data.test_images[chosen], context.data.test_labels[chosen])
    foreign = _foreign(context, asked, len(chosen))
    entrants, problems = _load_rows(context)
    published = 0 if asked.corrupted is None else len(corrupted_names(asked.corrupted))
    steps = 1 + len(NOISE_SIGMAS) + (len(CORRUPTIONS) + published) * len(SEVERITIES) + len(foreign)
    progress = _Progress(steps)
    for state, batches in _states(some, asked, chosen):
        for entrant, scores in _ask(some, entrants, problems, batches):
            entrant.top1[state] = {
                key: percent(correct(each, some.data.test_labels.cpu()))
                for key, each in scores.items()
            }
            if state.kind == "clean":
                entrant.own = _confidences(scores)
        progress.say(str(state))
    for images in foreign:
        shown = _on_device(context, images.images, torch.zeros(len(images.images)).long())
        batches = shown.test_loader(EVALUATION_BATCH).evaluation_batches()
        for entrant, scores in _ask(shown, entrants, problems, batches):
            entrant.detection += _detection(images.name, entrant.own, _confidences(scores))
        progress.say(images.name)
    found = {entrant.row: entrant for entrant in entrants}
    return {
        **about(context),
        "format": FORMAT,
        "images": len(chosen),
        "seed": SEED,
        "corrupted": None if asked.corrupted is None else str(asked.corrupted),
        "foreign": [
            {"name": of.name, "about": of.about, "images": len(of.images)} for of in foreign
        ],
        "notes": _notes(len(chosen), len(labels)),
        "rows": [
            {**name_row(row), "epoch": None, "problem": problems[row]}
            if row in problems
            else _entry(found[row])
            for row in context.study.rows
        ],
    }


def _on_device(context: RunContext, images: Tensor, labels: Tensor) -> RunContext:
    """The same context with these as its test set, uint8 on the device."""
    images, labels = images.to(context.device), labels.to(context.device)
    return replace(context, data=replace(context.data, test_images=images, test_labels=labels))


def _foreign(context: RunContext, asked: Asked, count: int) -> list[ForeignImages]:
    size = context.data.test_images.shape[-1]
    if asked.foreign is not None:
        return [read_foreign(asked.foreign, count, size, SEED, say)]
    return built_in_sets(context.data.name, count, size, SEED)


def _load_rows(context: RunContext) -> tuple[list[Entrant], dict[Row, str]]:
    """(rows that can be asked, what is wrong with the others).

    All networks stay on the device, 4 bytes a parameter: each state is made once, for all of them.
    """
    entrants, problems = [], {}
    for row in context.study.rows:
        try:
            manifest, model = load_row(context, row)
            best = 0 if row.is_single else _best_expert(manifest["validation"])
            entrants.append(Entrant(row, model.eval(), manifest["epoch"], best))
        except ROW_PROBLEMS as error:
            problems[row] = _problem(row, error)
    return entrants, problems


def _problem(row: Row, error: Exception) -> str:
    say(f"fusionrun: {row.name}: {error}")
    return str(error)


def _best_expert(validation: Mapping[str, Any]) -> int:
    """Of equals the first. Raises CheckpointError."""
    accuracies = validation.get("experts")
    if not isinstance(accuracies, list) or not accuracies:
        found = repr(accuracies)
        raise CheckpointError(f"the manifest's validation.experts: found {found}, expected numbers")
    return accuracies.index(max(accuracies))


class _Progress:
    """A line for every step that is done."""

    def __init__(self, steps: int) -> None:
        self.started, self.done, self.steps = time.monotonic(), 0, steps

    def say(self, what: str) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.steps - self.done)
        say(f"[{self.done}/{self.steps}] {what}; about {timedelta(seconds=round(left))} left")


def _states(
    some: RunContext, asked: Asked, chosen: Tensor
) -> Iterator[tuple[State, Iterable[Batch]]]:
    """The test images in every state, one at a time. Raises DataError."""
    images, labels = some.data.test_images, some.data.test_labels

    def batches(of: Tensor) -> Iterator[Batch]:
        return _on_device(some, of, labels).test_loader(EVALUATION_BATCH).evaluation_batches()

    if asked.corrupted is not None:  # first, for here the user's files can be wrong
        for name, severity, published in _published(some, asked.corrupted, chosen):
            yield State("published", name, severity), batches(published)
    yield State("clean"), batches(images)
    for sigma in NOISE_SIGMAS:
        yield State("noise", level=sigma), _noisy(batches(images), sigma)
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            yield State("made", name, severity), batches(corrupt(images, name, severity, SEED))


def _noisy(batches: Iterable[Batch], sigma: float) -> Iterator[Batch]:
    first = 0
    for batch in batches:
        yield replace(batch, images=add_noise(batch.images, sigma, SEED, first_index=first))
        first += len(batch.labels)


def _published(some: RunContext, folder: Path, chosen: Tensor) -> Iterator[tuple[str, int, Tensor]]:
    """(corruption, severity, the images that the study's own became). Raises DataError.

    `chosen` (N,) are indices into the study's test set.
    """
    data = some.study.recipe.data
    for part in read_corrupted(folder, len(some.data.classes)):
        # the study's test set may be a subset already
        whole = even_subset(part.labels.numpy(), data.test_images, data.seed, "data.test_images")
        index = torch.from_numpy(whole)[chosen]
        if not torch.equal(part.labels[index], some.data.test_labels.cpu()):
            raise DataError(
                f"--corrupted: {folder}: labels.npy: found other labels than the test set of "
                f"{some.data.name} has, expected the same in the same order"
            )
        yield part.name, part.severity, part.images[index]


@torch.no_grad()
def _ask(
    context: RunContext, entrants: list[Entrant], problems: dict[Row, str], batches: Iterable[Batch]
) -> Iterator[tuple[Entrant, Scores]]:
    """What each row answers to all batches. One that fails is noted in `problems` and left out."""
    answers: dict[Row, list[Tensor]] = {entrant.row: [] for entrant in entrants}
    for batch in batches:
        for entrant in entrants:
            if entrant.row not in problems:
                try:
                    with torch.autocast(context.device.type, torch.bfloat16, enabled=context.bf16):
                        heads = forward_heads(entrant.model, batch.images)
                    answers[entrant.row].append(heads.float())
                except ROW_PROBLEMS as error:
                    problems[entrant.row] = _problem(entrant.row, error)
    for entrant in entrants:
        if entrant.row not in problems:
            try:
                scores = _scores(torch.cat(answers.pop(entrant.row)).cpu(), entrant.best)
            except ROW_PROBLEMS as error:
                problems[entrant.row] = _problem(entrant.row, error)
            else:
                yield entrant, scores


def _scores(logits: Tensor, best: int) -> Scores:
    """By contender, from logits (N, 1 + E, C), or (N, 1, C) of a single network.

    Raises ValueError when they aren't finite.
    """
    logits = check_scores("answers", logits, "NEC")
    fused, experts = logits[:, 0], logits[:, 1:]
    if not experts.shape[1]:
        return {FUSED: fused}
    return {
        FUSED: fused,
        "best_expert": experts[:, best],
        "mean_probabilities": mix_probabilities(experts),
        "mean_logits": experts.mean(dim=1),
        **{f"expert_{k}": each for k, each in enumerate(experts.unbind(dim=1))},
    }


def _confidences(scores: Scores) -> dict[tuple[str, str], Tensor]:
    """{(contender, score): (N,)}."""
    return {
        (key, name): confidence(each)
        for key, each in scores.items()
        for name, confidence in CONFIDENCES.items()
        if key in LABELS and (key, name) != ("mean_probabilities", "energy")
    }


def _detection(
    name: str,
    own: Mapping[tuple[str, str], Tensor],
    foreign: Mapping[tuple[str, str], Tensor],
) -> list[dict[str, Any]]:
    """An entry for each contender and score; null where a score means nothing."""
    contenders = dict.fromkeys(key for key, _ in own)
    nothing = dict.fromkeys(Detection.__dataclass_fields__)
    return [
        {"set": name, "contender": key, "score": score}
        | (asdict(detect(own[key, score], foreign[key, score])) if (key, score) in own else nothing)
        for key in contenders
        for score in CONFIDENCES
    ]


def _notes(images: int, available: int) -> list[str]:
    notes = [f"{name}: {note}" for name, note in NOTES.items()]
    if images < available:
        notes.insert(0, f"{images} of {available} test images, chosen evenly over the classes")
    return notes


def _entry(entrant: Entrant) -> dict[str, Any]:
    """A row's part of the tree."""
    keys = entrant.top1[State("clean")]
    return {
        **name_row(entrant.row),
        "epoch": entrant.epoch,
        "problem": "",
        "contenders": [_contender(entrant, key) for key in keys],
        "detection": entrant.detection,
    }


def _contender(entrant: Entrant, key: str) -> dict[str, Any]:
    top1 = {state: accuracies[key] for state, accuracies in entrant.top1.items()}
    clean = top1[State("clean")]
    single = entrant.row.is_single and key == FUSED
    return {
        "key": key,
        "label": "one network" if single else LABELS.get(key, key.replace("_", " ")),
        "clean": clean,
        "noise": [
            {"sigma": sigma, "top1": top1[State("noise", level=sigma)]} for sigma in NOISE_SIGMAS
        ],
        "made": _suite("made", top1, clean),
        "published": _suite("published", top1, clean),
    }


def _suite(
    kind: Literal["made", "published"], top1: Mapping[State, float], clean: float
) -> dict[str, Any] | None:
    """Corruption by corruption and all together; None: there were none of the kind."""
    names = dict.fromkeys(state.name for state in top1 if state.kind == kind)
    each = {name: [top1[State(kind, name, level)] for level in SEVERITIES] for name in names}
    if not each:
        return None
    mean = fmean(map(fmean, each.values())) if len(each) == len(CORRUPTIONS) else None
    return {
        "corruptions": [{"name": n, "top1": of, "mean": fmean(of)} for n, of in each.items()],
        "mean": mean,
        "kept": 100 * mean / clean if mean is not None and clean else None,
    }


def _write(study: Study, tree: dict[str, Any]) -> None:
    layout = study.layout
    write_json(layout.robustness("json"), tree)
    write_text(layout.robustness("md"), markdown(tree))
    write_csv(layout.robustness("csv"), CSV_COLUMNS, list(long_rows(tree)))
