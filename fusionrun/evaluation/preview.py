"""`preview`: every fusion type on the frozen experts' features, in seconds instead of hours.

A ranking to choose rows by, not a result: the experts stay as their own training left them, images
aren't augmented, and the validation accuracies that rank the fusions also chose their epochs. The
test set is not touched.

preview.json, format 1; accuracies in percent, null where not measured:

    study, output_dir, evaluated (when), data, device, threads, versions: as in evaluation.json
    epochs: of each training
    seeds: [number]
    models: [{model, problem, images, mean_probabilities, best_expert,
        fusions: [{fusion, problem, accuracies: [of each seed], mean, deviation, epochs: [the best
        one of each seed], seconds}]}], the best fusion first

A model with a problem has nothing but its name, one of a fusion leaves its numbers null.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.console import Group as Lines
from rich.text import Text
from torch import Tensor, nn
from torch.nn import functional as F

from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.distributed import LaunchError, RankInfo, choose_device, divide_threads
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.seeds import derive_seed
from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.components.starting_experts import load_experts
from fusionrun.data.datasets import DataError
from fusionrun.evaluation.alternatives import accuracy
from fusionrun.evaluation.evaluate import ROW_PROBLEMS, about, say
from fusionrun.evaluation.statistics.metrics import check_scores, mix_probabilities
from fusionrun.evaluation.statistics.significance import spread
from fusionrun.evaluation.tables import markdown_table, rich_table
from fusionrun.experts import Expert
from fusionrun.fusions import FUSIONS, FusionModel
from fusionrun.study.context import EVALUATION_BATCH, RunContext, open_context
from fusionrun.study.defaults import HEAD_CLIP
from fusionrun.study.study import Study
from fusionrun.training.optim import (
    Group,
    adamw,
    clip_gradients,
    cosine_to_tenth,
    set_learning_rates,
)

FORMAT = 1
HEADINGS = ("model", "fusion", "validation", "over mean prob.", "seeds", "seconds")
TITLE = "Fusions on the features of frozen experts"
LEGEND = (
    "Validation accuracy in percent, mean ± sample standard deviation over seeds, and points over "
    "the mean of the frozen experts' probabilities. Epochs were chosen on the same images, which "
    "flatters the fusions a little. Experts that train with their fusion can change the order."
)


Entry = dict[str, Any]


@dataclass(frozen=True)
class Extracted:
    """What the frozen experts make of some images, on the device."""

    features: Tensor  # (N, E, D) float32
    logits: Tensor  # (N, E, C)
    labels: Tensor  # (N,)


@dataclass(frozen=True)
class Given:
    """What an architecture's fusions are trained with."""

    context: RunContext
    model: str
    experts: Sequence[Expert]
    train: Extracted
    validation: Extracted


def preview(study: Study, rank_info: RankInfo, console: Console, *, seeds: int, epochs: int) -> int:
    """Rank the fusions for each of the study's architectures; returns 0, or 3 where one has none.

    Raises LaunchError when the data or the device isn't there, or results can't be written.
    """
    try:
        context = open_context(
            study,
            choose_device(rank_info, study.recipe.runtime.device),
            divide_threads(rank_info, study.recipe.runtime.threads),
            progress=say,
        )
        numbers = [study.recipe.seed + i for i in range(seeds)]
        architectures = dict.fromkeys(row.model for row in study.rows if not row.is_single)
        models = [_preview_model(context, model, numbers, epochs) for model in architectures]
        tree = {**about(context), "format": FORMAT, "epochs": epochs, "seeds": numbers}
        tree["models"] = models
        write_json(study.layout.preview("json"), tree)
        write_text(study.layout.preview("md"), markdown(tree))
    except (DataError, OSError) as error:
        raise LaunchError(str(error)) from None
    table = rich_table(TITLE, HEADINGS, _lines(tree), caption=LEGEND)
    console.print(Lines(table, *(Text(line) for line in _problems(tree))))
    console.print(f"all of it: {study.layout.preview('json')}", markup=False, soft_wrap=True)
    return ExitStatus.ROW_FAILED if any(model["problem"] for model in models) else ExitStatus.DONE


def _preview_model(context: RunContext, model: str, seeds: Sequence[int], epochs: int) -> Entry:
    """An architecture's entry; a problem is said at once and the others go on."""
    started = time.monotonic()
    try:
        experts, _ = load_experts(context, model)
        train = extract(context, experts, context.splits.fusion_train)
        validation = extract(context, experts, context.splits.fusion_val)
    except ROW_PROBLEMS as error:
        say(f"fusionrun: {model}: {error}")
        return {"model": model, "problem": str(error)}
    images = len(train.labels) + len(validation.labels)
    say(f"[{model}] features of {images} images, took {time.monotonic() - started:.0f} s")
    given = Given(context, model, experts, train, validation)
    names = dict.fromkeys([*FUSIONS, *(r.fusion for r in context.study.rows if not r.is_single)])
    fusions = [_preview_fusion(given, name, seeds, epochs) for name in names]
    fusions.sort(key=lambda entry: entry["mean"] or 0.0, reverse=True)
    alone = [accuracy(logits, validation.labels) for logits in validation.logits.unbind(dim=1)]
    return {
        "model": model,
        "problem": "",
        "images": len(train.labels),
        "mean_probabilities": accuracy(mix_probabilities(validation.logits), validation.labels),
        "best_expert": max(alone),
        "fusions": fusions,
    }


@torch.no_grad()
def extract(
    context: RunContext, experts: Sequence[Expert], indices: npt.NDArray[np.int64]
) -> Extracted:
    """One pass of every expert over those training images, as they are."""
    loader = context.loader(indices, EVALUATION_BATCH)
    features, logits = [], []
    for expert in experts:
        context.settle(expert.eval())
        outputs = []
        for batch in loader.evaluation_batches():
            with torch.autocast(context.device.type, torch.bfloat16, enabled=context.bf16):
                outputs.append(expert(batch.images))
        features.append(torch.cat([of.float() for of, _ in outputs]))
        logits.append(torch.cat([of.float() for _, of in outputs]))
        expert.cpu()  # one at a time is enough on the device
    labels = context.labels[torch.from_numpy(indices).to(context.device)]
    return Extracted(torch.stack(features, dim=1), torch.stack(logits, dim=1), labels)


def _preview_fusion(given: Given, fusion: str, seeds: Sequence[int], epochs: int) -> Entry:
    """A fusion's entry, over the seeds."""
    started = time.monotonic()
    entry: Entry = {"fusion": fusion, "problem": "", "accuracies": [], "epochs": []}
    try:
        for seed in seeds:
            found, epoch = train_fusion(given, fusion, seed, epochs)
            entry["accuracies"].append(found)
            entry["epochs"].append(epoch)
    except ROW_PROBLEMS as error:  # a fusion may not take this feature size
        say(f"fusionrun: {given.model}, {fusion}: {error}")
        nothing = dict.fromkeys(("mean", "deviation", "seconds"))
        return {**entry, "problem": str(error), "accuracies": [], "epochs": [], **nothing}
    over, seconds = spread(entry["accuracies"]), time.monotonic() - started
    say(f"[{given.model}] {fusion}: {over.mean:.2f} %, took {seconds:.0f} s")
    return {**entry, "mean": over.mean, "deviation": over.deviation, "seconds": seconds}


def train_fusion(given: Given, fusion: str, seed: int, epochs: int) -> tuple[float, int]:
    """(validation accuracy in percent of the best epoch, which one); of equals the first.

    Rates, decay and smoothing are those of a row of the study. Raises ValueError for a fusion that
    doesn't take these features and for answers that aren't finite.
    """
    study, train, device = given.context.study, given.train, given.context.device
    torch.manual_seed(derive_seed(seed, "preview", given.model, fusion))
    network, groups = build(given, fusion)
    defaults = study.fusion_defaults(fusion)
    optimizer = adamw(groups, defaults.weight_decay)
    batch = study.recipe.fusion.batch_size
    best, best_epoch = -1.0, 0
    for epoch in range(epochs):
        set_learning_rates(optimizer, groups, epoch, epochs)
        network.train()
        order = torch.randperm(len(train.labels)).to(device)
        for start in range(0, len(order), batch):
            index = order[start : start + batch]
            loss = F.cross_entropy(
                network(train.features[index]),
                train.labels[index],
                label_smoothing=defaults.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            clip_gradients(groups)
            optimizer.step()
        found = _validate(network, given.validation)
        if found > best:
            best, best_epoch = found, epoch + 1
    return best, best_epoch


def build(given: Given, fusion: str) -> tuple[nn.Module, list[Group]]:
    """A new fusion module and global head, features (N, E, D) -> logits, and how they learn.

    Weights come from torch's generator as it stands. Raises ValueError.
    """
    study, experts = given.context.study, given.experts
    module = study.build_fusion(fusion, experts[0].feature_dim)
    model = FusionModel(experts, module, experts[0].num_classes)
    head = model.global_head
    _, fusion_lr, head_lr = study.rates(fusion, head.in_features)
    network = nn.Sequential(module, head).to(given.context.device)
    groups = [
        Group.of("fusion", [module], fusion_lr, cosine_to_tenth, HEAD_CLIP),
        Group.of("global_head", [head], head_lr, cosine_to_tenth, HEAD_CLIP),
    ]
    return network, [group for group in groups if group.parameters]


@torch.no_grad()
def _validate(network: nn.Module, images: Extracted) -> float:
    network.eval()
    logits: Tensor = network(images.features)
    return accuracy(check_scores("answers", logits, "NC"), images.labels)


def markdown(tree: Entry) -> str:
    """preview.md."""
    data = tree["data"]
    parts = [
        f"# {TITLE}\n\n{tree['study']}, {tree['evaluated']}: {data['name']}, {data['val_images']} "
        f"validation images, {tree['epochs']} epochs, seeds "
        f"{', '.join(map(str, tree['seeds']))}.\n",
        markdown_table(HEADINGS, _lines(tree)),
        f"{LEGEND}\n",
        "".join(f"- {line}\n" for line in _problems(tree)),
    ]
    return "\n".join(part for part in parts if part)


def _lines(tree: Entry) -> list[list[str]]:
    """By HEADINGS; among the fusions what they have to beat."""
    lines = []
    for model in tree["models"]:
        if model["problem"]:
            lines.append([model["model"], *[NOT_AVAILABLE] * (len(HEADINGS) - 1)])
            continue
        bar = model["mean_probabilities"]
        ranked = [(of["mean"], _fusion_cells(of, bar)) for of in model["fusions"]]
        ranked.append((bar, ["mean of probabilities", f"{bar:.2f}", *[""] * 3]))
        best = model["best_expert"]
        ranked.append((best, ["best expert", f"{best:.2f}", f"{best - bar:+.2f}", "", ""]))
        ranked.sort(key=lambda pair: pair[0] or 0.0, reverse=True)
        lines += [[model["model"], *cells] for _, cells in ranked]
    return lines


def _fusion_cells(of: Entry, bar: float) -> list[str]:
    if of["problem"]:
        return [of["fusion"], *[NOT_AVAILABLE] * (len(HEADINGS) - 2)]
    spread_text = "" if of["deviation"] is None else f" ± {of['deviation']:.2f}"
    return [
        of["fusion"],
        f"{of['mean']:.2f}{spread_text}",
        f"{of['mean'] - bar:+.2f}",
        str(len(of["accuracies"])),
        f"{of['seconds']:.0f}",
    ]


def _problems(tree: Entry) -> list[str]:
    lines = []
    for model in tree["models"]:
        if model["problem"]:
            lines.append(f"{model['model']}: not measured: {model['problem']}")
        for of in model.get("fusions", ()):
            if of["problem"]:
                lines.append(f"{model['model']}, {of['fusion']}: not measured: {of['problem']}")
    return lines
