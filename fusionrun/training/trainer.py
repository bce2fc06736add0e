"""The loop that trains an expert or a row: the same for both, over H heads at once."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from fusionrun.common.seeds import derive_seed
from fusionrun.data.loader import Batch, ResidentLoader
from fusionrun.training.checkpoint import ResumeFile
from fusionrun.training.epoch import BestEpoch, EpochMetrics, Meter, Progress, Reporter, renamed
from fusionrun.training.errors import StopRequested, TaskError
from fusionrun.training.identity import THREADS, Identity
from fusionrun.training.inference import collect_logits, forward_heads
from fusionrun.training.losses import head_correct, head_losses
from fusionrun.training.optim import Group, clip_gradients, load_optimizer, set_learning_rates

PULSE_SECONDS = 1.0  # how often a running epoch's numbers are read from the device


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
        self.history: list[EpochMetrics] = []
        self.best = BestEpoch()
        self._step = 0  # done in the current epoch
        self._seconds = 0.0  # spent in the current epoch
        self._clock = time.monotonic()
        self._last_pulse = self._last_save = time.monotonic()
        self._meter = self._new_meter()
        # the first step whose loss or gradient wasn't finite; -1 while there is none
        self._bad_step = torch.full((), -1.0, device=self.device)

    def run(self) -> BestEpoch:
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
        set_learning_rates(self.optimizer, self.groups, epoch, self.epochs)
        order = derive_seed(self.seed, "order", epoch)
        for batch in self.train_loader.training_batches(order, start_step=self._step):
            self.train_step(batch)
            self._step += 1
            self._after_step()

    def train_step(self, batch: Batch) -> Tensor:
        """One update from a batch; returns the mean loss of every head (H,), on the device."""
        losses, correct = self._accumulate_gradients(batch)
        norm = clip_gradients(self.groups)
        self._skip_nonfinite(losses @ self.head_weights + norm)
        self.optimizer.step()
        self._meter.add(losses, correct, len(batch.labels))
        return losses

    def _accumulate_gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(mean loss, right answers) of every head; leaves the batch's gradients in the model.

        Where memory runs out and the micro-batch may shrink, it's halved and the step begun again.
        """
        while True:
            # at every attempt, so that a step's dropout never depends on one that failed
            torch.manual_seed(derive_seed(self.seed, "dropout", len(self.history), self._step))
            self.optimizer.zero_grad()
            try:
                parts = [self._backward(part, len(batch.labels)) for part in self._split(batch)]
                losses, correct = (
                    torch.stack(column).sum(dim=0) for column in zip(*parts, strict=True)
                )
                return losses, correct
            except torch.OutOfMemoryError:
                pass  # its traceback holds the activations until this block is left
            self._halve_micro_batch(len(batch.labels))

    def _split(self, batch: Batch) -> list[Batch]:
        """The batch, or even parts of at most `micro_batch` images, but never of a single one."""
        images = len(batch.labels)
        wanted = math.ceil(images / (self.micro_batch or images))
        parts = max(1, min(wanted, images // 2))  # batch normalisation can't learn from one image
        columns = (batch.images, batch.targets, batch.labels)
        split = (column.tensor_split(parts) for column in columns)
        return [Batch(*part) for part in zip(*split, strict=True)]

    def _backward(self, part: Batch, images: int) -> tuple[Tensor, Tensor]:
        """One micro-batch's share in the batch's (loss, correct answers); adds to the gradients."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = forward_heads(self.model, part.images)
        share = len(part.labels) / images
        losses = head_losses(logits, part.targets, self.label_smoothing) * share
        (losses @ self.head_weights).backward()  # type: ignore[no-untyped-call]
        return losses.detach(), head_correct(logits.detach(), part.targets)

    def _halve_micro_batch(self, images: int) -> None:
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

    def _skip_nonfinite(self, number: Tensor) -> None:
        """Make the optimizer skip this update and all later ones if `number` isn't finite.

        The fused optimizers read `found_inf` on the device, so nobody waits; `_pulse` notices.
        """
        unhealthy = ~torch.isfinite(number) & (self._bad_step < 0)
        self._bad_step = torch.where(unhealthy, float(self._step), self._bad_step)
        self.optimizer.found_inf = (self._bad_step >= 0).float()  # type: ignore[attr-defined]

    def _finish_epoch(self) -> None:
        """Validate, keep the best, report, and save when it's time."""
        self._check_finite()
        train_seconds = self._elapsed()
        losses, accuracies = self._meter.means()
        val_losses, val_accuracies = self.validate()
        epoch = len(self.history)
        weights = self.head_weights.tolist()
        metrics = EpochMetrics(
            epoch=epoch + 1,
            learning_rates=set_learning_rates(self.optimizer, self.groups, epoch, self.epochs),
            loss=sum(w * loss for w, loss in zip(weights, losses, strict=True)),
            train_losses=losses,
            train_accuracies=accuracies,
            val_losses=val_losses,
            val_accuracies=val_accuracies,
            images=self._meter.images,
            train_seconds=train_seconds,
            seconds=self._elapsed(),
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        if self.best.is_beaten_by(metrics):
            state = {k: v.detach().to("cpu", copy=True) for k, v in self.model.state_dict().items()}
            self.best = BestEpoch(metrics.epoch, val_accuracies[0], val_losses[0], state)
        self.history.append(metrics)
        self._step, self._seconds, self._meter = 0, 0.0, self._new_meter()
        self.reporter.epoch(self.history, self.best)
        if metrics.epoch % self.every_epochs == 0 or metrics.epoch == self.epochs or self._overdue:
            self._save()

    def validate(self) -> tuple[list[float], list[float]]:
        """(plain cross-entropy, accuracy in percent) of every head on the validation part."""
        logits, labels = collect_logits(self.model, self.val_loader, bf16=self.bf16)
        targets = nn.functional.one_hot(labels, logits.shape[-1]).float()
        losses = head_losses(logits, targets)
        accuracies = 100 * head_correct(logits, targets).double() / len(labels)
        return losses.tolist(), accuracies.tolist()

    def _after_step(self) -> None:
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
        seconds = self._elapsed()
        done = len(self.history) + self._step / steps
        spent = sum(metrics.seconds for metrics in self.history) + seconds
        return Progress(
            epoch=len(self.history),
            step=self._step,
            steps=steps,
            loss=sum(w * loss for w, loss in zip(weights, losses, strict=True)),
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

    def _elapsed(self) -> float:
        """Seconds of the current epoch so far, over all launches that worked on it."""
        now = time.monotonic()
        self._seconds += now - self._clock
        self._clock = now
        return self._seconds

    def _new_meter(self) -> Meter:
        return Meter(len(self.head_weights), self.device)

    def _save(self) -> None:
        self._check_finite()
        self._elapsed()
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
                "history": [dataclasses.asdict(metrics) for metrics in self.history],
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
        self._meter.restore(renamed(state["meter"]))
        if self.shrink_when_full:  # what fitted then fits now; a size of the recipe's stands
            self.micro_batch = state["micro_batch"]
        self._step, self._seconds = state["step"], state["seconds"]
        self.best = BestEpoch(**state["best"])
        self.history = [EpochMetrics(**renamed(metrics)) for metrics in state["history"]]
        self.reporter.message(f"continues after epoch {state['epoch']}, step {state['step']}")
        if self.history:
            self.reporter.resumed(self.history, self.best)
