"""Images deeper than 8 bits: which of their values are black and white must be known."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusionrun.common.text import plural, printable_path
from fusionrun.data.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Range = tuple[float, float]  # the values that become 0 and 255

HIGHEST_16 = 65535
LEAST_OF_16 = 1 << 15  # files of 16 bits in which no value is as high lose half of their greys
GREY_16, COLOUR_16 = "16-bit grey", "16 bits a colour"
INT_32, FLOAT = "32-bit integers (PIL's mode I)", "floating point (PIL's mode F)"
USUAL_TOPS = (1, 255, 1023, 4095, 16383, 65535)  # of values from 0 on


def deep_mode(image: "Image") -> str:
    """What an opened, not yet decoded image has instead of 8 bits; "" for the usual."""
    if image.mode.startswith("I;16"):
        return GREY_16
    if image.mode == "I":  # which is also how PIL hands over what these formats have
        return GREY_16 if image.format in ("PNG", "PPM", "JPEG2000") else INT_32
    if image.mode == "F":
        return FLOAT
    # the last part of each is, or begins with, the layout of the file's own bytes
    for tile in getattr(image, "tile", ()):
        layout = tile[3] if isinstance(tile[3], str) else (*(tile[3] or ()), "")[0]
        channels, _, depth = str(layout).partition(";")
        if depth.startswith("16") and channels in ("RGB", "RGBA", "RGBX", "LA", "R", "G", "B"):
            return COLOUR_16
    return ""


def to_8_bits(
    image: "Image", mode: str, value_range: Range | None, path: str | Path
) -> tuple["Image", list[str], int]:
    """(the image in 8 bits, what was done to it, the highest value of 16 bits that was taken for
    one of 0..65535).

    Equal bins, as many values of 16 bits or of 0..4095 as there are for each of 256 greys. Raises
    DataError where nothing says which values are black and white.
    """
    from PIL import Image

    if mode == COLOUR_16:  # PIL has kept the upper 8 bits already
        if value_range not in (None, (0, HIGHEST_16)):
            raise DataError(
                f"{printable_path(path)}: {mode} can only be read as 0..{HIGHEST_16}, data.range "
                f"is {_text(value_range)}. Convert such files to 8 bits"
            )
        highest = int(np.asarray(image.convert("RGB")).max()) << 8 | 255
        return image, [_said(mode, (0, HIGHEST_16))], 0 if value_range else highest
    values = np.asarray(image)
    known = values[np.isfinite(values)]
    if not known.size:
        raise ValueError("holds no finite number")
    changes, deepest = [], 0
    if value_range is None:
        if mode != GREY_16:
            raise needs_range(path, mode, float(known.min()), float(known.max()))
        value_range, deepest = (0, HIGHEST_16), int(values.max())
    low, high = value_range
    changes.append(_said(mode, value_range))
    step = 1 if mode != FLOAT else 0  # a whole number stands for all up to the next one
    if known.size < values.size:
        changes.append(f"with values that are no finite number, read as {low:g}")
    if known.min() < low or known.max() > high:
        changes.append("with values outside data.range, clipped")
    scaled = (values.astype(np.float64) - low) * (256 / (high - low + step))
    grey = np.floor(np.nan_to_num(scaled, nan=0, posinf=0, neginf=0)).clip(0, 255)
    return Image.fromarray(grey.astype(np.uint8)), changes, deepest


def require_known_range(paths: Sequence[str], value_range: Range | None) -> None:
    """Raise DataError when one of these files needs a range and there's none, before all are read.

    What is damaged passes.
    """
    from PIL import Image

    if value_range is not None:
        return

    spans: dict[str, list[tuple[float, float]]] = {}
    example: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(Exception), Image.open(path) as image:
            mode = deep_mode(image)
            if mode in (GREY_16, INT_32, FLOAT):
                values = np.asarray(image)
                known = values[np.isfinite(values)]
                spans.setdefault(mode, []).append((float(known.min()), float(known.max())))
                example.setdefault(mode, path)
    for mode, found in spans.items():
        low, high = min(low for low, _ in found), max(high for _, high in found)
        if mode != GREY_16 or 0 < high < LEAST_OF_16:
            where = f" in {len(found)} of {plural(len(paths), 'file')} looked at"
            raise needs_range(example[mode], mode, low, high, where)


def require_deep(paths: Sequence[str], deepest: Sequence[int]) -> None:
    """Raise DataError where files of 16 bits, all taken together, reach only dark values.

    `deepest` is each file's highest value that was taken for one of 0..65535, 0 for other files.
    """
    found = [k for k, value in enumerate(deepest) if value]
    if found and max(deepest) < LEAST_OF_16:
        where = f" in {plural(len(found), 'file')}"
        raise needs_range(paths[found[0]], "16 bits", 0, max(deepest), where)


def needs_range(path: str | Path, mode: str, low: float, high: float, where: str = "") -> DataError:
    """The error of files of which nothing says which values are black and white."""
    top = next((top for top in USUAL_TOPS if low >= 0 and high <= top), None)
    wanted = (low, high) if top is None else (0.0, float(top))
    return DataError(
        f"{printable_path(path)}: {mode}, values from {low:g} to {high:g}{where}; which of them "
        f"are black and white isn't known. Set data.range, such as data.range={_text(wanted)}, "
        "or convert the files to 8 bits"
    )


def _said(mode: str, value_range: Range) -> str:
    return f"of {mode}: {_text(value_range)} read as black and white"


def _text(value_range: Range | None) -> str:
    return "null" if value_range is None else "[" + ",".join(f"{v:.10g}" for v in value_range) + "]"
