"""What an epoch comes to, which one is the best, and who is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# what resume states of version 0.1 call the same
RENAMED = {"rates": "learning_rates", "objective": "loss", "hits": "correct"}


@dataclass(frozen=True)
class EpochMetrics:
    """One finished epoch; every number a mean over it. Heads: the fused one, then the experts."""

    epoch: int  # from 1
    learning_rates: dict[str, float]  # of each parameter group
    loss: float  # the training loss: weighted sum over heads, with label smoothing
    train_losses: list[float]  # per head
    train_accuracies: list[float]  # percent, per head
    val_losses: list[float]  # per head, plain cross-entropy
    val_accuracies: list[float]  # percent, per head
    images: int
    train_seconds: float
    seconds: float  # with validation
    timestamp: str  # ISO 8601, UTC
    # percent, of the mean of the experts' probabilities; None: no experts, or an older state
    val_averaged: float | None = None

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> "EpochMetrics":
        """Of a resume state."""
        return cls(**renamed(stored))

    @property
    def gain_over_averaging(self) -> float | None:
        """Points of the fused head on validation over the mean of the experts' probabilities."""
        averaged = self.val_averaged
        return None if averaged is None else self.val_accuracies[0] - averaged

    @property
    def validation_seconds(self) -> float:
        return self.seconds - self.train_seconds

    @property
    def images_per_second(self) -> float:
        return self.images / self.train_seconds if self.train_seconds else 0.0


@dataclass(frozen=True)
class Progress:
    """Where a running epoch stands."""

    epoch: int  # completed epochs
    step: int
    steps: int
    loss: float
    train_accuracy: float  # percent, first head
    images_per_second: float
    eta_seconds: float  # to the end of the last epoch
    validation_seconds: float  # of an epoch: measured, before there was one expected


@dataclass
class BestEpoch:
    """The epoch that validation selects, with its weights on the CPU."""

    epoch: int = 0
    val_accuracy: float = -1.0
    val_loss: float = float("inf")
    state: dict[str, Tensor] = field(default_factory=dict)

    def is_beaten_by(self, metrics: EpochMetrics) -> bool:
        """More accurate, or as accurate with a smaller loss (small validation sets tie often)."""
        accuracy, loss = metrics.val_accuracies[0], metrics.val_losses[0]
        return (accuracy, -loss) > (self.val_accuracy, -self.val_loss)

    def become(self, metrics: EpochMetrics, model: nn.Module) -> None:
        """That epoch, with the model's weights as they are now; waits for a GPU once."""
        self.epoch = metrics.epoch
        self.val_accuracy, self.val_loss = metrics.val_accuracies[0], metrics.val_losses[0]
        weights, on_gpu = model.state_dict(), False
        for name, value in weights.items():
            if name not in self.state:  # pinned memory is several times faster to copy to
                self.state[name] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self.state[name].copy_(value.detach(), non_blocking=True)
            on_gpu |= value.is_cuda
        if on_gpu:
            torch.cuda.synchronize()


class Reporter(Protocol):
    """What the loop tells the world; it knows no logger."""

    def progress(self, progress: Progress) -> None: ...

    def epoch(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None: ...

    def resumed(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None: ...

    def message(self, text: str) -> None: ...


class Meter:
    """Sums over an epoch, kept on the device: adding to them waits for nothing."""

    def __init__(self, head_weights: Tensor) -> None:
        self.losses = torch.zeros_like(head_weights, dtype=torch.float64)  # (H,)
        self.correct = torch.zeros_like(self.losses)  # (H,)
        self.images = 0
        self._head_weights = head_weights

    def add(self, losses: Tensor, correct: Tensor, images: int) -> None:
        self.losses += losses.detach() * images
        self.correct += correct
        self.images += images

    def means(self) -> tuple[float, list[float], list[float]]:
        """(weighted loss, every head's loss, its accuracy in percent); waits for a GPU once."""
        count = max(self.images, 1)
        weights, sums, correct = torch.stack(
            [self._head_weights.double(), self.losses, self.correct]
        ).tolist()
        losses = [each / count for each in sums]
        loss = sum(weight * each for weight, each in zip(weights, losses, strict=True))
        return loss, losses, [100 * each / count for each in correct]

    def state(self) -> dict[str, Any]:
        return {
            "losses": self.losses.tolist(),
            "correct": self.correct.tolist(),
            "images": self.images,
        }

    def restore(self, state: dict[str, Any]) -> None:
        state = renamed(state)
        self.losses.copy_(torch.tensor(state["losses"], dtype=torch.float64))
        self.correct.copy_(torch.tensor(state["correct"], dtype=torch.float64))
        self.images = state["images"]


def renamed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a resume state under today's names."""
    return {RENAMED.get(name, name): value for name, value in stored.items()}
