"""The studies that are timed: images as PNG files, our recipe, and the same as a peer's job."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from fusionrun.data.datasets import Dataset, load_dataset
from fusionrun.study.context import load_data
from fusionrun.study.defaults import HEAD_CLIP
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from tests.bench.peers.job import JOB, Job

CLASSES = 10
POOL = 1920  # images; an expert sees 55 % of them, 33 batches
BATCH = 32
MODEL, FUSION = "resnet", "multiplicative"
LR, ROW_LR, WEIGHT_DECAY, SMOOTHING = 0.1, 1e-4, 1e-4, 0.1


@dataclass(frozen=True)
class Size:
    """Of a study of four ResNet-18 experts and a row of one epoch."""

    width: int  # of the network; 64 is the published one
    epochs: int  # of the experts
    holdout: int  # images, nine of ten of which the row trains on
    test: int  # images


def make(folder: Path, size: Size, device: str, workers: int = 0) -> tuple[Path, Job]:
    """(our recipe, the peers' job), whose images and files lie in `folder`."""
    drawn = load_dataset(
        "synthetic",
        root=folder,
        num_classes=CLASSES,
        train_images=POOL + size.holdout,
        test_images=size.test,
    )
    files = dict(save_images(drawn, folder / "images"))
    arguments = {"width": size.width}
    tree = {
        "output_dir": str(folder / "out"),
        "rows": [{"model": MODEL, "fusion": FUSION}],
        "models": {MODEL: arguments},
        "data": {
            "name": "image_folder",
            "root": str(folder / "images"),
            "cache_dir": str(folder / "cache"),
            "holdout_fraction": size.holdout / (POOL + size.holdout),
        },
        "experts": {
            "epochs": size.epochs,
            "batch_size": BATCH,
            "lr": LR,
            "weight_decay": WEIGHT_DECAY,
            "label_smoothing": SMOOTHING,
            "augmentation": "crop_flip",
            "mixing": "none",
        },
        "fusion": {
            "epochs": 1,
            "batch_size": BATCH,
            "experts_lr": ROW_LR,
            "fusion_lr": ROW_LR,
            "weight_decay": WEIGHT_DECAY,
            "label_smoothing": SMOOTHING,
            "augmentation": "crop_flip",
            "mixing": "none",
        },
        "runtime": {"device": device},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    aside = [f"{name}={folder / 'aside'}" for name in ("output_dir", "data.cache_dir")]
    study = plan_study(load_recipe(recipe, aside), "peers")
    data, splits = load_data(study, lambda message: None)

    def part(name: str, indices: np.ndarray) -> str:
        """A folder of these training images."""
        for index in indices:
            file = files[data.train_images[index].numpy().tobytes()]
            target = folder / name / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
        return str(folder / name)

    parts = {name: part(name, indices) for name, indices in splits.parts.items()}
    shutil.rmtree(folder / "aside")
    job = Job(
        experts=[parts[f"expert_{k}_train"] for k in range(len(splits.expert_train))],
        holdout=parts["fusion_train"],
        validation=parts["fusion_val"],
        test=str(folder / "images/test"),
        mean=list(data.mean),
        std=list(data.std),
        classes=CLASSES,
        model=MODEL,
        arguments=arguments,
        epochs=size.epochs,
        batch_size=BATCH,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        smoothing=SMOOTHING,
        clip=HEAD_CLIP,
        fusion=FUSION,
        row_lr=ROW_LR,
        device=device,
        workers=workers,
    )
    (folder / JOB).write_text(json.dumps(dataclasses.asdict(job)))
    return recipe, job


def save_images(data: Dataset, folder: Path) -> Iterator[tuple[bytes, Path]]:
    """Write train/<class>/*.png and test/<class>/*.png; yields each image's bytes and file."""
    for part in ("train", "test"):
        images, labels = (getattr(data, f"{part}_{what}").numpy() for what in ("images", "labels"))
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / part / f"class{label}" / f"{number:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
            yield image.tobytes(), path
