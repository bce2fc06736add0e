"""timm: one expert by timm's parts, put together as its train.py does, which its wheel leaves out.

Where they differ from that script's defaults they are the study's: small images cropped and
flipped, SGD at its rates.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm import utils
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import create_model, register_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from tests.bench.peers.job import SIZE, Answer, Job, answered

LOG_INTERVAL = 50  # its default

log = logging.getLogger("train")


@register_model
def expert(*, job: Job, **of_pretrained: Any) -> nn.Module:
    return job.network()


def train(job: Job, number: int, output: Path) -> Answer:
    utils.setup_default_logging(log_path=str(output / "log"))
    utils.random_seed(number, 0)
    device = torch.device(job.device)
    model = create_model("expert", job=job).to(device)
    optimizer = create_optimizer_v2(
        model, "sgd", lr=job.lr, weight_decay=job.weight_decay, filter_bias_and_bn=False
    )
    training, validation, test = (
        loader(job, folder, device, is_training=folder == job.experts[number])
        for folder in (job.experts[number], job.validation, job.test)
    )
    scheduler, epochs = create_scheduler_v2(
        optimizer, "cosine", num_epochs=job.epochs, updates_per_epoch=len(training)
    )
    saver = utils.CheckpointSaver(
        model, optimizer, checkpoint_dir=str(output), recovery_dir=str(output)
    )
    loss = LabelSmoothingCrossEntropy(job.smoothing)
    for epoch in range(epochs):
        trained = train_epoch(model, training, optimizer, loss, epoch, job.clip)
        found = evaluate(model, validation)
        scheduler.step(epoch + 1, found["top1"])
        utils.update_summary(epoch, {"loss": trained}, found, output / "summary.csv")
        saver.save_checkpoint(epoch, metric=found["top1"])
    return Answer(evaluate(model, test)["top1"], found["loss"])


def loader(job: Job, folder: str, device: torch.device, *, is_training: bool) -> Any:
    loaded = create_loader(
        create_dataset("", root=folder, is_training=is_training),
        input_size=(3, SIZE, SIZE),
        batch_size=job.batch_size,
        is_training=is_training,
        crop_pct=1.0,
        mean=job.mean,
        std=job.std,
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        device=device,
    )
    if is_training:  # random resized crops are for large images
        steps = loaded.dataset.transform.transforms
        loaded.dataset.transform.transforms = [*job.augmentations(), steps[-1]]
    return loaded


def train_epoch(
    model: nn.Module,
    batches: Any,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    epoch: int,
    clip: float,
) -> float:
    losses = utils.AverageMeter()
    model.train()
    for step, (images, labels) in enumerate(batches):
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        utils.dispatch_clip_grad(model.parameters(), value=clip)
        optimizer.step()
        losses.update(loss.item(), len(labels))
        if step % LOG_INTERVAL == 0 or step == len(batches) - 1:
            log.info(f"Train: {epoch} [{step:>4d}/{len(batches)}]  Loss: {losses.avg:#.3g}")
    return float(losses.avg)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Any) -> dict[str, float]:
    losses, top1 = utils.AverageMeter(), utils.AverageMeter()
    model.eval()
    for images, labels in batches:
        logits = model(images)
        losses.update(nn.functional.cross_entropy(logits, labels).item(), len(labels))
        top1.update(utils.accuracy(logits, labels)[0].item(), len(labels))
    return {"loss": losses.avg, "top1": top1.avg}


if __name__ == "__main__":
    answered(train)
