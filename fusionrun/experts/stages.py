"""The stages of a trunk, from its images on: what can be frozen, the first so many of them."""

from torch import nn

# where networks keep their blocks that don't have them as their own children
INSIDE = ("features", "encoder.layers")


def stages_of(trunk: nn.Module) -> list[list[str]]:
    """The names of the trunk's parameters, by stage, in order.

    A stage begins with each child that has children of its own (a group of blocks, or a block); a
    flat network's with each layer. What comes before the first is the stem, a stage itself; what
    follows one, such as a norm, belongs to it.
    """
    root = next((f"{each}." for each in INSIDE if _has(trunk, each)), "")
    container = trunk.get_submodule(root.rstrip("."))
    children = dict(container.named_children())
    blocks = {f"{root}{n}." for n, child in children.items() if any(child.children())}
    starts = blocks or {f"{root}{n}." for n, c in children.items() if _is_layer(c)}
    stages: list[list[str]] = []
    current = ""
    for name, _ in trunk.named_parameters():
        start = next((each for each in starts if name.startswith(each)), "")
        if not stages or (start and start != current):
            stages.append([])
            current = start
        stages[-1].append(name)
    return stages


def frozen_parts(network: nn.Module) -> list[nn.Module]:
    """The modules, each as whole as can be, of whose weights none learns."""
    weights = list(network.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        return [network]
    return [part for child in network.children() for part in frozen_parts(child)]


def _has(trunk: nn.Module, path: str) -> bool:
    try:
        return any(trunk.get_submodule(path).children())
    except AttributeError:
        return False


def _is_layer(child: nn.Module) -> bool:
    return any(weight.dim() > 1 for weight in child.parameters(recurse=False))
