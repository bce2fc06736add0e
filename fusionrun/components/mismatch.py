"""Why weights don't fit a network, from what is there: the likely cause first."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionrun.common.text import plural
from fusionrun.components.namings import NAMINGS, OURS
from fusionrun.experts import BUILDERS, Expert, argument_names, build_expert

# what torch's tools leave in names, and what their owner calls before saving
UNFINISHED: tuple[tuple[str, str], ...] = (
    ("weight_orig", "it is pruned: call torch.nn.utils.prune.remove on its modules before saving"),
    ("weight_g", "it has weight norm: call torch.nn.utils.remove_weight_norm before saving"),
    (
        "parametrizations.",
        "it is parametrised: call torch.nn.utils.parametrize.remove_parametrizations before saving",
    ),
    ("lora_", "it has LoRA adapters: merge them into the weights before saving"),
    ("zero_point", "it is quantised: save the weights of the float model"),
    ("fake_quant", "it is prepared for quantisation: save the weights of the float model"),
)
ALIKE = 0.7  # share of names that makes two networks the same architecture


def architecture(network: nn.Module) -> str | None:
    """The name in `BUILDERS` of a built-in expert, None of anything else."""
    return next((name for name, kind in BUILDERS.items() if type(network) is kind), None)


def mismatch(
    network: nn.Module, weights: Mapping[Any, object], as_saved: Sequence[str] = ()
) -> str:
    """What doesn't fit, and why if that can be told; nothing when names, shapes and kinds do.

    `as_saved` are the weights' names where they were renamed as the network's would be.
    """
    own = network.state_dict()
    missing = sorted(own.keys() - weights.keys())
    surplus = sorted(map(str, weights.keys() - own.keys()))
    if missing or surplus:
        cause = _other_names(network, own.keys(), list(map(str, weights)), as_saved)
        details = "; ".join(filter(None, (_some("lacks", missing), _some("has unknown", surplus))))
        return f"doesn't fit this {type(network).__name__}: {cause}{details}"
    for name, value in own.items():
        given = weights[name]
        dense = isinstance(given, Tensor) and given.layout == torch.strided
        found = tuple(given.shape) if isinstance(given, Tensor) and dense else None
        if found != tuple(value.shape):
            cause = _other_shape(network, name, found, tuple(value.shape))
            return f"{name}: found shape {found}, expected {tuple(value.shape)}; {cause}"
    return ""


def unusable(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """As `mismatch`; of weights that fit those that hold numbers which are not finite."""
    problem = mismatch(network, weights)
    if problem:
        return problem
    bad = [n for n, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"has numbers that are not finite in {', '.join(bad[:3])}{more}" if bad else ""


def _other_names(
    network: nn.Module, own: Iterable[str], found: Sequence[str], as_saved: Sequence[str]
) -> str:
    """The likely cause, with a colon behind it; nothing when there is none to tell."""
    name = architecture(network)
    if not isinstance(network, Expert):
        return ""
    for sign, words in UNFINISHED:
        if any(sign in each for each in found):
            return f"{words}: "
    if name is None:
        return ""
    for naming in NAMINGS.get(name, ()):
        renamed = {naming.rename(each) for each in found}
        if naming.refused and _share(renamed, own) > ALIKE:
            return f"it has {naming.words}, and {naming.refused}: "
    other = recognised(found) or recognised(as_saved)
    if other is not None and other != name:
        return f"these are the weights of {'an' if other[0] in 'aeiou' else 'a'} {other}: "
    here, there = _blocks(own), _blocks(found)
    more, fewer = len(there - here), len(here - there)
    if there and bool(more) != bool(fewer):
        count = f"{plural(more, 'block')} more" if more else f"{plural(fewer, 'block')} fewer"
        argument = "depth" if "depth" in argument_names(name) else "blocks"
        return f"it has {count}, set models.{name}.{argument} as it was trained with: "
    if any(".conv3." in each for each in found) and not any(".conv3." in each for each in own):
        return "its blocks have three convolutions (a ResNet-50 or larger), these two: "
    return ""


def _other_shape(
    network: nn.Module, name: str, found: tuple[int, ...] | None, expected: tuple[int, ...]
) -> str:
    known = architecture(network)
    if found is None:
        return "it is no dense tensor"
    if not isinstance(network, Expert):
        return "was it made for other experts?"
    if name.startswith("classifier.") and found[1:] == expected[1:]:
        trained, own = f"it was trained for {found[0]} classes", network.own_classes
        if own and found[0] == network.num_classes:
            return f"{trained}: set experts.classes=all"
        if own:
            return f"{trained}, this expert's own are {own[0]} to {own[-1]}"
        if found[0] < expected[0]:
            option = "data.split=non_iid and experts.classes=own"
            return f"{trained}; where these are its own part of all classes, set {option}"
        return trained
    if name == "trunk.stem.weight" and found[2:] != expected[2:] and len(found) == 4:
        return (
            f"it begins with a {found[2]}x{found[3]} stem, as torchvision's do for ImageNet; ours "
            f"is {expected[2]}x{expected[3]}, for small images"
        )
    arguments = "other arguments" if known is None else f"other arguments (models.{known})"
    return f"it was trained with {arguments}: width and depth must be those of the file"


def recognised(names: Iterable[str]) -> str | None:
    """The built-in architecture that tensors of these names belong to, whatever its depth."""
    names = list(names)
    while len(heads := {name.partition(".")[0] for name in names}) == 1 and "." in names[0]:
        names = [name.removeprefix(f"{min(heads)}.") for name in names]  # a wrapper's
    with torch.device("meta"):
        ours = {name: _skeleton(build_expert(name, 2).state_dict()) for name in BUILDERS}
    shares = {
        name: max(
            _share(_skeleton(map(naming.rename, names)), own)
            for naming in (OURS, *NAMINGS.get(name, ()))
        )
        for name, own in ours.items()
    }
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] > ALIKE else None


def _skeleton(names: Iterable[str]) -> set[str]:
    return {re.sub(r"\d+", "#", name) for name in names if not name.endswith("_tracked")}


def _share(one: Iterable[str], other: Iterable[str]) -> float:
    """Of the names of both, how many both have."""
    first, second = set(one), set(other)
    return len(first & second) / max(1, len(first | second))


def _blocks(names: Iterable[str]) -> set[str]:
    return {found[1] for name in names if (found := re.match(r"(trunk\.\w+\.\d+)\.\w+\.", name))}


def _some(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(each[:200] for each in names[:3])}{more}" if names else ""
