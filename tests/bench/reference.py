"""The other side: how such training is usually written, without mistakes and without tricks.

Per-sample torchvision transforms on PIL images, as its data sets yield them, in a DataLoader;
float32, contiguous tensors, three AdamW with torch's defaults, numbers read after every step, and
an evaluation that runs the experts a second time to get theirs. The networks are the project's
own, so nothing but the way they are run differs.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from fusionrun.data.augmentation.policies import Augmentation
from fusionrun.fusions import FusionModel
from fusionrun.training.optim import Group

Batches = DataLoader[tuple[Tensor, int]]
Transform = Callable[[Any], Tensor]  # of a PIL image


class Images(Dataset[tuple[Tensor, int]]):
    """Images (N, 3, H, W) uint8 in host memory, one at a time through `transform`."""

    def __init__(
        self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], transform: Transform
    ) -> None:
        from PIL import Image  # as torchvision: what training itself needs imports neither

        self._to_image = Image.fromarray
        self._images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))  # as PIL wants them
        self._labels = labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._to_image(self._images[index])), self._labels[index]


def transform(
    augmentation: Augmentation | None, mean: Sequence[float], std: Sequence[float]
) -> Transform:
    """The torchvision pipeline that `augmentation` stands for; None: no augmentation."""
    from torchvision import transforms

    start: list[Callable[..., object]] = []
    end: list[Callable[..., object]] = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    if augmentation is not None:
        policies = {
            "none": [],
            "color_jitter": [transforms.ColorJitter(0.2, 0.2, 0.2, 0.1)],
            "randaugment": [transforms.RandAugment(augmentation.num_ops, augmentation.magnitude)],
            "trivialaugment": [transforms.TrivialAugmentWide()],
        }
        start = [
            transforms.RandomCrop(32, augmentation.crop_padding, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(augmentation.flip),
            *policies[augmentation.policy],
        ]
        if augmentation.erasing:
            end.append(transforms.RandomErasing(augmentation.erasing))
    pipeline: Transform = transforms.Compose([*start, *end])
    return pipeline


def loader(dataset: Images, batch_size: int, *, workers: int, shuffle: bool) -> Batches:
    """The usual DataLoader; workers stay alive over epochs, the faster of both ways."""
    return DataLoader(
        dataset,
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


Mixed = tuple[Tensor, Tensor, Tensor, float]  # images, labels, the partners' labels, own weight


def cutmix(images: Tensor, labels: Tensor, rng: np.random.Generator) -> Mixed:
    """CutMix (Yun et al. 2019) with alpha 1: one box, weight and permutation for the batch."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - float(rng.beta(1.0, 1.0)))
    rows, columns = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - rows // 2, 0), min(y + rows // 2, height)
    left, right = max(x - columns // 2, 0), min(x + columns // 2, width)
    partner = torch.randperm(len(images))
    images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return images, labels, labels[partner], weight


def training_batches(batches: Batches, rng: np.random.Generator) -> Iterator[Mixed]:
    """One epoch."""
    for images, labels in batches:
        yield cutmix(images, labels, rng)


class ReferenceTrainer:
    """A row trained the usual way; it starts as a copy of `model`, with the same `groups`.

    Smoothing, rates, weight decay and the clipping of each group are the caller's, so that both
    sides compute the same numbers.
    """

    def __init__(
        self,
        model: FusionModel,
        groups: Sequence[Group],
        *,
        weight_decay: float,
        smoothing: float,
        device: torch.device,
    ) -> None:
        self.model = copy.deepcopy(model).to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._device = device
        self._smoothing = smoothing
        parts: Sequence[nn.Module] = (
            self.model.experts,
            self.model.fusion,
            self.model.global_head,
        )
        self._parts = [
            (list(part.parameters()), g.clip) for part, g in zip(parts, groups, strict=True)
        ]
        self._optimizers = [
            torch.optim.AdamW(parameters, lr=group.lr, weight_decay=weight_decay)
            for (parameters, _), group in zip(self._parts, groups, strict=True)
        ]
        self.hits = 0  # of the fused head

    def step(self, batch: Mixed) -> list[float]:
        """One update of the weights; the loss of every head."""
        images, labels, others, weight = batch
        images, labels = images.to(self._device), labels.to(self._device)
        others = others.to(self._device)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        output = self.model(images)
        heads = [output.logits, *output.expert_logits.unbind(1)]
        losses = [self._loss(logits, labels, others, weight) for logits in heads]
        sum(losses[1:], losses[0]).backward()  # type: ignore[no-untyped-call]
        for parameters, clip in self._parts:
            nn.utils.clip_grad_norm_(parameters, clip)
        for optimizer in self._optimizers:
            optimizer.step()
        self.hits += int((output.logits.argmax(dim=1) == labels).sum().item())
        return [loss.item() for loss in losses]

    def _loss(self, logits: Tensor, labels: Tensor, others: Tensor, weight: float) -> Tensor:
        own = functional.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        other = functional.cross_entropy(logits, others, label_smoothing=self._smoothing)
        return weight * own + (1 - weight) * other

    def train_epoch(self, batches: Batches, rng: np.random.Generator) -> None:
        self.model.train()
        for batch in training_batches(batches, rng):
            self.step(batch)

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> tuple[list[float], list[float]]:
        """(mean loss, accuracy in percent) of the fused head, then of each expert by itself."""
        self.model.eval()
        fused = self._evaluate(batches, lambda images: [self.model(images).logits])
        experts = self._evaluate(
            batches, lambda images: [expert(images)[1] for expert in self.model.experts]
        )
        return fused[0] + experts[0], fused[1] + experts[1]

    def _evaluate(
        self, batches: Batches, forward: Callable[[Tensor], list[Tensor]]
    ) -> tuple[list[float], list[float]]:
        losses: dict[int, float] = {}
        hits: dict[int, int] = {}
        count = 0
        for images, labels in batches:
            images, labels = images.to(self._device), labels.to(self._device)
            count += len(labels)
            for head, logits in enumerate(forward(images)):
                loss = functional.cross_entropy(logits, labels).item() * len(labels)
                right = int((logits.argmax(dim=1) == labels).sum().item())
                losses[head] = losses.get(head, 0.0) + loss
                hits[head] = hits.get(head, 0) + right
        means = [loss / count for loss in losses.values()]
        return means, [100 * right / count for right in hits.values()]
