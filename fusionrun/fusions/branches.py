"""How a row's experts are computed: one after another, or side by side where that is faster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

Outputs = tuple[Tensor, Tensor]  # of an expert: features (N, D_k), logits (N, C)
Compute = Callable[[Tensor], Outputs]  # an expert: images (N, 3, H, W) -> outputs
Branches = Callable[[Sequence[Compute], Tensor], list[Outputs]]


def in_turn(experts: Sequence[Compute], images: Tensor) -> list[Outputs]:
    """What each of `experts` makes of `images`, computed one after another."""
    return [expert(images) for expert in experts]


@contextmanager
def in_streams(model: nn.Module) -> Iterator[None]:
    """In here `model`'s experts share a GPU: each is computed on a stream of its own.

    Its backward pass, too, as autograd derives an operation where it was computed. That is for
    work recorded as a graph, whose kernels otherwise wait for each other although none fills the
    GPU; eager work waits for the host that launches it. A model that has no experts, or whose
    experts share a part, is computed as ever; so is one on a CPU.
    """
    streams: list[torch.cuda.Stream] = []

    def branches(experts: Sequence[Compute], images: Tensor) -> list[Outputs]:
        if not images.is_cuda:
            return in_turn(experts, images)
        begun = torch.cuda.current_stream(images.device)
        while len(streams) < len(experts):
            streams.append(torch.cuda.Stream(images.device))  # type: ignore[no-untyped-call]
        outputs = []
        try:
            for stream, expert in zip(streams, experts, strict=True):
                stream.wait_stream(begun)
                with torch.cuda.stream(stream):
                    outputs.append(expert(images))
        finally:  # whoever undoes what a failed attempt has moved mustn't be overtaken by it
            for stream in streams:
                begun.wait_stream(stream)
        return outputs

    with _computing(model, branches):
        yield


@contextmanager
def _computing(model: nn.Module, branches: Branches) -> Iterator[None]:
    """In here the experts of `model` are computed by `branches`, if they have nothing in common."""
    experts = getattr(model, "experts", None)
    if not isinstance(experts, nn.ModuleList) or not _are_apart(experts):
        yield
        return
    before = model.branches
    model.branches = branches  # type: ignore[assignment]
    try:
        yield
    finally:
        model.branches = before


def _are_apart(experts: nn.ModuleList) -> bool:
    """Whether no part of one is another's, too."""
    parts = [
        {id(part) for part in chain(expert.modules(), expert.parameters(), expert.buffers())}
        for expert in experts
    ]
    return len(set[int]().union(*parts)) == sum(map(len, parts))
