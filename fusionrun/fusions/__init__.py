"""The fusions: one file per idea, one table of names, and the model that holds one.

A new fusion is a file with a subclass of `FusionModule` and a line in `FUSIONS`.
"""

import difflib

from .base import FusionModule
from .concatenation import Concatenation
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
}


def build_fusion(name: str, num_experts: int, feature_dim: int) -> FusionModule:
    """The fusion called `name` in `FUSIONS`, for E experts of feature size D.

    Raises ValueError, in one line, for an unknown name and for sizes that cannot work.
    """
    if not isinstance(name, str) or name not in FUSIONS:
        raise ValueError(
            f"unknown fusion {name!r}; expected one of {', '.join(FUSIONS)}{_nearest(name)}"
        )
    try:
        return FUSIONS[name](num_experts, feature_dim)
    except ValueError as error:
        raise ValueError(f"fusion {name!r}: {error}") from error


def _nearest(found: object) -> str:
    by_folded_name = {name.casefold(): name for name in FUSIONS}
    close = difflib.get_close_matches(str(found).casefold(), by_folded_name, n=1)
    return f"; did you mean {by_folded_name[close[0]]!r}?" if close else ""
