"""Inside the fusion: what it answers without an expert, what weight each has, what moves each."""

import math
from collections.abc import Sequence
from itertools import chain, compress, islice

import torch
from torch import Tensor

from fusionrun.data.loader import Batch, ResidentLoader
from fusionrun.fusions import FusionModel, FusionModule
from fusionrun.fusions.gated import Gated
from fusionrun.fusions.multiplicative_addition import MultiplicativeAddition
from fusionrun.fusions.simple_addition import SimpleAddition
from fusionrun.fusions.transformer import TransformerBase
from fusionrun.training.fitting import Parts
from fusionrun.training.losses import head_losses


def answers_without_each(model: FusionModel, features: Tensor, means: Tensor) -> Tensor:
    """The fused model's classes (N, E) with expert k's features replaced by their mean.

    `features` (N, E, D), `means` (E, D): the expert then says the same of every image, so what
    the model still gets right it gets right by the others.
    """
    answers = []
    for k, mean in enumerate(means):
        ablated = features.clone()
        ablated[:, k] = mean
        answers.append(model.global_head(model.fusion(ablated)).argmax(dim=-1))
    return torch.stack(answers, dim=1)


def expert_weights(fusion: FusionModule, features: Tensor) -> Tensor | None:
    """The weight that each expert has in features (N, E, D): (N, E), rows that sum to one.

    Of attention: what all experts' queries give to expert k, mean over heads and queries. Of
    weighted sums: the learned weights, the same for all images; beside a product they say nothing
    of the product. Of a gate: each image's own. None: the fusion has no weights.
    """
    if isinstance(fusion, TransformerBase):
        tokens = fusion.norms(features)
        _, attention = fusion.attention(tokens, tokens, tokens, need_weights=True)
        by_expert: Tensor = attention.mean(dim=1)  # (N, query, key) -> (N, key)
        return by_expert
    if isinstance(fusion, Gated):
        return fusion.shares(fusion.norms(features))
    if isinstance(fusion, SimpleAddition | MultiplicativeAddition):
        return fusion.weights.softmax(dim=0).expand(len(features), -1)
    return None


def path_gradients(
    model: FusionModel, loader: ResidentLoader, *, alpha: float, smoothing: float
) -> Tensor:
    """What moves each expert: (E, 2) float64, the fused path's share and how far both agree.

    The training loss is CE(fused) + alpha x sum of CE(expert k). Each path
    has a gradient in the parameters of expert k that both reach, here of the mean over the loader's
    images and in evaluation mode. The share, 0 to 1, is |fused| / (|fused| + |own|); the cosine
    between the two is negative where they pull apart. NaN where one path reaches nothing.
    """
    model.eval()
    experts = [[p for p in e.parameters() if p.requires_grad] for e in model.experts]
    parameters = list(chain(*experts))
    sums = [[torch.zeros_like(parameter) for parameter in parameters] for _ in ("fused", "own")]

    def gradients(batch: Batch) -> list[Sequence[Tensor]]:
        output = model(batch.images)
        logits = torch.cat([output.logits.unsqueeze(1), output.expert_logits], dim=1)
        losses = head_losses(logits, batch.targets, smoothing) * len(batch.labels)
        return [
            torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            for loss in (losses[0], alpha * losses[1:].sum())
        ]

    for found in Parts().of(loader.evaluation_batches(), gradients):
        for total, gradient in zip(chain(*sums), chain(*found), strict=True):
            total += gradient
    pairs = iter(zip(*sums, strict=True))
    rows = [_share_and_cosine(list(islice(pairs, len(expert)))) for expert in experts]
    return torch.tensor(rows, dtype=torch.float64)


def _share_and_cosine(gradients: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Of one expert's (fused, own) gradients by parameter."""
    # a GPU is waited for once, not twice a parameter
    reached = [fused.any() & own.any() for fused, own in gradients]
    is_reached = torch.stack(reached).tolist() if reached else []
    both = list(compress(gradients, is_reached))
    if not both:
        return math.nan, math.nan
    fused, own = (
        torch.cat([gradient.flatten().double() for gradient in path])
        for path in zip(*both, strict=True)
    )
    sizes = float(fused.norm()), float(own.norm())
    return sizes[0] / sum(sizes), float(fused @ own) / math.prod(sizes)
