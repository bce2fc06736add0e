"""What torchrun starts to measure start-up: `FOLDER bare CACHE`, or `FOLDER fusionrun RECIPE`."""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path, program: str, source: Path) -> None:
    if program == "bare":
        load_bare(source)
        say_end(folder)
    sys.argv = ["fusionrun", "train", str(source), f"output_dir={folder / 'out'}"]
    stop_after_first_step(folder)
    runpy.run_module("fusionrun", run_name="__main__")


def load_bare(cache: Path) -> None:
    """The least that any such program does: torch, gloo, the same files."""
    import numpy as np
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for path in sorted(cache.glob("*.npy")):
        torch.from_numpy(np.load(path, mmap_mode="c" if "images" in path.name else None))


def stop_after_first_step(folder: Path) -> None:
    """Let the trainer end its process once a step is done."""
    from fusionrun.training.trainer import Trainer

    step = Trainer.train_step

    def first_step(self: Trainer, batch: Any) -> Any:
        step(self, batch).tolist()  # waits for the device
        say_end(folder)

    Trainer.train_step = first_step  # type: ignore[method-assign]


def say_end(folder: Path) -> None:
    (folder / f"{os.getpid()}.end").write_text(repr(time.time()))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
