"""The experts: one file per architecture, one table of names.

A new architecture is a file with a subclass of `Expert` and a line in `BUILDERS`, or a plug-in.
"""

import inspect
from typing import Any

from fusionrun.common.plugins import is_plugin, load_plugin
from fusionrun.common.text import nearest

from .base import Expert
from .densenet import DenseNet
from .resnet import ResNet
from .resnext import PreActivationResNeXt
from .wide_resnet import ImprovedWideResNet

__all__ = ["BUILDERS", "Expert", "argument_defaults", "argument_names", "build_expert"]

BUILDERS: dict[str, type[Expert]] = {
    "densenet": DenseNet,
    "resnet": ResNet,
    "improved_wide_resnet": ImprovedWideResNet,
    "resnext": PreActivationResNeXt,
}


def build_expert(name: str, num_classes: int, **arguments: Any) -> Expert:
    """The expert called `name` in `BUILDERS`, or FILE.py:NAME, with weights drawn from torch's
    default generator.

    `arguments` are those of the architecture, see `argument_names`; the rest keep their full-size
    defaults. Raises ValueError, in one line, for an unknown name, an unknown argument and a value
    that cannot work.
    """
    known = argument_names(name)
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"expert {name!r} has no argument {argument!r}; {nearest(argument, known)}"
            )
    try:
        return _builder(name)(num_classes, **arguments)
    except ValueError as error:
        raise ValueError(f"expert {name!r}: {error}") from error


def argument_names(name: str) -> tuple[str, ...]:
    """The architecture's own arguments, in order, without `num_classes`.

    Raises ValueError for a name that is not in `BUILDERS`.
    """
    return tuple(n for n in inspect.signature(_builder(name)).parameters if n != "num_classes")


def argument_defaults(name: str) -> dict[str, Any]:
    """{argument of the architecture: its default}, where it has one."""
    parameters = inspect.signature(_builder(name)).parameters
    return {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}


def _builder(name: str) -> type[Expert]:
    if is_plugin(name):
        found = load_plugin(name)
        if not (isinstance(found, type) and issubclass(found, Expert)):
            raise ValueError(f"{name!r}: expected a subclass of fusionrun.experts.Expert")
        return found
    if not isinstance(name, str) or name not in BUILDERS:
        raise ValueError(f"unknown expert {name!r}; {nearest(name, BUILDERS)}")
    return BUILDERS[name]
