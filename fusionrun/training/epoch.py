"""What an epoch comes to, which one is the best, and who is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# what resume states of version 0.1 call the same
RENAMED = {"rates": "learning_rates", "objective": "loss", "hits": "correct"}
SPARE = 0.1  # of a GPU's memory stays free beside the best epoch's weights


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

    def is_better_than(self, other: "EpochMetrics", *, by_averaging: bool = False) -> bool:
        """More accurate on validation, or as accurate with a smaller loss (small sets tie often).

        Both of the first head or, `by_averaging`, of the experts: the accuracy of the mean of their
        probabilities, and the sum of their losses.
        """
        return self._score(by_averaging) > other._score(by_averaging)

    def _score(self, by_averaging: bool) -> tuple[float, float]:
        if not by_averaging:
            return self.val_accuracies[0], -self.val_losses[0]
        averaged = self.val_averaged
        return -1.0 if averaged is None else averaged, -sum(self.val_losses[1:])

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
    """The epoch that validation selects, with its weights and its first head's numbers.

    They stay on the device that trains while it has room to spare, and there nobody waits for them.
    """

    epoch: int = 0
    val_accuracy: float = -1.0
    val_loss: float = float("inf")
    state: dict[str, Tensor] = field(default_factory=dict)
    has_place: bool = field(default=False, init=False)  # the weights; not when read from a file

    def become(self, metrics: EpochMetrics, model: nn.Module) -> None:
        """That epoch, with the model's weights as they are now.

        Waits for a GPU once, where the weights find no room on it.
        """
        weights = model.state_dict()
        if not self.has_place:
            self.state, self.has_place = room_for(weights), True
        self.epoch = metrics.epoch
        self.val_accuracy, self.val_loss = metrics.val_accuracies[0], metrics.val_losses[0]
        waits = False
        for name, value in weights.items():
            self.state[name].copy_(value.detach(), non_blocking=True)
            waits |= value.is_cuda and not self.state[name].is_cuda
        if waits:
            torch.cuda.synchronize()

    def leave_device(self) -> bool:
        """Whether there were weights on it; they're on the CPU now."""
        was_there = any(value.is_cuda for value in self.state.values())
        if was_there:
            there, self.state = self.state, on_host(self.state)
            for name, value in there.items():
                self.state[name].copy_(value)
        return was_there

    def stored(self) -> dict[str, Any]:
        """For a resume state."""
        return {
            name: getattr(self, name) for name in ("epoch", "val_accuracy", "val_loss", "state")
        }


def room_for(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like these where they lie, or on the host where a GPU has little to spare."""
    on_gpu = [value for value in weights.values() if value.is_cuda]
    if on_gpu:
        free, total = torch.cuda.mem_get_info(on_gpu[0].device)
        if free - sum(value.nbytes for value in on_gpu) < SPARE * total:
            return on_host(weights)
    try:
        return {name: torch.empty_like(value) for name, value in weights.items()}
    except torch.OutOfMemoryError:
        return on_host(weights)


def on_host(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like these there; pinned memory is several times faster to copy to from a GPU."""
    return {
        name: torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        for name, value in weights.items()
    }


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
        """What a step of that many images came to; who takes it counts them in `images`."""
        self.losses += losses.detach() * images
        self.correct += correct

    def begin_epoch(self) -> None:
        self.losses.zero_()
        self.correct.zero_()
        self.images = 0

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
