"""Lightning: one expert as a LightningModule under its Trainer, with the defaults of both."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.bench.peers.job import Answer, Job, answered


class Expert(lightning.LightningModule):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.network = job.network()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(
            self.network(images), labels, label_smoothing=self.job.smoothing
        )
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.measure(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.measure(batch, "test")

    def measure(self, batch: tuple[Tensor, Tensor], name: str) -> None:
        images, labels = batch
        logits = self.network(images)
        self.log(f"{name}_loss", functional.cross_entropy(logits, labels))
        self.log(f"{name}_accuracy", 100 * (logits.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=self.job.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=self.job.weight_decay,
        )
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.job.epochs)]


def train(job: Job, number: int, output: Path) -> Answer:
    def loader(folder: str, *, augmented: bool = False) -> DataLoader[tuple[Tensor, int]]:
        images = job.images(folder, augmented=augmented)
        return DataLoader(
            images,
            job.batch_size,
            shuffle=augmented,
            num_workers=job.workers,
            persistent_workers=job.workers > 0,
        )

    expert = Expert(job)
    trainer = lightning.Trainer(
        max_epochs=job.epochs,
        accelerator="gpu" if job.device == "cuda" else job.device,
        devices=1,
        gradient_clip_val=job.clip,
        default_root_dir=output,
    )
    training = loader(job.experts[number], augmented=True)
    trainer.fit(expert, training, loader(job.validation))
    loss = trainer.callback_metrics["val_loss"].item()
    (found,) = trainer.test(expert, loader(job.test))
    return Answer(found["test_accuracy"], loss)


if __name__ == "__main__":
    answered(train)
