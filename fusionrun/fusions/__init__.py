"""The fusions: one file per idea, one table of names, and the model that holds one.

A new fusion is a file with a subclass of `FusionModule` and a line in `FUSIONS`, or a plug-in.
"""

from fusionrun.common.plugins import is_plugin, load_plugin
from fusionrun.common.text import nearest

from .aligned import AlignedAddition, AlignedMultiplicative
from .base import FusionModule
from .concatenation import Concatenation
from .gated import Gated
from .mean_logits import MeanLogits
from .model import FusionModel, FusionOutput
from .multiplicative import Multiplicative, MultiplicativeShifted
from .multiplicative_addition import MultiplicativeAddition
from .simple_addition import SimpleAddition
from .transformer import TransformerBase

__all__ = ["FUSIONS", "FusionModel", "FusionModule", "FusionOutput", "build_fusion"]

FUSIONS: dict[str, type[FusionModule]] = {
    "multiplicative": Multiplicative,
    "multiplicativeAddition": MultiplicativeAddition,
    "TransformerBase": TransformerBase,
    "concatenation": Concatenation,
    "simpleAddition": SimpleAddition,
    "multiplicativeShifted": MultiplicativeShifted,
    "alignedMultiplicative": AlignedMultiplicative,
    "alignedAddition": AlignedAddition,
    "gated": Gated,
    "meanLogits": MeanLogits,
}


def build_fusion(name: str, num_experts: int, feature_dim: int) -> FusionModule:
    """The fusion called `name` in `FUSIONS`, or FILE.py:NAME, for E experts of feature size D.

    Raises ValueError, in one line, for an unknown name and for sizes that cannot work.
    """
    try:
        return _builder(name)(num_experts, feature_dim)
    except ValueError as error:
        raise ValueError(f"fusion {name!r}: {error}") from error


def _builder(name: str) -> type[FusionModule]:
    if is_plugin(name):
        found = load_plugin(name)
        if not (isinstance(found, type) and issubclass(found, FusionModule)):
            raise ValueError("expected a subclass of fusionrun.fusions.FusionModule")
        return found
    if not isinstance(name, str) or name not in FUSIONS:
        raise ValueError(f"unknown fusion {name!r}; {nearest(name, FUSIONS)}")
    return FUSIONS[name]
