"""Backbones of other libraries as experts: `timm:NAME` and `torchvision:NAME`.

The library's network stands as the trunk, without its classifier, and keeps its names: `trunk.` and
what the library calls a tensor. Its weights are the library's random ones, drawn from torch's
default generator; nothing is downloaded here, see pretrained.py. The libraries are imported when
one of their networks is named.
"""

import difflib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fusionrun.common.text import one_line

from .base import Expert

# of the library's constructors, which this package decides
RESERVED = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
    | {"num_classes", "in_chans", "features_only", "weights", "weights_backbone"}
)
# torchvision's networks that are built for one size of images: {name's beginning: its argument}
SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
SIZE = 224  # of theirs, unless another is asked for
# second classifiers have no place in an expert; their inputs are as ImageNet's others
INCEPTIONS = {"aux_logits": False, "transform_input": True, "init_weights": True}
CLASSES = 1000  # that torchvision's classifiers are built for, before they are taken off


class Backbone(Expert):
    """A network of another library, whose classifier is replaced by an expert's own."""

    def __init__(
        self, num_classes: int, trunk: nn.Module, feature_dim: int, heads: tuple[str, ...]
    ) -> None:
        super().__init__(num_classes, trunk, feature_dim)
        self.heads = heads  # what the library calls the classifiers that were taken off

    def stages(self) -> list[list[str]]:
        """As the library groups them, where it does."""
        if not hasattr(self.trunk, "group_matcher"):
            return super().stages()
        group = import_library("timm").models.group_parameters
        found: Any = self.trunk
        groups = group(found, found.group_matcher(coarse=True))
        return [groups[number] for number in sorted(groups)]

    def converted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of other releases, or of images of another size, as the library's own loader
        has them; by our names, where it has a way, else as they are.
        """
        convert = getattr(sys.modules[type(self.trunk).__module__], "checkpoint_filter_fn", None)
        if convert is None or not self.heads:
            return tensors
        theirs = {
            name.replace("trunk.", "", 1)
            if name.startswith("trunk.")
            else name.replace("classifier", self.heads[0], 1): value
            for name, value in tensors.items()
        }
        try:
            found: dict[str, Tensor] = convert(theirs, self.trunk)
        except Exception:  # it knows of other files, which this isn't
            return tensors
        return {self.own_name(name): value for name, value in found.items()}

    def own_name(self, name: str) -> str:
        """What a tensor that the library calls `name` is called here."""
        for head in self.heads:
            if name.startswith(f"{head}."):
                return f"classifier.{name[len(head) + 1 :]}"
        return f"trunk.{name}"


def build_backbone(
    name: str, num_classes: int, image_size: int | None = None, **arguments: Any
) -> Backbone:
    """The network called `name`, timm:NAME or torchvision:NAME, with random weights.

    One that is built for images of one size is built for `image_size`, where that is given, and
    else for its library's own; others take images of any. `arguments` are the library's. Raises
    ValueError, in one line, when the library isn't there, has no such network, or can't build it
    so.
    """
    library, _, network = name.partition(":")
    if found := sorted(RESERVED & arguments.keys()):
        raise ValueError(f"{found[0]} is not for a recipe to say; fusionrun sets it")
    builders = {"timm": _build_timm, "torchvision": _build_torchvision}
    trunk, feature_dim, heads, size = builders[library](network, image_size, arguments)
    expert = Backbone(num_classes, trunk, feature_dim, heads)
    expert.input_size = size
    return expert


def import_library(name: str) -> Any:
    """timm or torchvision. Raises ValueError, with the line that installs it, where it isn't."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == name:
            extra = "'fusionrun[timm]'" if name == "timm" else name
            raise ValueError(f"{name} isn't installed: pip install {extra}") from None
        raise ValueError(f"{name} can't be imported: {error}") from None
    except Exception as error:  # torchvision, which timm needs, of another build than torch
        raise ValueError(f"{name} can't be imported: {one_line(error)}") from None


Built = tuple[nn.Module, int, tuple[str, ...], int | None]


def _build_timm(name: str, image_size: int | None, arguments: dict[str, Any]) -> Built:
    timm = import_library("timm")
    base, _, tag = name.partition(".")
    if "/" in name or not timm.is_model(base):
        raise ValueError(f"timm has no network {name!r}{_close(name, timm.list_models())}")
    tagged = timm.list_pretrained(f"{base}.*") if tag else []
    if tag and name not in tagged:
        raise ValueError(f"timm has no weights {tag!r} of {base}{_close(name, tagged)}")
    found = timm.models.get_pretrained_cfg(name)
    size = image_size
    if found is not None and found.fixed_input_size:
        own = found.input_size[-1]
        size = arguments.get("img_size") or image_size or own
        if size != own:
            arguments = {**arguments, "img_size": size}
    trunk: Any = _call(timm.create_model, name, pretrained=False, num_classes=0, **arguments)
    feature_dim = getattr(trunk, "head_hidden_size", None) or trunk.num_features
    heads = trunk.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return trunk, int(feature_dim), heads, size


def _build_torchvision(name: str, image_size: int | None, arguments: dict[str, Any]) -> Built:
    models = import_library("torchvision").models
    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f"torchvision has no network {name!r}{_close(name, names)}")
    size = image_size
    sized = next((SIZED[each] for each in SIZED if name.startswith(each)), None)
    if sized is not None:
        size = image_size or SIZE
        arguments = {sized: (size, size) if sized == "input_size" else size, **arguments}
    if name in ("googlenet", "inception_v3"):
        arguments = {**INCEPTIONS, **arguments}
    trunk: Any = _call(models.get_model, name, weights=None, **arguments)
    head, feature_dim = _take_off_classifier(trunk)
    return trunk, feature_dim, (head,), size


def _take_off_classifier(network: nn.Module) -> tuple[str, int]:
    """Replace the last layer that gives CLASSES numbers; (its name, the numbers that it took)."""
    for name, layer in reversed(list(network.named_modules())):
        is_linear = isinstance(layer, nn.Linear) and layer.out_features == CLASSES
        if is_linear or (isinstance(layer, nn.Conv2d) and layer.out_channels == CLASSES):
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, nn.Identity())
            taken = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            return name, int(taken)
    raise ValueError(f"it has no classifier of {CLASSES} classes that could be replaced")


def _call(build: Callable[..., Any], name: str, **arguments: Any) -> nn.Module:
    """The library's network; whatever it says against its arguments is a ValueError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on weights that aren't wanted, and on its own code
            if torch.get_default_device().type == "meta":
                return _on_meta(build, name, **arguments)
            network: nn.Module = build(name, **arguments)
    except Exception as error:  # networks of hundreds of authors check their arguments as they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"can't be built with these arguments: {reason}") from None
    return network


def _on_meta(build: Callable[..., Any], name: str, **arguments: Any) -> nn.Module:
    """Without weights; a few networks calculate with theirs while they are built."""
    try:
        network: nn.Module = build(name, **arguments)
    except Exception:  # whatever it is: said by the second attempt, if it wasn't the device
        with torch.device("cpu"):
            network = build(name, **arguments).to("meta")
    return network


def _close(name: str, valid: Iterable[str]) -> str:
    """Of a thousand names, those that may have been meant."""
    close = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
