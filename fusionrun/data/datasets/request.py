"""What `load_dataset` was asked for, as each loader of the table receives it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def say_nothing(message: str) -> None:
    """For whoever waits without looking."""


@dataclass(frozen=True)
class Request:
    root: Path  # folder of the source files
    cache_dir: Path  # folder for prepared arrays
    download: bool = False  # may missing files be fetched?
    image_size: int = 32  # pixels, height and width
    num_classes: int = 20  # synthetic only
    train_images: int = 4000  # synthetic only
    test_images: int = 1000  # synthetic only
    seed: int = 42  # synthetic only
    train_folder: str = "train"  # image_folder only: its side of `root`
    test_folder: str = "test"  # image_folder only
    # image_folder only: values of images deeper than 8 bits that are black and white
    value_range: tuple[float, float] | None = None
    progress: Callable[[str], None] = say_nothing  # told what takes long, one line each
