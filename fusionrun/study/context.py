"""What everything that works on a study's data works with: data, splits and device, opened once."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionrun.common.image_classifier import TrainedOn
from fusionrun.data.augmentation.policies import AUGMENTATIONS, Augmentation
from fusionrun.data.datasets import DataError, Dataset, Survey, load_dataset, survey_dataset
from fusionrun.data.datasets.request import say_nothing
from fusionrun.data.loader import ResidentLoader
from fusionrun.data.split_files import load_or_create_splits, load_splits
from fusionrun.data.split_notes import absent_classes
from fusionrun.data.splits import SplitRules, Splits
from fusionrun.experts import Expert
from fusionrun.study.recipe import Recipe
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task
from fusionrun.training.identity import FINGERPRINT, SPLIT, THREADS, WEIGHTS, Identity
from fusionrun.training.precision import Precision

# images; without gradients there is room for more than in training, and a GPU that is asked about
# few small images waits for its host
EVALUATION_BATCH, OF_SMALL_IMAGES, SMALL = 512, 2048, 32  # up to so many pixels a side
NOT_AUGMENTED = AUGMENTATIONS["none"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class RunContext:
    """What every task on this rank works with."""

    study: Study
    device: torch.device
    threads: int
    data: Dataset
    images: Tensor  # training images (N, 3, H, W) uint8, on the device
    labels: Tensor  # (N,) int64, on the device
    splits: Splits
    split_hash: str  # of the study's splits, also where the doctor works on less
    launch: Mapping[str, Any]  # who works here, for the manifests
    stop_requested: Callable[[], bool]
    progress: Callable[[str], None] = say_nothing  # told of passes that take long
    # in it a model's experts use the cores of a CPU that other ranks leave, which is said
    side_by_side: Callable[[nn.Module, Say], AbstractContextManager[None]] = lambda *_: (
        nullcontext()
    )
    has_company: Callable[[], bool] = lambda: False  # whether the rank has other tasks at work

    @property
    def precision(self) -> Precision:
        runtime = self.study.recipe.runtime
        return Precision.of(runtime.amp, runtime.tf32, self.device)

    def loader(
        self, indices: np.ndarray, batch_size: int, augmentation: Augmentation = NOT_AUGMENTED
    ) -> ResidentLoader:
        return self._loader(self.images, self.labels, indices, batch_size, augmentation)

    @property
    def evaluation_batch(self) -> int:
        """Images that are asked about at a time where nothing learns from them."""
        if self.device.type != "cuda":
            return EVALUATION_BATCH
        size = max(SMALL, self.data.test_images.shape[-1])
        return max(EVALUATION_BATCH, OF_SMALL_IMAGES * SMALL**2 // size**2)

    def test_loader(self, batch_size: int | None = None) -> ResidentLoader:
        images, labels = self.data.test_images, self.data.test_labels
        everything = np.arange(len(labels))
        on_device = images.to(self.device), labels.to(self.device)
        batch_size = batch_size or self.evaluation_batch
        return self._loader(*on_device, everything, batch_size, NOT_AUGMENTED)

    def _loader(
        self,
        images: Tensor,
        labels: Tensor,
        indices: np.ndarray,
        batch_size: int,
        augmentation: Augmentation,
    ) -> ResidentLoader:
        return ResidentLoader(
            images,
            labels,
            indices,
            num_classes=len(self.data.classes),
            batch_size=batch_size,
            mean=self.data.mean,
            std=self.data.std,
            augmentation=augmentation,
            channels_last=self.study.recipe.runtime.channels_last,
            progress=self.progress,
        )

    def build_expert(self, model: str, **more: Any) -> Expert:
        """As the study's, for these classes; it knows its images."""
        expert = self.study.build_expert(model, len(self.data.classes), **more)
        data = self.data
        size = data.train_images.shape[-1]
        expert.know(TrainedOn(tuple(data.classes), tuple(data.mean), tuple(data.std), size))
        return expert

    def identity(self, task: Task, starting_weights: Sequence[str] = ()) -> Identity:
        """What makes the task the experiment it is, with all that is known here."""
        evidence: dict[str, Any] = {
            FINGERPRINT: self.data.fingerprint,
            SPLIT: self.split_hash,
        }
        if starting_weights:
            evidence[WEIGHTS] = list(starting_weights)
        if self.device.type == "cpu":
            evidence[THREADS] = self.threads
        return self.study.identity(task, evidence)

    def settle(self, model: nn.Module) -> None:
        """Move `model` to the device, in the layout that its convolutions like best."""
        last = self.study.recipe.runtime.channels_last
        layout = torch.channels_last if last else torch.contiguous_format
        model.to(self.device, memory_format=layout)  # type: ignore[call-overload]


def open_context(
    study: Study,
    device: torch.device,
    threads: int,
    *,
    progress: Callable[[str], None],
    launch: Mapping[str, Any] = MappingProxyType({}),
    stop_requested: Callable[[], bool] = lambda: False,
    new_splits: bool = True,
) -> RunContext:
    """Load the study's data onto the device, its splits as `load_data` does. Raises DataError."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # from here on this process holds memory there
    deterministic = study.recipe.runtime.deterministic
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # every new tensor otherwise, against reading it before it's written, which nothing does
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # training does it where it pays back
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = study.recipe.runtime.tf32
        if not study.recipe.runtime.tf32:  # else as the process has it: off, unless asked for
            torch.backends.cuda.matmul.allow_tf32 = False
    data, splits = load_data(study, progress, new_splits=new_splits)
    return RunContext(
        study=study,
        device=device,
        threads=threads,
        data=data,
        images=data.train_images.to(device),
        labels=data.train_labels.to(device),
        splits=splits,
        split_hash=splits.hash,
        launch=launch,
        stop_requested=stop_requested,
    )


def load_data(
    study: Study, progress: Callable[[str], None], *, new_splits: bool = True
) -> tuple[Dataset, Splits]:
    """The study's data set and its splits; where none are, `new_splits` makes them.

    The notes are those of both. Raises DataError.
    """
    dataset = load_images(study, progress)
    labels = dataset.train_labels.numpy()
    if study.recipe.experts.classes == "own" and labels.max() + 1 < len(dataset.classes):
        last = dataset.classes[-1]
        raise DataError(f"experts.classes=own: the last class, {last}, has no training images")
    rules = split_rules(study.recipe)
    about = {
        "dataset_name": study.source(study.recipe.data.name),
        "fingerprint": dataset.fingerprint,
    }
    if new_splits:
        splits = load_or_create_splits(study.splits_dir, labels, rules, **about)
    else:
        splits = load_splits(study.splits_dir, labels, rules, **about)
    absent = absent_classes(labels, dataset.test_labels.numpy(), dataset.classes, splits)
    return replace(dataset, notes=(*dataset.notes, *absent)), splits


def split_rules(recipe: Recipe) -> SplitRules:
    """How the recipe wants its training set divided."""
    data = recipe.data
    return SplitRules(
        seed=data.seed,
        holdout_fraction=data.holdout_fraction,
        val_fraction=data.val_fraction,
        num_experts=recipe.experts.count,
        kind=data.split,
        shared_fraction=data.shared_fraction,
        unique_fraction=data.unique_fraction,
    )


def load_images(study: Study, progress: Callable[[str], None]) -> Dataset:
    """The study's data set. Raises DataError."""
    name, arguments = _data_arguments(study)
    dataset = load_dataset(name, **arguments, progress=progress)
    return replace(dataset, name=study.recipe.data.name)  # a plug-in's, not its file's


def survey_images(study: Study) -> Survey:
    """What `load_images` will load, in seconds: nothing is decoded. Raises DataError."""
    name, arguments = _data_arguments(study)
    return survey_dataset(name, **arguments)


def _data_arguments(study: Study) -> tuple[str, dict[str, Any]]:
    data = study.recipe.data
    return study.source(data.name), {
        "root": data.root,
        "cache_dir": data.cache_dir,
        "download": data.download,
        "image_size": data.image_size,
        "num_classes": data.num_classes,
        "train_images": data.train_images,
        "test_images": data.test_images,
        "seed": data.seed,
        "train_folder": data.train_folder,
        "test_folder": data.test_folder,
        "value_range": data.range,
    }
