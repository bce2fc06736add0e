"""The experts: one file per architecture, one table of names.

A new architecture is a file with a subclass of `Expert` and a line in `BUILDERS`, or a plug-in.
"""

import inspect
from typing import Any

from fusionrun.common.plugins import is_backbone, is_plugin, load_plugin
from fusionrun.common.text import nearest

from .backbone import build_backbone
from .base import Expert, image_size_of, normalisation_of
from .densenet import DenseNet
from .resnet import ResNet
from .resnext import PreActivationResNeXt
from .wide_resnet import ImprovedWideResNet

__all__ = [
    "BUILDERS",
    "INPUTS",
    "Expert",
    "argument_defaults",
    "argument_names",
    "build_expert",
]

BUILDERS: dict[str, type[Expert]] = {
    "densenet": DenseNet,
    "resnet": ResNet,
    "improved_wide_resnet": ImprovedWideResNet,
    "resnext": PreActivationResNeXt,
}
# what the trunk of any architecture can be given; one with an argument called so has its own
INPUTS = ("normalisation", "image_size")


def build_expert(name: str, num_classes: int, **arguments: Any) -> Expert:
    """The expert called `name`, with weights drawn from torch's default generator.

    `name` is one of `BUILDERS`, timm:NAME, torchvision:NAME, or FILE.py:NAME of a plug-in.
    `arguments` are those of the architecture, see `argument_names`; the rest keep their full-size
    defaults. Of any architecture: `normalisation`, data, imagenet or [mean, std], and `image_size`,
    the side in pixels to which images are resized inside, None: as they come. Raises ValueError,
    in one line, for an unknown name, an unknown argument and a value that cannot work.
    """
    known = () if is_backbone(name) else argument_names(name)
    inputs = {n: arguments.pop(n) for n in INPUTS if n in arguments and n not in known}
    for argument in arguments:
        if argument not in known and not is_backbone(name):
            raise ValueError(
                f"expert {name!r} has no argument {argument!r}; {nearest(argument, known)}"
            )
    try:
        size = image_size_of(inputs.get("image_size"))
        normalisation = normalisation_of(inputs.get("normalisation"))
        if is_backbone(name):
            expert: Expert = build_backbone(name, num_classes, size, **arguments)
        else:
            expert = _builder(name)(num_classes, **arguments)
            expert.input_size = size
    except ValueError as error:
        raise ValueError(f"expert {name!r}: {error}") from error
    expert.normalisation = normalisation
    return expert


def argument_names(name: str) -> tuple[str, ...]:
    """The architecture's own arguments, in order, without `num_classes`.

    Raises ValueError for a name that is not in `BUILDERS`, nor a plug-in's.
    """
    return tuple(n for n in inspect.signature(_builder(name)).parameters if n != "num_classes")


def argument_defaults(name: str) -> dict[str, Any]:
    """{argument of the architecture: its default}, where it has one that is known here."""
    if is_backbone(name):
        return {}
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
