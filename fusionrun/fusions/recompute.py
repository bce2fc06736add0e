"""Experts computed twice: time for memory, where a row doesn't fit."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(expert: nn.Module, images: Tensor) -> Any:
    """What `expert(images)` gives, of which nothing is kept for the backward pass but the images.

    That computes the expert again (Chen et al. 2016, "Training deep nets with sublinear memory
    cost"), with the same random numbers. So only one of a row's experts has its activations in
    memory at a time. Outputs, gradients and running statistics are those of `expert(images)`.
    """
    return checkpoint(
        expert,
        images,
        use_reentrant=False,
        preserve_rng_state=may_draw(expert),  # which asks a generator, and no graph may
        context_fn=lambda: (contextlib.nullcontext(), _unmoved(expert)),
    )


def may_draw(expert: nn.Module) -> bool:
    """Whether it may draw random numbers: layers of others than torch or this package might."""
    for module in expert.modules():
        if not type(module).__module__.startswith(("torch.nn.", "fusionrun.")):
            return True
        rates = (getattr(module, name, 0) for name in ("p", "dropout"))
        drops = any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)
        if drops or isinstance(module, (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)):
            return True
    return False


def can_be_recomputed(expert: nn.Module) -> bool:
    """Whether it learns, and a second pass leaves it as it was: only norms keep what they saw."""
    if not any(weight.requires_grad for weight in expert.parameters()):
        return False  # it keeps no activations
    lasting = expert.state_dict().keys()
    owners = (
        expert.get_submodule(name.rpartition(".")[0])
        for name, buffer in expert.named_buffers()
        if name in lasting and buffer.is_floating_point()
    )
    return all(hasattr(owner, "track_running_stats") for owner in owners)


@contextlib.contextmanager
def _unmoved(expert: nn.Module) -> Iterator[None]:
    """In here norms give a batch's statistics no weight in the running ones, nor count it."""
    norms: list[Any] = [
        module
        for module in expert.modules()
        if module.training and getattr(module, "track_running_stats", False)
    ]
    found = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in found:
            norm.momentum, norm.num_batches_tracked = momentum, count
