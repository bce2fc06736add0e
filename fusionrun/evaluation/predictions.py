"""What the networks of a row answer, image by image: computed once, kept beside its manifest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fusionrun.common.atomic_files import write_atomically
from fusionrun.components.manifest import file_hash
from fusionrun.components.starting_experts import load_experts
from fusionrun.components.store import state_hash
from fusionrun.data.loader import Batch, ResidentLoader
from fusionrun.evaluation.alternatives import Stage
from fusionrun.evaluation.problems import say
from fusionrun.evaluation.statistics.expert_contributions import (
    answers_without_each,
    expert_weights,
    path_gradients,
)
from fusionrun.experts import Expert
from fusionrun.experts.ensemble import Ensemble
from fusionrun.fusions import FusionModel, FusionOutput
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Row
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.fitting import Parts
from fusionrun.training.inference import collect_logits, forward_heads, heads_of
from fusionrun.training.precision import keep_casts

GRADIENT_IMAGES = 128  # whose gradients are compared
GRADIENT_BATCH = 32  # of them at a time: with gradients each takes a lot of memory

INSIDE = ("without", "attention", "gradients")  # what Predictions has beside answers

Array = npt.NDArray[Any]
Seen = TypeVar("Seen")


class Origin(NamedTuple):
    """Whose answers they are: of the same networks on the same data they would be the same."""

    weights: str  # hash of the row's weights
    experts: tuple[str, ...]  # sha256 of the files of the experts before fusion training
    data: str  # the data set's fingerprint
    split: str  # its hash: which training images are validation's


class HeadLogits(NamedTuple):
    """Of N images, on the CPU."""

    labels: Tensor  # (N,) int64
    logits: Tensor  # (N, 1 + E, C) float32: fused, then the tuned experts
    before: Tensor  # (N, E, C) float32: the experts before fusion training

    def of(self, stage: Stage) -> Tensor:
        """(N, H, C) of the heads that methods of this stage read."""
        if stage == "before":
            return self.before
        return self.logits[:, 1:] if stage == "after" else self.logits


@dataclass(frozen=True)
class Predictions:
    """All that is measured of a row, but for its costs, follows from these."""

    origin: Origin
    test: HeadLogits
    validation: HeadLogits
    without: Tensor  # (N, E) int64: fused classes on the test set without expert k's features
    attention: Tensor  # (E,) mean weight of each expert in the fusion, or (0,): it has none
    gradients: Tensor  # (E, 2) share of the fused path and cosine, or (0, 2): not two paths


def find_origin(context: RunContext, row: Row, network: nn.Module) -> Origin:
    """Where answers of this row, as its files are now, come from. Raises CheckpointError."""
    paths = [context.study.expert_file(*member) for member in row.experts]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such checkpoint, nor another that experts.checkpoint_dir and "
                f"experts.pattern would find; the row began with this expert"
            )
    hashes = tuple(file_hash(path) for path in paths)
    return Origin(
        state_hash(network.state_dict()), hashes, context.data.fingerprint, context.split_hash
    )


def current_predictions(
    context: RunContext,
    row: Row,
    model: FusionModel | Expert | Ensemble,
    latest: Predictions | None,
) -> Predictions:
    """The saved ones where they are still what the row's networks would answer.

    `latest` may know the experts before fusion training. Raises ROW_PROBLEMS.
    """
    layout = context.study.layout
    places = [
        each.predictions(row.model, row.variant)
        for each in (layout, replace(layout, elsewhere=None))
    ]
    origin = find_origin(context, row, model)
    validation = torch.from_numpy(context.splits.fusion_val)
    labels, val_labels = context.data.test_labels, context.data.train_labels[validation]
    for path in dict.fromkeys(places):
        predictions, problem = load_predictions(path, origin, labels, val_labels)
        if predictions is not None:
            say(f"[{row.name}] {path} is up to date")
            return predictions
        if problem:
            say(f"[{row.name}] {problem}; computed again")
    say(f"[{row.name}] {len(labels)} test and {len(val_labels)} validation images ...")
    predictions = predict(context, row, model, origin, latest)
    save_predictions(places[0], predictions)
    return predictions


@torch.no_grad()
def predict(
    context: RunContext,
    row: Row,
    model: FusionModel | Expert | Ensemble,
    origin: Origin,
    known: Predictions | None,
) -> Predictions:
    """One pass of all networks over validation and test set; a single network has no experts.

    Experts before fusion training that answered in `known` already don't do it again. Raises
    CheckpointError and TaskError when those experts aren't what the study would have trained.
    """
    model.eval()
    validation = context.loader(context.splits.fusion_val, context.evaluation_batch)
    test = context.test_loader()
    if not isinstance(model, FusionModel):
        return Predictions(
            origin,
            test=head_logits(context, model, test),
            validation=head_logits(context, model, validation),
            without=torch.empty(0, 0, dtype=torch.int64),
            attention=torch.empty(0),
            gradients=torch.empty(0, 2),
        )
    is_known = known is not None and known.origin[1:] == origin[1:]
    experts = [] if is_known else load_experts(context, row.experts)[0]
    for expert in experts:
        context.settle(expert.eval())
    on_validation, sums = _pass(
        context, model, experts, validation, lambda features: features.double().sum(dim=0)
    )
    means = torch.stack(sums).sum(dim=0) / len(on_validation.labels)
    on_test, seen = _pass(
        context,
        model,
        experts,
        test,
        lambda features: (
            answers_without_each(model, features, means).cpu(),
            expert_weights(model.fusion, features),
        ),
    )
    if known is not None and is_known:
        on_validation = on_validation._replace(before=known.validation.before)
        on_test = on_test._replace(before=known.test.before)
    weights = [weight.double().sum(dim=0).cpu() for _, weight in seen if weight is not None]
    images = len(on_test.labels)
    return Predictions(
        origin=origin,
        test=on_test,
        validation=on_validation,
        without=torch.cat([classes for classes, _ in seen]),
        attention=torch.stack(weights).sum(dim=0) / images if weights else torch.empty(0),
        gradients=torch.empty(0, 2) if row.control else _path_gradients(context, row, model),
    )


@torch.enable_grad()
def _path_gradients(context: RunContext, row: Row, model: FusionModel) -> Tensor:
    """On the first validation images: they're the same for all rows, and not learned by heart."""
    loader = context.loader(context.splits.fusion_val[:GRADIENT_IMAGES], GRADIENT_BATCH)
    smoothing = context.study.fusion_defaults(row.fusion).label_smoothing
    return path_gradients(model, loader, alpha=row.alpha, smoothing=smoothing)


def head_logits(
    context: RunContext,
    network: nn.Module,
    loader: ResidentLoader,
    before: Sequence[Expert] = (),
) -> HeadLogits:
    """What its heads answer, and the experts `before` fusion training, in one pass; on the CPU."""
    logits, labels = collect_logits([network, *before], loader, context.precision)
    return _of_heads(logits.cpu(), labels.cpu(), len(before))


def _of_heads(logits: Tensor, labels: Tensor, before: int) -> HeadLogits:
    """Of logits (N, H, C) the last heads are those of so many experts before fusion training."""
    own = logits.shape[1] - before
    return HeadLogits(labels, logits[:, :own].contiguous(), logits[:, own:].contiguous())


def _pass(
    context: RunContext,
    model: FusionModel,
    before: Sequence[Expert],
    loader: ResidentLoader,
    look: Callable[[Tensor], Seen],
) -> tuple[HeadLogits, list[Seen]]:
    """What all of them answer, and what `look` makes of each batch's features (n, E, D).

    Features are gone with their batch: of all images they would be larger than the images.
    """

    def ask(batch: Batch) -> tuple[Tensor, Tensor, Seen]:
        with context.precision.autocast(context.device):
            output: FusionOutput = model(batch.images)
            found = look(output.features)
            others = [forward_heads(expert, batch.images) for expert in before]
        heads = torch.cat([heads_of(output), *others], dim=1)
        return heads.float().cpu(), batch.labels.cpu(), found

    with keep_casts(context.device):
        asked = Parts().of(loader.evaluation_batches(), ask, in_caches=True)
        logits, labels, seen = zip(*asked, strict=True)
    return _of_heads(torch.cat(logits), torch.cat(labels), len(before)), list(seen)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """As arrays by name (the README lists them), atomically. Raises OSError."""
    arrays = _arrays(predictions)
    write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def load_predictions(
    path: Path, origin: Origin, labels: Tensor, val_labels: Tensor
) -> tuple[Predictions | None, str]:
    """(the saved predictions or None, "" or why a file that is there is of no use).

    `origin`, `labels` (N,) and `val_labels` (V,) are what they should belong to.
    """
    if not path.exists():
        return None, ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        found = _from_arrays(arrays)
    except Exception as error:  # a damaged file makes its readers fail in every way there is
        return None, f"{path}: is damaged or holds something else ({error})"
    for name, there, here in zip(Origin._fields, found.origin, origin, strict=True):
        if there != here:
            return None, f"{path}: belongs to other {name}"
    for answers, expected in ((found.test, labels), (found.validation, val_labels)):
        if not torch.equal(answers.labels, expected):
            return None, f"{path}: has {len(answers.labels)} labels that aren't this study's"
    return found, ""


def _arrays(predictions: Predictions) -> dict[str, Array]:
    """Names as in the file."""
    origin = {name: np.array(value) for name, value in predictions.origin._asdict().items()}
    test = predictions.test._asdict()
    validation = {f"val_{name}": value for name, value in predictions.validation._asdict().items()}
    inside = {name: getattr(predictions, name) for name in INSIDE}
    tensors = {**test, **validation, **inside}
    return {**origin, **{name: value.numpy() for name, value in tensors.items()}}


def _from_arrays(arrays: dict[str, Array]) -> Predictions:
    """The inverse. Raises KeyError where one is lacking, TypeError where one isn't of numbers."""
    tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.keys() - {*Origin._fields}}
    test, validation = (
        HeadLogits(*(tensors[f"{split}{name}"] for name in HeadLogits._fields))
        for split in ("", "val_")
    )
    experts = tuple(str(expert) for expert in arrays["experts"])
    split = str(arrays["split"]) if "split" in arrays else ""  # "": of an older version
    origin = Origin(str(arrays["weights"]), experts, str(arrays["data"]), split)
    return Predictions(origin, test, validation, *(tensors[name] for name in INSIDE))
