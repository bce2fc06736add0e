"""Inside the fusion: what it answers without an expert, and what weight it gives to each."""

import torch
from torch import Tensor

from fusionrun.fusions import FusionModel, FusionModule
from fusionrun.fusions.multiplicative_addition import MultiplicativeAddition
from fusionrun.fusions.simple_addition import SimpleAddition
from fusionrun.fusions.transformer import TransformerBase


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
    of the product. None: the fusion has no weights.
    """
    if isinstance(fusion, TransformerBase):
        tokens = fusion.norms(features)
        _, attention = fusion.attention(tokens, tokens, tokens, need_weights=True)
        by_expert: Tensor = attention.mean(dim=1)  # (N, query, key) -> (N, key)
        return by_expert
    if isinstance(fusion, SimpleAddition | MultiplicativeAddition):
        return fusion.weights.softmax(dim=0).expand(len(features), -1)
    return None
