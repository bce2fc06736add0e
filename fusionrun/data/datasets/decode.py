"""Image files as one array of pixels, decoded by PIL in threads."""

import io
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusionrun.data.errors import DataError

MAX_PIXELS = 1 << 26  # 67 megapixels: larger ones are skipped, decoding them could exhaust memory
CHUNK = 128  # files per task of the thread pool


def decode_images(
    paths: list[Path], size: int, progress: Callable[[str], None]
) -> tuple[npt.NDArray[np.uint8], list[str | None]]:
    """Decode into one array (N, 3, size, size); per file None, or why it was skipped.

    Raises DataError for a file that can't be read at all.
    """
    from PIL import Image

    images = np.zeros((len(paths), 3, size, size), dtype=np.uint8)
    starts = range(0, len(paths), CHUNK)

    def decode_chunk(start: int) -> list[str | None]:
        block = enumerate(paths[start : start + CHUNK], start)
        return [decode_image(path, size, images[index]) for index, path in block]

    reasons: list[str | None] = []
    said = time.monotonic()
    # PIL releases the GIL while it decodes and resizes, so threads are enough
    with warnings.catch_warnings(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # odd metadata; the pixels are what counts
        for chunk in pool.map(decode_chunk, starts):
            reasons += chunk
            if time.monotonic() - said > 2 or len(reasons) == len(paths):
                progress(f"image_folder: {len(reasons)}/{len(paths)} images")
                said = time.monotonic()
    return images, reasons


def decode_image(path: Path, size: int, out: npt.NDArray[np.uint8]) -> str | None:
    """Write the image as RGB into `out` (3, size, size), or return why it is skipped."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        content = path.read_bytes()
    except OSError as error:  # a disk or permission problem must not shrink the data set silently
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Check the disk and the permissions."
        ) from error
    if not content:
        return "empty"
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width}x{image.height} is too large"
            # lets JPEG decode at a fraction of its size where that still covers `size`
            image.draft("RGB", (2 * size, 2 * size))
            upright: Image.Image = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
                grey = (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                upright = Image.fromarray(grey)
            elif upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            rgb = upright.convert("RGB")
            # fit = resize to cover, then crop the centre, in one resampling
            square = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
            out[:] = np.asarray(square).transpose(2, 0, 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "too large"
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # decoders of damaged files raise anything, struct.error included
        return f"damaged: {error}"
    return None
