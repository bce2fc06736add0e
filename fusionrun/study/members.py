"""Different experts in one row: how a recipe writes them, and what they are called."""

import hashlib
from collections.abc import Iterable

from fusionrun.common.typed_fields import require

# an architecture; or one for each of a row's experts, which may be written with their numbers
Members = dict[str, int] | tuple[str, ...] | str


def expanded_members(model: Members, name: str) -> tuple[str, ...] | str:
    """`model` of the field `name` as an architecture, or as one for each expert of a mixed row."""
    if isinstance(model, str):
        return model
    if isinstance(model, dict):
        for each, count in model.items():
            require(count > 0, f"{name}.{each}", count, "1 or more experts of it")
            require(count < 1000, f"{name}.{each}", count, "experts.count in all, at most")
        model = tuple(each for each, count in model.items() for _ in range(count))
    needed = "two or more different architectures; a row of one is written model: resnet"
    require(len(set(model)) > 1, name, list(model), needed)
    return model


def mixed_label(models: Iterable[str], name: str | None) -> str:
    """Of experts of these architectures in paths, tables and logs: by `name`, or by their hash."""
    return f"mixed-{name or hashlib.sha256(','.join(models).encode()).hexdigest()[:8]}"
