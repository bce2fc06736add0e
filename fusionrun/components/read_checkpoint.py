"""An expert's weights in a checkpoint of ours or of anybody else's: found, named and typed as ours.

What was stripped, renamed, converted or left out on the way is said. What a file that isn't ours
says of itself (accuracies, classes, settings) is in its owner's words and units: nothing of it is
taken for ours.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionrun.components.mismatch import architecture, mismatch
from fusionrun.components.namings import NAMINGS, OURS, Naming, trunk_naming
from fusionrun.components.store import ComponentInfo, component_info, load_checked_state
from fusionrun.experts import Expert, argument_defaults
from fusionrun.experts.backbone import Backbone
from fusionrun.training.checkpoint import CheckpointError, has_checksums, is_program, load, peek

# what torch's wrappers put into names, wherever they wrap
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# where tools put a network's weights; what lies elsewhere is found too, after these
PLACES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params")
# words of weights that are an average over steps: taken where the trained ones aren't there
AVERAGED = re.compile(
    r"(^|[._])(ema|swa|avg|average|averaged|shadow|teacher|momentum|target)([._]|$)", re.IGNORECASE
)
# tensors of no effect on a network's answer: counters, thop's sums, losses, metrics
NO_EFFECT = re.compile(
    r"(^|\.)(num_batches_tracked|total_ops|total_params|n_averaged|num_updates|decay|_extra_state)$"
    r"|^(criterion|loss|metric|accuracy|ema|swa|teacher)\w*\."
    r"|^(train|val|valid|test)_(acc|metric|loss)\w*\."
)
COUNTER = "num_batches_tracked"  # of batch norms: no part of what they compute
DEPTH = 4  # of dicts within dicts that are looked through


ARRAYS = (Tensor, np.ndarray)
Tensors = Mapping[str, Tensor | np.ndarray[Any, Any]]


@dataclass(frozen=True)
class ExpertFile:
    """What a checkpoint has for an expert."""

    weights: dict[str, Tensor]  # by the network's own names, in its types, on the CPU
    about: ComponentInfo | None  # what it says of itself; None: not saved by fusionrun
    notes: tuple[str, ...]  # what was stripped, renamed, converted or left out
    needs: tuple[tuple[str, object], ...] = ()  # arguments that the weights' own network has

    @property
    def origin(self) -> str:
        """In a few words, for people."""
        if self.about is None:
            return ": ".join(filter(None, ("not saved by fusionrun", "; ".join(self.notes))))
        return f"epoch {self.about.epoch}, validation {self.about.val_accuracy:.2f} %"


@dataclass(frozen=True)
class _Found:
    """Tensors that may be the network's."""

    place: tuple[str, ...]  # the keys that lead to them
    prefix: str  # of their names
    naming: Naming
    names: dict[str, str]  # {renamed: as the file has it}, of those with the prefix
    tensors: Tensors

    def fits(self, own: Collection[str]) -> bool:
        """Whether these are the network's names, but for what has no effect on its answers."""
        lacking = any(name not in self.names and not name.endswith(COUNTER) for name in own)
        return not lacking and all(name in own or NO_EFFECT.search(name) for name in self.names)

    @property
    def label(self) -> str:
        """Where in the file."""
        return ".".join((*self.place, self.prefix)).rstrip(".")


def load_expert_weights(expert: Expert, path: Path) -> ExpertFile:
    """Put the weights of the file at `path` into `expert`.

    Raises CheckpointError when they can't be read, don't fit, or belong to a network of the same
    tensors that computes something else.
    """
    found = expert_in(load(path), path, expert)
    classes, expected = found.about and found.about.num_classes, expert.num_classes
    if classes is not None and classes != expected:
        raise CheckpointError(f"{path}: is for {classes} classes, this study has {expected}")
    load_checked_state(expert, found.weights, path)
    return found


def peek_expert(expert: Expert, path: Path) -> ExpertFile | None:
    """What `load_expert_weights` would load, unverified; None where it isn't there or refuses."""
    payload = peek(path) if path.is_file() else None
    try:
        return None if payload is None else expert_in(payload, path, expert)
    except CheckpointError:
        return None


def expert_in(payload: Mapping[str, Any], path: Path, expert: Expert) -> ExpertFile:
    """What a loaded file has for `expert`, which may be on the meta device and of other classes."""
    own = expert.state_dict()
    about = component_info(payload, path)
    if about is not None:
        _require_same_network(about, path, expert)
        return ExpertFile(dict(payload["state_dict"]), about, ())
    found_all = list(candidates(payload, expert))
    if not found_all:
        has = f" (found {', '.join(str(key)[:40] for key in list(payload)[:4])})" if payload else ""
        raise CheckpointError(f"{path}: holds no tensors with names{has}, expected a state dict")
    fits = _choose(found_all, own, path)
    found = fits[0]
    if not found.fits(own):
        renamed = {name: found.tensors[theirs] for name, theirs in found.names.items()}
        as_saved = [_unwrapped(name) for name in found.tensors]
        raise CheckpointError(f"{path}: {mismatch(expert, renamed, as_saved)}")
    for argument, needed in found.naming.needs:
        if getattr(expert, argument) != needed:
            raise CheckpointError(
                f"{path}: has {found.naming.words}, and that network computes something else with "
                f"the same weights; set models.{architecture(expert)}.{argument}={needed}"
            )
    weights, converted = _converted(found, own, path)
    notes = (*_notes(payload, fits, own, path), *converted)
    return ExpertFile(weights, None, notes, found.naming.needs)


def _require_same_network(about: ComponentInfo, path: Path, expert: Expert) -> None:
    """Raise CheckpointError for a component of ours whose weights are another network's."""
    if about.component != "expert":
        kind = about.component.replace("_", " ")
        raise CheckpointError(f"{path}: found a {kind} of fusionrun, expected an expert")
    own, theirs = list(expert.own_classes), about.own_classes
    if own and theirs and own != theirs:
        raise CheckpointError(
            f"{path}: has outputs for classes {theirs[0]} to {theirs[-1]}, this expert's own are "
            f"{own[0]} to {own[-1]}"
        )
    name = architecture(expert)
    if name is None or about.model != name:
        return  # a plug-in's business, or told by the tensors' names
    for argument, _ in {needed for naming in NAMINGS.get(name, ()) for needed in naming.needs}:
        made = about.arguments.get(argument, argument_defaults(name)[argument])
        if made != getattr(expert, argument):
            raise CheckpointError(f"{path}: was trained with models.{name}.{argument}={made}")


def candidates(payload: Mapping[str, Any], expert: Expert) -> Iterator[_Found]:
    """Every set of tensors in the file, under every prefix and naming that may be the expert's."""
    own = expert.state_dict()
    known = architecture(expert)
    namings = NAMINGS.get(known or "", ())
    if isinstance(expert, Backbone):
        namings = (trunk_naming(expert.heads, "its library's names"),)
    elif known is None:
        namings = (trunk_naming((), "its trunk's own names"),)
    needed = sum(not name.endswith(COUNTER) and name.startswith("trunk.") for name in own)
    for place, tensors in _tensor_dicts(payload):
        plain = {_unwrapped(name): name for name in tensors}
        for prefix in _prefixes(plain, needed):
            below = {name[len(prefix) :]: plain[name] for name in plain if name.startswith(prefix)}
            for naming in (OURS, *namings):
                names = {naming.rename(name): theirs for name, theirs in below.items()}
                found = _Found(place, prefix, naming, names, tensors)
                yield found
                if found.fits(own):
                    break


def _tensor_dicts(
    tree: Mapping[Any, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Tensors]]:
    """(keys that lead there, {name: tensor}) of every dict that has tensors, the outer first.

    A list's keys are its numbers.
    """
    tensors = {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, ARRAYS)}
    if tensors:
        yield place, tensors
    for key, inner in tree.items():
        if isinstance(inner, list | tuple):
            inner = dict(enumerate(inner))
        if isinstance(inner, Mapping) and len(place) < DEPTH:
            yield from _tensor_dicts(inner, (*place, str(key)))


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _prefixes(names: Collection[str], needed: int) -> list[str]:
    """Nothing, and the beginnings, up to a dot, that a whole network's names could have."""
    counts = Counter(name[: found.end()] for name in names for found in re.finditer(r"\.", name))
    return ["", *(prefix for prefix, count in counts.items() if count >= needed)]


def _choose(candidates: Sequence[_Found], own: Mapping[str, Tensor], path: Path) -> list[_Found]:
    """Those that fit by their names, the one to take first; the closest alone where none does.

    The trained weights go before an average of them, then the places where tools put a network.
    Raises CheckpointError where nothing tells several networks apart.
    """

    def rank(found: _Found) -> tuple[bool, int]:
        last = found.place[-1] if found.place else ""
        return bool(AVERAGED.search(found.label)), [*PLACES, last].index(last)

    fits = sorted((found for found in candidates if found.fits(own)), key=rank)
    if not fits:
        return [max(candidates, key=lambda found: len(own.keys() & found.names.keys()))]
    alike = [found for found in fits if _numberless(found.label) == _numberless(fits[0].label)]
    if len(alike) > 1:
        names = ", ".join(found.label for found in alike[:4])
        raise CheckpointError(
            f"{path}: holds {len(alike)} networks that fit ({names}); expected one: save each in a "
            f"file of its own"
        )
    return fits


def _numberless(label: str) -> str:
    return re.sub(r"\d+", "#", label)


def _converted(
    found: _Found, own: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """(the weights in the network's types and by its names, what that took)."""
    weights, notes = {}, dict[str, None]()
    for name, wanted in own.items():
        if name not in found.names:
            weights[name] = torch.zeros(wanted.shape, dtype=wanted.dtype)
            notes[f"{COUNTER} starts at 0"] = None
            continue
        value = found.tensors[found.names[name]]
        if isinstance(value, np.ndarray):
            value = _from_numpy(value, name, path)
            notes["NumPy arrays as tensors"] = None
        value = value.detach()
        if value.is_meta:
            raise CheckpointError(
                f"{path}: {name}: found a tensor on the meta device, without its values; expected "
                f"the weights: save the network once it is filled"
            )
        if value.dtype != wanted.dtype:
            kind = str(value.dtype).removeprefix("torch.")
            if wanted.is_floating_point() and not value.is_floating_point():
                raise CheckpointError(
                    f"{path}: {name}: found {kind} (quantised?), expected the float weights"
                )
            if wanted.is_floating_point():
                notes[f"{kind} as {str(wanted.dtype).removeprefix('torch.')}"] = None
            value = value.to(wanted.dtype)
        weights[name] = value.reshape(wanted.shape) if value.numel() == 1 else value
    return weights, list(notes)


def _from_numpy(value: "np.ndarray[Any, Any]", name: str, path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {name}: {error}") from None


def _notes(
    payload: Mapping[str, Any], fits: Sequence[_Found], own: Mapping[str, Tensor], path: Path
) -> Iterator[str]:
    """What it took to read the file, but for what was converted."""
    found = fits[0]
    if is_program(path):
        yield "of a TorchScript program the weights alone"
    if not has_checksums(path):
        yield "no checksum to verify"
    if found.place:
        yield f"under {'.'.join(found.place)!r}"
    wrappers = [each for each in WRAPPERS if any(each in name for name in found.names.values())]
    stripped = [*([found.prefix] if found.prefix else []), *wrappers]
    if stripped:
        yield f"without {' and '.join(map(repr, stripped))} in its names"
    if found.naming.words:
        needed = [f"{name}={value}" for name, value in found.naming.needs]
        yield " of a network with ".join([found.naming.words, *needed])
    if len(fits) > 1:
        yield f"not {', '.join(repr(each.label) for each in fits[1:4])}, which fits too"
    used = {found.names[name] for name in own if name in found.names}
    unused = [name for name in found.tensors if name not in used]
    places = {each.place[:1] for each in fits}
    beside = [str(key) for key in payload if (key,) not in places and key not in found.tensors]
    rivals = [each.prefix for each in fits[1:] if each.place == found.place]
    left_out = [*(name for name in unused if not name.startswith(tuple(rivals))), *beside]
    if left_out:
        more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
        yield f"left out {', '.join(name[:60] for name in left_out[:4])}{more}"
