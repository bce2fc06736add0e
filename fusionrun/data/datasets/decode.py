"""Image files as pixels of 8 bits, decoded by PIL in threads, block by block."""

import hashlib
import io
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fusionrun.common.cpus import cpu_limit
from fusionrun.common.text import duration, printable_path
from fusionrun.data.datasets.bit_depth import Range, deep_mode, to_8_bits
from fusionrun.data.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 1 << 26  # 67 megapixels: larger ones are skipped, decoding them could exhaust memory
BLOCK_BYTES = 1 << 22  # of pixels that a thread decodes at a time, of 32 files at most

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came of one file."""

    skipped: str = ""  # why there is no image; "": there is
    changes: tuple[str, ...] = ()  # what was done to its pixels that a person may not expect
    deepest: int = 0  # highest value of 16 bits per channel, which 0..65535 became 0..255
    digest: int = 0  # of its pixels: equal images have equal ones


def decode_images(
    paths: Sequence[str | Path],
    size: int,
    progress: Callable[[str], None],
    value_range: Range | None = None,
) -> Iterator[tuple[Pixels, list[Decoded]]]:
    """Blocks in the order of `paths`: (images (M, 3, size, size), what came of each file).

    A block has images of the files that weren't skipped alone. `value_range` says which values of
    files deeper than 8 bits are black and white. Raises DataError for a file that can't be read at
    all, and for one whose values don't say that themselves.
    """
    from PIL import Image

    step = max(1, min(32, BLOCK_BYTES // (3 * size**2)))
    starts = iter(range(0, len(paths), step))
    workers = cpu_limit()
    waiting: deque[Future[tuple[Pixels, list[Decoded]]]] = deque()
    began = said = time.monotonic()
    done = 0
    # PIL releases the GIL while it decodes and resizes, so threads are enough
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # odd metadata; the pixels are what counts

        def submit_next() -> None:
            for start in starts:
                block = paths[start : start + step]
                waiting.append(pool.submit(_decode_block, block, size, value_range))
                break

        try:
            for _ in range(2 * workers):  # no more: finished blocks wait in memory
                submit_next()
            while waiting:
                images, outcomes = waiting.popleft().result()
                submit_next()
                yield images, outcomes
                done += len(outcomes)
                now = time.monotonic()
                if done == len(paths):
                    progress(f"image_folder: {done}/{done} images")
                elif now - said > min(30.0, max(2.0, (now - began) / 10)):
                    left = duration((now - began) / done * (len(paths) - done))
                    progress(f"image_folder: {done}/{len(paths)} images, {left} left")
                    said = now
        finally:
            for future in waiting:
                future.cancel()


def _decode_block(
    paths: Sequence[str | Path], size: int, value_range: Range | None
) -> tuple[Pixels, list[Decoded]]:
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    outcomes: list[Decoded] = []
    count = 0
    for path in paths:
        outcomes.append(decode_image(path, size, images[count], value_range))
        count += not outcomes[-1].skipped
    return images[:count], outcomes


def decode_image(
    path: str | Path, size: int, out: Pixels, value_range: Range | None = None
) -> Decoded:
    """Write the image as RGB into `out` (3, size, size), unless it's skipped."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        content = Path(path).read_bytes()
    except OSError as error:  # a disk or permission problem must not shrink the data set silently
        raise DataError(
            f"{printable_path(path)}: cannot be read ({error.strerror}). Check the disk and the "
            "permissions."
        ) from error
    if not content:
        return Decoded("empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                return Decoded(f"{image.width}x{image.height} is too large")
            mode = deep_mode(image)
            # lets JPEG decode at a fraction of its size where that still covers `size`
            image.draft("RGB", (2 * size, 2 * size))
            upright: Image.Image = ImageOps.exif_transpose(image)
            changes: list[str] = []
            deepest = 0
            if mode:
                upright, changes, deepest = to_8_bits(upright, mode, value_range, path)
            rgb = _as_rgb(upright, changes)
            if getattr(image, "is_animated", False):
                changes.append("of several frames: the first is used")
            # fit = resize to cover, then crop the centre, in one resampling
            square = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
            out[:] = np.asarray(square).transpose(2, 0, 1)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Decoded("too large")
    except UnidentifiedImageError:
        return Decoded("not an image")
    except Exception as error:  # decoders of damaged files raise anything, struct.error included
        return Decoded(f"damaged: {error}")
    digest = int.from_bytes(hashlib.blake2b(out.data, digest_size=8).digest())
    return Decoded(changes=tuple(changes), deepest=deepest, digest=digest)


def _as_rgb(image: "Image", changes: list[str]) -> "Image":
    """What PIL makes of it; what is transparent keeps the colour that lies below."""
    has_alpha = image.mode in ("RGBA", "LA", "PA")
    if (has_alpha and np.asarray(image)[..., -1].min() < 255) or "transparency" in image.info:
        changes.append("with transparent parts, read as if opaque")
    elif image.mode in ("CMYK", "LAB", "HSV"):
        changes.append(f"in {image.mode}, converted to RGB")
    if image.mode == "LAB":  # which PIL converts with colour profiles only
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None  # since it's not done in place
        return converted
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
