"""Fusions trained on the features that frozen experts make of a study's images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionrun.common.seeds import derive_seed
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel
from fusionrun.study.context import EVALUATION_BATCH, RunContext
from fusionrun.study.defaults import HEAD_CLIP
from fusionrun.training.optim import (
    Group,
    adamw,
    clip_gradients,
    cosine_to_tenth,
    set_learning_rates,
)


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
        network.eval()
        with torch.no_grad():
            found = accuracy(network(given.validation.features), given.validation.labels)
        if found > best:
            best, best_epoch = found, epoch + 1
    return best, best_epoch


def build(given: Given, fusion: str) -> tuple[nn.Module, list[Group]]:
    """A new fusion module and global head, features (N, E, D) -> logits, and how they learn.

    Weights come from torch's generator as it stands. Raises ValueError.
    """
    study, experts = given.context.study, given.experts
    module = study.build_fusion(fusion, experts)
    model = FusionModel(experts, module, experts[0].num_classes)
    head = model.global_head
    _, fusion_lr, head_lr = study.rates(fusion, head.in_features)
    network = nn.Sequential(module, head).to(given.context.device)
    groups = [
        Group.of("fusion", [module], fusion_lr, cosine_to_tenth, HEAD_CLIP),
        Group.of("global_head", [head], head_lr, cosine_to_tenth, HEAD_CLIP),
    ]
    return network, [group for group in groups if group.parameters]
