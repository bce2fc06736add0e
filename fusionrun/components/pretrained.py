"""Weights that an expert's own training begins with: another library's, or those of a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionrun.components.mismatch import mismatch
from fusionrun.components.read_checkpoint import COUNTER, NO_EFFECT, Tensors, candidates
from fusionrun.components.store import load_checked_state
from fusionrun.experts import Expert
from fusionrun.experts.backbone import Backbone
from fusionrun.experts.pretrained import library_weights
from fusionrun.study.study import Study
from fusionrun.training.checkpoint import CheckpointError, load

HEAD = "classifier."


def begin_pretrained(study: Study, model: str, expert: Expert) -> str:
    """Give `expert` the weights that its training begins with; what they are, "" for random ones.

    Raises CheckpointError where they don't fit, or a library's aren't in its cache: nothing is
    downloaded here.
    """
    wanted = study.model_settings(model).pretrained
    if not wanted:
        return ""
    path = Path(wanted) if isinstance(wanted, str) else None
    if path is None:
        weights = library_weights(model)
        path = weights.cached()
        if path is None:
            raise CheckpointError(f"models.{model}.pretrained: {weights.origin}: not in the cache")
    return "; ".join([f"begins with {path}", *begin_with(expert, path)])


def begin_with(expert: Expert, path: Path) -> list[str]:
    """Put the weights of the file at `path` into `expert`; what that took.

    The trunk's must all be there, by the library's names or by ours. Raises CheckpointError.
    """
    weights, notes = weights_for(expert, load(path), path)
    load_checked_state(expert, {**expert.state_dict(), **weights}, path)
    return notes


def weights_for(
    expert: Expert, payload: Mapping[str, Any], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """(what a loaded file has for `expert`, which may be on the meta device; notes on it).

    Raises CheckpointError where it isn't the whole trunk, or is a larger network.
    """
    own = expert.state_dict()
    trunk = {name: value for name, value in own.items() if not name.startswith(HEAD)}
    named = [
        {name: found.tensors[theirs] for name, theirs in found.names.items()}
        for found in candidates(payload, expert)
    ]
    best: dict[str, Any] = max(named, key=lambda each: _fitting(each, trunk), default={})
    notes = []
    if isinstance(expert, Backbone) and (_lacking(best, trunk) or _surplus(best, trunk)):
        converted = expert.converted(_as_tensors(best))
        if not _lacking(converted, trunk):
            best = converted
            notes.append("converted as its library does")
    lacking, surplus = _lacking(best, trunk), _surplus(best, trunk)
    if lacking or surplus:
        what, which = ("lacks", lacking) if lacking else ("has", surplus)
        more = f" and {len(which) - 3} more" if len(which) > 3 else ""
        raise CheckpointError(
            f"{path}: {what} {', '.join(which[:3])}{more}; expected the weights of this trunk, by "
            f"its library's names or fusionrun's"
        )
    if problem := mismatch(expert, {**own, **{n: best[n] for n in trunk if n in best}}):
        raise CheckpointError(f"{path}: {problem}")
    weights = {name: best[name] for name in trunk if name in best}
    heads = {name: best[name] for name in own if name.startswith(HEAD) and name in best}
    if len(heads) == 2 and _fitting(heads, heads | own) >= 2:
        weights |= heads
    elif heads:
        notes.append(f"without its classifier of {len(next(iter(heads.values())))} classes")
    others = [name.removeprefix("trunk.") for name in best if name not in own]
    if others:
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        notes.append(f"left out {', '.join(others[:2])}{more}")
    return _as_tensors(weights), notes


def _fitting(found: Tensors, own: Mapping[str, Tensor]) -> int:
    """How many of the network's tensors are there, in the right shape."""
    return sum(name in found and found[name].shape == own[name].shape for name in own)


def _lacking(found: Tensors, trunk: Mapping[str, Tensor]) -> list[str]:
    """What isn't there, or of another shape; batch norms compute without their counters."""
    return [
        name
        for name in trunk
        if (
            not name.endswith(COUNTER)
            if name not in found
            else found[name].shape != trunk[name].shape
        )
    ]


def _surplus(found: Tensors, trunk: Mapping[str, Tensor]) -> list[str]:
    """What a larger network has in the parts that the trunk has, too; others are classifiers."""
    parts = {name.split(".")[1] for name in trunk}
    surplus = [name for name in found if name not in trunk and not NO_EFFECT.search(name)]
    return [name for name in surplus if name.startswith("trunk.") and name.split(".")[1] in parts]


def _as_tensors(found: Tensors) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in found.items()}
