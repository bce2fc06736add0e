"""The loop that trains an expert or a row: the same for both, over H heads at once."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusionrun.common.seeds import derive_seed
from fusionrun.data.loader import Batch, ResidentLoader
from fusionrun.fusions import FusionOutput
from fusionrun.training.checkpoint import ResumeFile
from fusionrun.training.errors import StopRequested, TaskError
from fusionrun.training.identity import THREADS, Identity
from fusionrun.training.losses import head_hits, head_losses
from fusionrun.training.optim import Group, clip_gradients, load_optimizer, set_rates

PULSE_SECONDS = 1.0  # how often a running epoch's numbers are read from the device


@dataclass(frozen=True)
class EpochNumbers:
    """One finished epoch; every number a mean over it. Heads: the fused one, then the experts."""

    epoch: int  # from 1
    rates: dict[str, float]  # of each parameter group
    objective: float  # the training loss: weighted sum over heads, with label smoothing
    train_losses: list[float]  # per head
    train_accuracies: list[float]  # percent, per head
    val_losses: list[float]  # per head, plain cross-entropy
    val_accuracies: list[float]  # percent, per head
    images: int
    train_seconds: float
    seconds: float  # with validation
    timestamp: str  # ISO 8601, UTC

    @property
    def images_per_second(self) -> float:
        return self.images / self.train_seconds if self.train_seconds else 0.0


@dataclass(frozen=True)
class Progress:
    """Where a running epoch stands."""

    epoch: int  # completed epochs
    step: int
    steps: int
    objective: float
    train_accuracy: float  # percent, first head
    images_per_second: float
    eta_seconds: float


@dataclass
class Best:
    """The epoch that validation selects, with its weights on the CPU."""

    epoch: int = 0
    val_accuracy: float = -1.0
    val_loss: float = float("inf")
    state: dict[str, Tensor] = field(default_factory=dict)

    def is_beaten_by(self, numbers: EpochNumbers) -> bool:
        """More accurate, or as accurate with a smaller loss (small validation sets tie often)."""
        accuracy, loss = numbers.val_accuracies[0], numbers.val_losses[0]
        return (accuracy, -loss) > (self.val_accuracy, -self.val_loss)


class Reporter(Protocol):
    """What the loop tells the world; it knows no logger."""

    def progress(self, progress: Progress) -> None: ...

    def epoch(self, history: Sequence[EpochNumbers], best: Best) -> None: ...

    def resumed(self, history: Sequence[EpochNumbers], best: Best) -> None: ...

    def message(self, text: str) -> None: ...


def forward_heads(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of all heads (N, H, C): of a fusion model the fused head, then the experts'."""
    output = model(images)
    if isinstance(output, FusionOutput):
        return torch.cat([output.logits.unsqueeze(1), output.expert_logits], dim=1)
    logits: Tensor = output[1]
    return logits.unsqueeze(1)


@torch.no_grad()
def collect_logits(
    model: nn.Module, loader: ResidentLoader, *, bf16: bool
) -> tuple[Tensor, Tensor]:
    """One pass in evaluation mode: float32 logits (N, H, C) and labels (N,), on the device."""
    model.eval()
    logits, labels = [], []
    for batch in loader.evaluation_batches():
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
            logits.append(forward_heads(model, batch.images).float())
        labels.append(batch.labels)
    return torch.cat(logits), torch.cat(labels)


class _Meter:
    """Sums over an epoch, kept on the device: adding to them waits for nothing."""

    def __init__(self, heads: int, device: torch.device) -> None:
        self.losses = torch.zeros(heads, dtype=torch.float64, device=device)
        self.hits = torch.zeros(heads, dtype=torch.float64, device=device)
        self.images = 0

    def add(self, losses: Tensor, hits: Tensor, images: int) -> None:
        self.losses += losses.detach() * images
        self.hits += hits
        self.images += images

    def means(self) -> tuple[list[float], list[float]]:
        """(loss, accuracy in percent) of every head; waits for the device."""
        count = max(self.images, 1)
        return (self.losses / count).tolist(), (100 * self.hits / count).tolist()

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses.tolist(), "hits": self.hits.tolist(), "images": self.images}

    def restore(self, state: dict[str, Any]) -> None:
        self.losses.copy_(torch.tensor(state["losses"], dtype=torch.float64))
        self.hits.copy_(torch.tensor(state["hits"], dtype=torch.float64))
        self.images = state["images"]


@dataclass
class Trainer:
    """Everything one task's training needs; `run` trains it to the end or to a stop.

    A resume state of another `identity` is refused. All randomness
    derives from (seed, purpose, epoch, step), so a resumed run repeats the uninterrupted one.
    """

    model: nn.Module
    train_loader: ResidentLoader
    val_loader: ResidentLoader
    optimizer: torch.optim.Optimizer
    groups: Sequence[Group]
    head_weights: Tensor  # (H,)
    label_smoothing: float
    epochs: int
    seed: int
    device: torch.device
    resume_file: ResumeFile
    identity: Identity
    reporter: Reporter
    stop_requested: Callable[[], bool]
    every_epochs: int
    every_minutes: float
    batch_field: str  # of the recipe, for advice
    micro_batch: int | None = None  # images that pass through the model at a time; None: all
    shrink_when_full: bool = False  # halve the micro-batch when memory runs out
    bf16: bool = False
    frozen: Sequence[nn.Module] = ()  # stay in evaluation mode, without gradients

    def __post_init__(self) -> None:
        self.history: list[EpochNumbers] = []
        self.best = Best()
        self._step = 0  # done in the current epoch
        self._seconds = 0.0  # spent in the current epoch
        self._clock = time.monotonic()
        self._last_pulse = self._last_save = time.monotonic()
        self._meter = self._new_meter()
        # the first step whose loss or gradient wasn't finite; -1 while there is none
        self._bad_step = torch.full((), -1.0, device=self.device)

    def run(self) -> Best:
        """Train the epochs that are left; returns the best.

        Raises StopRequested (state saved) and TaskError (non-finite numbers, foreign state).
        """
        self._restore()
        self._clock = time.monotonic()
        while len(self.history) < self.epochs:
            self.run_epoch()
        return self.best

    def run_epoch(self) -> None:
        """Train the next epoch, or what a stop has left of it; validate, report, save if due."""
        self._train_epoch(epoch=len(self.history))
        self._finish_epoch()

    def _train_epoch(self, epoch: int) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()
        set_rates(self.optimizer, self.groups, epoch, self.epochs)
        order = derive_seed(self.seed, "order", epoch)
        for batch in self.train_loader.training_batches(order, start_step=self._step):
            self.train_step(batch)
            self._step += 1
            self._pulse()

    def train_step(self, batch: Batch) -> Tensor:
        """One update from a batch; returns the mean loss of every head (H,), on the device."""
        losses, hits = self._accumulate_gradients(batch)
        norm = clip_gradients(self.groups)
        self._guard(losses @ self.head_weights + norm)
        self.optimizer.step()
        self._meter.add(losses, hits, len(batch.labels))
        return losses

    def _accumulate_gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(mean loss, hits) of every head, gradients of the whole batch left in the parameters.

        Where memory runs out and the micro-batch may shrink, it's halved and the step begun anew.
        """
        while True:
            # at every attempt, so that a step's dropout never depends on one that failed
            torch.manual_seed(derive_seed(self.seed, "dropout", len(self.history), self._step))
            self.optimizer.zero_grad()
            try:
                parts = [self._backward(part, len(batch.labels)) for part in self._split(batch)]
                losses, hits = (
                    torch.stack(column).sum(dim=0) for column in zip(*parts, strict=True)
                )
                return losses, hits
            except torch.OutOfMemoryError:
                pass  # its traceback holds the activations until this block is left
            self._make_room(len(batch.labels))

    def _split(self, batch: Batch) -> list[Batch]:
        """The batch, or even parts of at most `micro_batch` images, but never of a single one."""
        images = len(batch.labels)
        wanted = math.ceil(images / (self.micro_batch or images))
        parts = max(1, min(wanted, images // 2))  # batch normalisation can't learn from one image
        columns = (batch.images, batch.targets, batch.labels)
        split = (column.tensor_split(parts) for column in columns)
        return [Batch(*part) for part in zip(*split, strict=True)]

    def _backward(self, part: Batch, images: int) -> tuple[Tensor, Tensor]:
        """One micro-batch's share in the batch's (loss, hits); adds to the gradients."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = forward_heads(self.model, part.images)
        share = len(part.labels) / images
        losses = head_losses(logits, part.targets, self.label_smoothing) * share
        (losses @ self.head_weights).backward()  # type: ignore[no-untyped-call]
        return losses.detach(), head_hits(logits.detach(), part.targets)

    def _make_room(self, images: int) -> None:
        """Halve the micro-batch, or raise TaskError where that isn't wanted or possible."""
        smaller = (self.micro_batch or images) // 2
        if not self.shrink_when_full or smaller < 2:
            raise TaskError(
                f"out of memory on {self.device} with {self.micro_batch or images} images at a "
                f"time; lower {self.batch_field}, set fusion.micro_batch=auto (rows), or put "
                f"fewer ranks on a GPU"
            )
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_batch = smaller
        self.reporter.message(
            f"out of memory: goes on with micro-batches of {smaller} images; the optimizer sees "
            f"the same batch of {images}"
        )

    def _guard(self, number: Tensor) -> None:
        """Make the optimizer skip this update and all later ones if `number` isn't finite.

        The fused optimizers read `found_inf` on the device, so nobody waits; `_pulse` notices.
        """
        unhealthy = ~torch.isfinite(number) & (self._bad_step < 0)
        self._bad_step = torch.where(unhealthy, float(self._step), self._bad_step)
        self.optimizer.found_inf = (self._bad_step >= 0).float()  # type: ignore[attr-defined]

    def _finish_epoch(self) -> None:
        """Validate, keep the best, report, and save when it's time."""
        self._check_finite()
        train_seconds = self._spend()
        losses, accuracies = self._meter.means()
        val_losses, val_accuracies = self.validate()
        epoch = len(self.history)
        weights = self.head_weights.tolist()
        numbers = EpochNumbers(
            epoch=epoch + 1,
            rates=set_rates(self.optimizer, self.groups, epoch, self.epochs),
            objective=sum(w * loss for w, loss in zip(weights, losses, strict=True)),
            train_losses=losses,
            train_accuracies=accuracies,
            val_losses=val_losses,
            val_accuracies=val_accuracies,
            images=self._meter.images,
            train_seconds=train_seconds,
            seconds=self._spend(),
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        if self.best.is_beaten_by(numbers):
            state = {k: v.detach().to("cpu", copy=True) for k, v in self.model.state_dict().items()}
            self.best = Best(numbers.epoch, val_accuracies[0], val_losses[0], state)
        self.history.append(numbers)
        self._step, self._seconds, self._meter = 0, 0.0, self._new_meter()
        self.reporter.epoch(self.history, self.best)
        if numbers.epoch % self.every_epochs == 0 or numbers.epoch == self.epochs or self._overdue:
            self._save()

    def validate(self) -> tuple[list[float], list[float]]:
        """(plain cross-entropy, accuracy in percent) of every head on the validation part."""
        logits, labels = collect_logits(self.model, self.val_loader, bf16=self.bf16)
        targets = nn.functional.one_hot(labels, logits.shape[-1]).float()
        losses = head_losses(logits, targets)
        accuracies = 100 * head_hits(logits, targets).double() / len(labels)
        return losses.tolist(), accuracies.tolist()

    def _pulse(self) -> None:
        """After a step: what the host must do now and then, and at once when asked to stop."""
        if self.stop_requested():
            self._save()
            raise StopRequested
        if time.monotonic() - self._last_pulse < PULSE_SECONDS:
            return
        self._last_pulse = time.monotonic()
        self._check_finite()
        self.reporter.progress(self._progress())
        if self._overdue:
            self._save()

    def _progress(self) -> Progress:
        losses, accuracies = self._meter.means()
        weights = self.head_weights.tolist()
        steps = len(self.train_loader)
        seconds = self._spend()
        done = len(self.history) + self._step / steps
        spent = sum(numbers.seconds for numbers in self.history) + seconds
        return Progress(
            epoch=len(self.history),
            step=self._step,
            steps=steps,
            objective=sum(w * loss for w, loss in zip(weights, losses, strict=True)),
            train_accuracy=accuracies[0],
            images_per_second=self._meter.images / seconds if seconds else 0.0,
            eta_seconds=spent / done * (self.epochs - done),
        )

    def _check_finite(self) -> None:
        step = int(self._bad_step.item())
        if step >= 0:
            raise TaskError(
                f"loss or gradient was not finite in epoch {len(self.history) + 1}, step "
                f"{step + 1} of {len(self.train_loader)}; no update was made with it, and the "
                f"last checkpoint is kept. Try runtime.amp=off, or a smaller learning rate in "
                f"another output_dir"
            )

    @property
    def _overdue(self) -> bool:
        return time.monotonic() - self._last_save >= 60 * self.every_minutes

    def _spend(self) -> float:
        """Seconds of the current epoch so far, over all launches that worked on it."""
        now = time.monotonic()
        self._seconds += now - self._clock
        self._clock = now
        return self._seconds

    def _new_meter(self) -> _Meter:
        return _Meter(len(self.head_weights), self.device)

    def _save(self) -> None:
        self._check_finite()
        self._spend()
        self.resume_file.save(
            {
                "settings": dict(self.identity.fields),
                "epoch": len(self.history),
                "step": self._step,
                "seconds": self._seconds,
                "micro_batch": self.micro_batch,
                "meter": self._meter.state(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": vars(self.best),  # asdict would copy every tensor
                "history": [dataclasses.asdict(numbers) for numbers in self.history],
            }
        )
        self._last_save = time.monotonic()

    def _restore(self) -> None:
        state, problem = self.resume_file.load()
        if problem:
            older = "its predecessor is used" if state else "the task starts over"
            self.reporter.message(f"{problem}; {older}")
        if state is None:
            return
        source = str(self.resume_file.path)
        if "settings" not in state:
            keys = ", ".join(sorted(map(str, state))[:4])
            raise TaskError(
                f"{source}: found a checkpoint with the keys {keys}, expected a resume state; "
                f"move it away to start over"
            )
        self.identity.require_same(source, state["settings"])
        before, now = (of.get(THREADS) for of in (state["settings"], self.identity.fields))
        if before != now:
            self.reporter.message(
                f"was begun with {before} CPU threads and continues with {now}: its numbers will "
                f"differ in their last digits from those of an uninterrupted run"
            )
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self._meter.restore(state["meter"])
        if self.shrink_when_full:  # what fitted then fits now; a size of the recipe's stands
            self.micro_batch = state["micro_batch"]
        self._step, self._seconds = state["step"], state["seconds"]
        self.best = Best(**state["best"])
        self.history = [EpochNumbers(**numbers) for numbers in state["history"]]
        self.reporter.message(f"continues after epoch {state['epoch']}, step {state['step']}")
        if self.history:
            self.reporter.resumed(self.history, self.best)
