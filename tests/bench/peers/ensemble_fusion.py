"""Ensemble-PyTorch: its FusionClassifier, as many networks as the row has experts in one process.

They learn from the mean of their logits, on as many images as each of the row's experts sees; no
fusion module is learned. It clips no gradients.
"""

import logging
from pathlib import Path

from torch import Tensor
from torch.nn import CrossEntropyLoss
from torch.utils.data import DataLoader
from torchensemble import FusionClassifier

from tests.bench.peers.job import Answer, Classifier, Job, answered


def train(job: Job, number: int, output: Path) -> Answer:
    def loader(folder: str, *, augmented: bool = False) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            job.images(folder, augmented=augmented),
            job.batch_size,
            shuffle=augmented,
            num_workers=job.workers,
            persistent_workers=job.workers > 0,
        )

    logging.basicConfig(filename=output / "log", level=logging.INFO)
    ensemble = FusionClassifier(
        estimator=Classifier,
        n_estimators=len(job.experts),
        estimator_args={"model": job.model, "classes": job.classes, **job.arguments},
        cuda=job.device == "cuda",
    )
    ensemble.set_criterion(CrossEntropyLoss(label_smoothing=job.smoothing))
    ensemble.set_optimizer(
        "SGD", lr=job.lr, momentum=0.9, nesterov=True, weight_decay=job.weight_decay
    )
    ensemble.set_scheduler("CosineAnnealingLR", T_max=job.epochs)
    ensemble.fit(
        loader(job.experts[number], augmented=True),
        epochs=job.epochs,
        test_loader=loader(job.validation),
        save_dir=str(output),
    )
    return Answer(ensemble.evaluate(loader(job.test)))


if __name__ == "__main__":
    answered(train)
