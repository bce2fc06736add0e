"""What `load_dataset` was asked for, as each loader of the table receives it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    root: Path  # folder of the source files
    cache_dir: Path  # folder for prepared arrays
    download: bool  # may missing files be fetched?
    image_size: int  # pixels, height and width
    num_classes: int  # synthetic only
    train_images: int  # synthetic only
    test_images: int  # synthetic only
    seed: int  # synthetic only
    progress: Callable[[str], None]  # told what takes long, one line each
