"""What a data set will be and need, from its listing or its files' headers: nothing is decoded."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from fusionrun.common.memory import free_host_memory
from fusionrun.data.errors import DataError


@dataclass(frozen=True)
class Survey:
    """Of a data set that isn't loaded; None is what only loading it tells."""

    name: str
    train_images: int | None = None  # at most: files that turn out not to be images will go
    test_images: int | None = None
    classes: tuple[str, ...] | None = None
    image_size: int | None = None  # side in pixels
    shared: bool = True  # mapped by all processes of a machine; else each holds its own
    ready: bool = False  # nothing has to be fetched or decoded first
    cache_bytes: int = 0  # that preparing it will write to its cache
    cache_dir: Path | None = None  # where
    notes: tuple[str, ...] = ()
    class_count: int | None = None  # where the names are still unknown
    fingerprint: str | None = None  # as the loaded set's, where its cache says so

    @property
    def num_classes(self) -> int | None:
        return self.class_count if self.classes is None else len(self.classes)

    @property
    def train_bytes(self) -> int | None:
        """Of the training images, (N, 3, H, W) uint8: what the training device will hold."""
        return self._bytes(self.train_images)

    @property
    def test_bytes(self) -> int | None:
        return self._bytes(self.test_images)

    def _bytes(self, count: int | None) -> int | None:
        if count is None or self.image_size is None:
            return None
        return image_bytes(count, self.image_size)


def image_bytes(count: int, image_size: int) -> int:
    """Of `count` images (3, image_size, image_size) uint8."""
    return count * 3 * image_size**2


def require_memory(name: str, count: int, image_size: int) -> None:
    """Raise DataError when `count` images don't fit into the memory this process may have."""
    free, need = free_host_memory(), image_bytes(count, image_size)
    if free is None or need <= free:
        return
    fitting = int(image_size * (0.8 * free / need) ** 0.5) // 8 * 8
    smaller = f"data.image_size={fitting}, which would fit" if fitting >= 8 else "fewer images"
    raise DataError(
        f"{name}: {count:,} images with data.image_size={image_size} need {_mib(need)} of memory, "
        f"but {_mib(free)} are free (of the machine, or of what a container or ulimit -v "
        f"allows). Use {smaller}, or more memory."
    )


def require_disk(name: str, need: int, cache_dir: Path) -> None:
    """Raise DataError when `need` bytes don't fit on the disk of `cache_dir`."""
    place = cache_dir.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:  # what can't be asked may still be writable
        return
    if need > free:
        raise DataError(
            f"{cache_dir}: {name} will be prepared here in {_mib(need)}, but {_mib(free)} are "
            "free. Set data.cache_dir to a folder on a larger disk, or a smaller data.image_size."
        )


def _mib(count: float) -> str:
    mib = count / 2**20
    return f"{mib:,.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB"
