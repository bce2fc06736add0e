"""Fusions trained on the features that frozen experts make of a study's images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionrun.common.seeds import derive_seed
from fusionrun.components.starting_experts import load_experts
from fusionrun.data.loader import Batch
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel, FusionModule
from fusionrun.study.context import RunContext
from fusionrun.study.defaults import HEAD_CLIP
from fusionrun.study.rows import Member, Row
from fusionrun.training.fitting import Parts
from fusionrun.training.optim import (
    Group,
    adamw,
    clip_gradients,
    cosine_to_tenth,
    set_learning_rates,
)
from fusionrun.training.precision import keep_casts


class Seen(NamedTuple):
    """What a frozen expert makes of some images, on the device."""

    features: Tensor  # (N, D_k) float32
    logits: Tensor  # (N, C)


Known = dict[Member, list[Seen]]  # of the images that train fusions, and of validation's


@dataclass(frozen=True)
class Extracted:
    """What all of a row's experts make of them."""

    experts: Sequence[Seen]
    labels: Tensor  # (N,)

    def read_by(self, fusion: FusionModule) -> list[Tensor]:
        """Each expert's features (N, D_k), or its logits where those are what it fuses."""
        return [seen.logits if fusion.reads_logits else seen.features for seen in self.experts]


@dataclass(frozen=True)
class Given:
    """What the fusions of the same experts are trained with."""

    context: RunContext
    row: Row  # that has these experts
    train: Extracted
    validation: Extracted


class FrozenFusion(nn.Module):
    """What of a fusion model comes after its experts: what it reads of each -> logits."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.adapters, self.fusion, self.head = model.adapters, model.fusion, model.global_head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        adapted = [a(each) for a, each in zip(self.adapters, features, strict=True)]
        logits: Tensor = self.head(self.fusion(torch.stack(adapted, dim=1)))
        return logits


def see(context: RunContext, row: Row, known: Known) -> Given:
    """What the row's experts make of the images; each looks at them once. Raises ROW_PROBLEMS."""
    parts = context.splits.fusion_train, context.splits.fusion_val
    for member in row.experts:
        if member not in known:
            [expert], _ = load_experts(context, [member])
            known[member] = [look(context, expert, part) for part in parts]
    found = []
    for part, seen in zip(parts, zip(*(known[m] for m in row.experts), strict=True), strict=True):
        labels = context.labels[torch.from_numpy(part).to(context.device)]
        found.append(Extracted(seen, labels))
    return Given(context, row, *found)


@torch.no_grad()
def look(context: RunContext, expert: Expert, indices: npt.NDArray[np.int64]) -> Seen:
    """One pass of the expert over those training images, as they are."""
    context.settle(expert.eval())

    def ask(batch: Batch) -> list[Tensor]:
        with context.precision.autocast(context.device):
            return [each.float() for each in expert(batch.images)]

    batches = context.loader(indices, context.evaluation_batch).evaluation_batches()
    with keep_casts(context.device):
        asked = list(Parts().of(batches, ask))
    return Seen(*(torch.cat(each) for each in zip(*asked, strict=True)))


def train_fusion(given: Given, fusion: str, seed: int, epochs: int) -> tuple[float, int]:
    """(validation accuracy in percent of the best epoch, which one); of equals the first.

    A fusion without weights has nothing to learn: epoch 0.
    Rates, decay and smoothing are those of a row of the study. Raises ValueError for a fusion that
    doesn't take these features and for answers that aren't finite.
    """
    study, train, device = given.context.study, given.train, given.context.device
    who = given.row.members if given.row.is_mixed else given.row.model
    torch.manual_seed(derive_seed(seed, "preview", who, fusion))
    network, groups = build(given, fusion)
    read, judged = train.read_by(network.fusion), given.validation.read_by(network.fusion)
    if not groups:
        return accuracy(network.eval()(judged), given.validation.labels), 0
    draws = None  # torch's own, which weights came from
    if study.recipe.fusion.recipe == "shared":  # the same order for every type
        draws = torch.Generator().manual_seed(derive_seed(seed, "preview", who))
    defaults = study.fusion_defaults(fusion)
    optimizer = adamw(groups, defaults.weight_decay)
    batch = study.recipe.fusion.batch_size
    best, best_epoch = -1.0, 0
    for epoch in range(epochs):
        set_learning_rates(optimizer, groups, epoch, epochs)
        network.train()
        order = torch.randperm(len(train.labels), generator=draws).to(device)
        for start in range(0, len(order), batch):
            index = order[start : start + batch]
            loss = F.cross_entropy(
                network([each[index] for each in read]),
                train.labels[index],
                label_smoothing=defaults.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            clip_gradients(groups)
            optimizer.step()
        network.eval()
        with torch.no_grad():
            found = accuracy(network(judged), given.validation.labels)
        if found > best:
            best, best_epoch = found, epoch + 1
    return best, best_epoch


def build(given: Given, fusion: str) -> tuple[FrozenFusion, list[Group]]:
    """New adapters, fusion module and global head, and how they learn.

    Weights come from torch's generator as it stands. Raises ValueError.
    """
    context, study = given.context, given.context.study
    with torch.device("meta"):
        experts = [context.build_expert(member.model) for member in given.row.experts]
    model = FusionModel(experts, study.build_fusion(fusion, experts), len(context.data.classes))
    _, fusion_lr, head_lr = study.rates(fusion, model.fusion.feature_dim)
    network = FrozenFusion(model).to(given.context.device)
    groups = [
        Group.of("adapters", [network.adapters], fusion_lr, cosine_to_tenth, HEAD_CLIP),
        Group.of("fusion", [network.fusion], fusion_lr, cosine_to_tenth, HEAD_CLIP),
        Group.of("global_head", [network.head], head_lr, cosine_to_tenth, HEAD_CLIP),
    ]
    return network, [group for group in groups if group.parameters]
