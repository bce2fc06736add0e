"""What a peer's program is asked to train, and what it answers; shared by all of them.

Each is `python -m tests.bench.peers.PROGRAM JOB NUMBER FOLDER`: a file that holds a `Job`, the
expert to train (ROW: the row), and where it writes: into FOLDER/NUMBER.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionrun.experts import build_expert

JOB, ANSWER = "job.json", "answer.json"
ROW = -1  # in place of an expert's number
SIZE, PADDING = 32, 4  # pixels


@dataclass(frozen=True)
class Job:
    """A study as peers see it. Folders hold <class>/<image>.png."""

    experts: list[str]  # folder of the images of each
    holdout: str  # of those that the row trains on
    validation: str
    test: str
    mean: list[float]
    std: list[float]
    classes: int
    model: str
    arguments: dict[str, Any]  # of the architecture
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    smoothing: float
    clip: float  # largest norm of the gradient
    fusion: str  # a row of one epoch, batches and settings as the experts'
    row_lr: float
    device: str
    workers: int  # that load a process's images; 0: itself

    def network(self) -> nn.Module:
        return Classifier(self.model, self.classes, **self.arguments)

    def augmentations(self) -> list[Callable[[Any], Any]]:
        """Of a PIL image, as fusionrun's crop_flip."""
        from torchvision import transforms

        return [
            transforms.RandomCrop(SIZE, PADDING, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
        ]

    def images(self, folder: str, *, augmented: bool = False) -> Any:
        """torchvision's data set of a folder."""
        from torchvision import datasets, transforms

        steps = [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        before = self.augmentations() if augmented else []
        return datasets.ImageFolder(folder, transforms.Compose([*before, *steps]))


class Classifier(nn.Module):
    """An expert's logits alone, (N, C), as other programs expect them."""

    def __init__(self, model: str, classes: int, **arguments: Any) -> None:
        super().__init__()
        self.expert = build_expert(model, classes, **arguments)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.expert(images)[1]
        return logits


@dataclass(frozen=True)
class Answer:
    """Of one network, or of an ensemble."""

    accuracy: float  # on the test set, in percent
    loss: float | None = None  # of the last epoch's validation: plain cross-entropy


def answered(train: Callable[[Job, int, Path], Answer]) -> None:
    """What a program does with its command line."""
    job, number, outputs = sys.argv[1:]
    folder = Path(outputs, number)
    folder.mkdir()
    torch.manual_seed(int(number))
    answer = train(Job(**json.loads(Path(job).read_text())), int(number), folder)
    (folder / ANSWER).write_text(json.dumps(asdict(answer)))
