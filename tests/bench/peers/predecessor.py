"""The predecessor's way: a script for an expert, one for a row, written from what is known of it.

Images in memory, torchvision's transforms in a DataLoader, float32, numbers read after every step,
a row's experts evaluated a second time by themselves (`tests.bench.reference`), the best weights
saved whenever validation improves. The row begins with the experts whose folders lie beside its
own.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.datasets import ImageFolder

from fusionrun.data.augmentation.policies import AUGMENTATIONS
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.training.optim import Group, cosine_to_tenth
from tests.bench import reference
from tests.bench.peers.job import ROW, Answer, Job, answered

BEST = "best.pth"


def train(job: Job, number: int, output: Path) -> Answer:
    if number == ROW:
        return train_row(job, output)
    return train_expert(job, number, output)


def train_expert(job: Job, number: int, output: Path) -> Answer:
    network = job.network().to(job.device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=job.lr, momentum=0.9, nesterov=True, weight_decay=job.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.epochs)
    training = batches(job, job.experts[number], augmented=True)
    validation = batches(job, job.validation)
    log, best = [], -1.0
    for epoch in range(job.epochs):
        network.train()
        for images, labels in training:
            images, labels = images.to(job.device), labels.to(job.device)
            optimizer.zero_grad()
            logits = network(images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=job.smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), job.clip)
            optimizer.step()
            log.append([epoch, loss.item(), (logits.argmax(dim=1) == labels).sum().item()])
        schedule.step()
        val_loss, accuracy = evaluate(job, network, validation)
        if accuracy > best:
            best = accuracy
            torch.save(network.state_dict(), output / BEST)
    write(output / "log.csv", log)
    network.load_state_dict(torch.load(output / BEST, weights_only=True))
    return Answer(evaluate(job, network, batches(job, job.test))[1], val_loss)


def train_row(job: Job, output: Path) -> Answer:
    experts = [job.network() for _ in job.experts]
    for number, expert in enumerate(experts):
        path = output.parent / str(number) / BEST
        expert.load_state_dict(torch.load(path, weights_only=True))
    experts = [expert.expert for expert in experts]
    fusion = build_fusion(job.fusion, len(experts), experts[0].feature_dim)
    model = FusionModel(experts, fusion, job.classes)
    group = Group("", [], job.row_lr, cosine_to_tenth, job.clip)
    trainer = reference.ReferenceTrainer(
        model,
        [group] * 3,
        weight_decay=job.weight_decay,
        smoothing=job.smoothing,
        device=torch.device(job.device),
    )
    log = []
    trainer.model.train()
    for images, labels in batches(job, job.holdout, augmented=True):
        log.append(trainer.step((images, labels, labels, 1.0)))
    losses, _ = trainer.evaluate(batches(job, job.validation))
    torch.save(trainer.model.state_dict(), output / BEST)
    write(output / "log.csv", log)
    _, accuracies = trainer.evaluate(batches(job, job.test))
    return Answer(accuracies[0], losses[0])


def batches(job: Job, folder: str, *, augmented: bool = False) -> reference.Batches:
    """Of a folder, whose images are read into memory first."""
    images, labels = [], []
    for path, label in ImageFolder(folder).samples:
        images.append(np.asarray(Image.open(path)).transpose(2, 0, 1))
        labels.append(label)
    augmentation = AUGMENTATIONS["crop_flip"] if augmented else None
    dataset = reference.Images(
        np.stack(images), np.array(labels), reference.transform(augmentation, job.mean, job.std)
    )
    return reference.loader(dataset, job.batch_size, workers=job.workers, shuffle=augmented)


@torch.no_grad()
def evaluate(job: Job, network: nn.Module, batches: reference.Batches) -> tuple[float, float]:
    """(mean cross-entropy, accuracy in percent)."""
    network.eval()
    loss, hits, count = 0.0, 0, 0
    for images, labels in batches:
        images, labels = images.to(job.device), labels.to(job.device)
        logits = network(images)
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        hits += int((logits.argmax(dim=1) == labels).sum().item())
        count += len(labels)
    return loss / count, 100 * hits / count


def write(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    answered(train)
