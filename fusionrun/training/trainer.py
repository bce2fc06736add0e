"""The loop that trains an expert or a row: the same for both, over H heads at once."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torch import Tensor, nn

from fusionrun.common.hardware import computes_on
from fusionrun.common.seeds import derive_seed
from fusionrun.data.loader import Batch, ResidentLoader
from fusionrun.training import errors
from fusionrun.training.checkpoint import ResumeFile
from fusionrun.training.epoch import BestEpoch, EpochMetrics, Progress, Reporter
from fusionrun.training.graphs import fastest
from fusionrun.training.identity import THREADS, Identity
from fusionrun.training.inference import validation_scores
from fusionrun.training.optim import load_optimizer, optimizer_state, set_learning_rates
from fusionrun.training.saving import Saver
from fusionrun.training.step import Optimisation, Step
from fusionrun.training.tuning import Tuning

REPORT_SECONDS = 1.0  # how often a running epoch's numbers are read from the device


@dataclass(frozen=True)
class Loaders:
    """The images that are learned from, and those that select the best epoch."""

    train: ResidentLoader
    validation: ResidentLoader


@dataclass(frozen=True)
class Schedule:
    """How long it takes, the seed from which everything random derives, and which epoch is best."""

    epochs: int
    seed: int
    by_averaging: bool = False  # the experts' mean probability selects it, not the first head


@dataclass(frozen=True)
class Checkpointing:
    """Where the resume state lies, whose it is, and how often it's written."""

    file: ResumeFile
    identity: Identity  # a state of another one is refused
    every_epochs: int
    every_minutes: float
    launch: Mapping[str, Any] = field(default_factory=dict)  # that works on it now, for the records


@dataclass
class Trainer:
    """Trains one task's model to the end or to a stop: `run`, or `steps` beside others.

    All randomness derives from (seed, purpose, epoch, step), so a resumed run repeats the
    uninterrupted one.
    """

    model: nn.Module
    loaders: Loaders
    optimisation: Optimisation
    schedule: Schedule
    checkpointing: Checkpointing
    reporter: Reporter
    stop_requested: Callable[[], bool]

    def __post_init__(self) -> None:
        self.step = Step(self.model, self.optimisation, self.reporter.message)
        self.fitting, self.device = self.step.fitting, self.step.device
        images = self.loaders.train.batch_size
        self._take = fastest(self.step, images, lambda: self.steps_left, self.reporter.message)
        self._tuning = Tuning(self.device)
        self.history: list[EpochMetrics] = []
        self.best = BestEpoch()
        said = "the best epoch's weights are kept in the host's memory from now on"
        self.fitting.spare.insert(0, (lambda: self.best.leave_device(), said))
        self.launches: list[dict[str, Any]] = []  # that worked on the task before this one
        self._step = 0  # done in the current epoch
        self._seconds = 0.0  # spent in the current epoch
        self._rates: dict[str, float] = {}  # of the current epoch
        self._clock = self._last_report = self._last_save = time.monotonic()
        file, say = self.checkpointing.file, self.reporter.message
        self._saver = Saver(file, self.optimisation.optimizer, say)

    def run(self) -> BestEpoch:
        """Train the epochs that are left; returns the best. Raises what `steps` does."""
        for _ in self.steps():
            pass
        return self.best

    def steps(self) -> Iterator[None]:
        """The same, step by step, for whoever trains several models in turn.

        Raises StopRequested and ShortOfMemoryError (state saved), TaskError (non-finite numbers,
        a state of another experiment).
        """
        self._restore()
        self._clock = time.monotonic()
        with self._saver:
            try:
                while len(self.history) < self.schedule.epochs:
                    for batch in self.start_epoch():
                        self.train_step(batch)
                        self.after_step()
                        yield
                    self.finish_epoch()
            except errors.ShortOfMemoryError:  # of a step that changed nothing, or a validation
                self.save()
                raise
        for leaves, _ in self.fitting.spare:  # what comes after training has the device for itself
            leaves()

    def start_epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch, or those that a stop has left of it."""
        epoch, optimisation = len(self.history), self.optimisation
        self.model.train()
        for module in optimisation.frozen:
            module.eval()
        self._rates = set_learning_rates(
            optimisation.optimizer, optimisation.groups, epoch, self.schedule.epochs
        )
        order = derive_seed(self.schedule.seed, "order", epoch)
        batches = self.loaders.train.training_batches(order, start_step=self._step)
        return self._tuning.over(batches, self.loaders.train.batch_size, self.steps_left)

    @property
    def steps_left(self) -> int:
        """To the end of the last epoch."""
        epochs = self.schedule.epochs - len(self.history)
        return epochs * len(self.loaders.train) - self._step

    def train_step(self, batch: Batch) -> Tensor:
        """One update from a batch; returns the mean loss of every head (H,), on the device.

        Where memory runs out the step is begun again with less. Raises ShortOfMemoryError where
        that can't be; then nothing has changed.
        """
        seed = derive_seed(self.schedule.seed, "dropout", len(self.history), self._step)
        losses = self._take(batch, seed)
        self.step.meter.images += len(batch.labels)
        return losses

    def after_step(self) -> None:
        """Count the step, report and save now and then, and stop at once when asked to."""
        self._step += 1
        self._saver.check()
        if self.stop_requested():
            self.save()
            self._saver.settle()
            raise errors.StopRequested
        if time.monotonic() - self._last_report < REPORT_SECONDS:
            return
        self._last_report = time.monotonic()
        self._check_finite()
        loss, _, accuracies = self.step.meter.means()
        seconds, epochs, loaders = self._elapsed(), len(self.history), self.loaders
        done = epochs + self._step / len(loaders.train)
        a_epoch = (sum(metrics.train_seconds for metrics in self.history) + seconds) / done
        if self.history:
            validation = self.history[-1].validation_seconds
        else:  # a forward pass is about a third of what learning from an image takes
            validation = a_epoch / 3 * loaders.validation.num_images / loaders.train.num_images
        progress = Progress(
            epoch=epochs,
            step=self._step,
            steps=len(loaders.train),
            loss=loss,
            train_accuracy=accuracies[0],
            images_per_second=self.step.meter.images / seconds if seconds else 0.0,
            eta_seconds=a_epoch * (self.schedule.epochs - done)
            + validation * (self.schedule.epochs - epochs),
            validation_seconds=validation,
        )
        self.reporter.progress(progress)
        if self._is_overdue:
            self.save()

    def finish_epoch(self) -> None:
        """Validate, keep the best, report, and save when it's time."""
        self._check_finite()
        seen = self.step.guard.seen()
        train_seconds = self._elapsed()
        loss, losses, accuracies = self.step.meter.means()
        val_losses, val_accuracies, val_averaged = self.validate()
        metrics = EpochMetrics(
            epoch=len(self.history) + 1,
            learning_rates=self._rates,
            loss=loss,
            train_losses=losses,
            train_accuracies=accuracies,
            val_losses=val_losses,
            val_accuracies=val_accuracies,
            images=self.step.meter.images,
            train_seconds=train_seconds,
            seconds=self._elapsed(),
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            val_averaged=val_averaged,
        )
        if not self.history or self._is_better(metrics, self.history[self.best.epoch - 1]):
            self._saver.release()
            self.best.become(metrics, self.model)
        self.history.append(metrics)
        if seen.skipped:
            self.reporter.message(
                f"epoch {metrics.epoch}: {seen.skipped} of {self._step} updates left out, as their "
                f"gradients overflowed; the loss scale is now {seen.scale:g}"
            )
        self._step, self._seconds = 0, 0.0
        self.step.meter.begin_epoch()
        self.step.guard.begin_epoch()
        self.reporter.epoch(self.history, self.best)
        is_due = metrics.epoch % self.checkpointing.every_epochs == 0 or self._is_overdue
        if is_due or metrics.epoch == self.schedule.epochs:
            self.save()

    def validate(self) -> tuple[list[float], list[float], float | None]:
        """On the validation part: plain cross-entropy and accuracy in percent of every head, and

        the accuracy of the mean of the experts' probabilities, where there are experts. Raises
        ShortOfMemoryError.
        """
        validation, precision = self.loaders.validation, self.optimisation.precision
        return validation_scores(self.model, validation, precision, self.fitting.parts)

    def _is_better(self, metrics: EpochMetrics, other: EpochMetrics) -> bool:
        return metrics.is_better_than(other, by_averaging=self.schedule.by_averaging)

    def _check_finite(self) -> None:
        seen = self.step.guard.seen()
        if seen.problem:
            amp = "runtime.amp=off, or " if self.optimisation.precision.is_half else ""
            raise errors.TaskError(
                f"{seen.problem} in epoch {len(self.history) + 1}, step {seen.bad_step + 1} of "
                f"{len(self.loaders.train)}; no update was made with it, and the last checkpoint "
                f"is kept. Try {amp}a smaller learning rate in another output_dir"
            )

    @property
    def _is_overdue(self) -> bool:
        return time.monotonic() - self._last_save >= 60 * self.checkpointing.every_minutes

    def _elapsed(self) -> float:
        """Seconds of the current epoch so far, over all launches that worked on it."""
        now = time.monotonic()
        self._seconds += now - self._clock
        self._clock = now
        return self._seconds

    def save(self) -> None:
        """Have the resume state written. Raises TaskError where numbers aren't finite, OSError."""
        self._check_finite()
        self._elapsed()
        self._saver.save(
            {
                "settings": dict(self.checkpointing.identity.fields),
                "epoch": len(self.history),
                "step": self._step,
                "seconds": self._seconds,
                **self.fitting.state(),
                "meter": self.step.meter.state(),
                "launches": [*self.launches, dict(self.checkpointing.launch)],
                "loss_scale": self.step.guard.state(),
                "model": self.model.state_dict(),
                "optimizer": optimizer_state(self.optimisation.optimizer),
                "best": self.best.stored(),
                "history": [dataclasses.asdict(metrics) for metrics in self.history],
            },
            kept=self.best.state.values(),
        )
        self._last_save = time.monotonic()

    def _restore(self) -> None:
        file, identity = self.checkpointing.file, self.checkpointing.identity
        state, problem = file.load()
        if problem:
            older = "its predecessor is used" if state else "the task starts over"
            self.reporter.message(f"{problem}; {older}")
        if state is None:
            return
        if "settings" not in state:
            keys = ", ".join(sorted(map(str, state))[:4])
            raise errors.TaskError(
                f"{file.path}: found a checkpoint with the keys {keys}, expected a resume state; "
                f"move it away to start over"
            )
        identity.require_same(file.path, state["settings"])
        before, now = (of.get(THREADS) for of in (state["settings"], identity.fields))
        if before and now and before != now:  # a GPU has none
            self.reporter.message(
                f"was begun with {before} CPU threads and continues with {now}: its numbers will "
                f"differ in their last digits from those of an uninterrupted run"
            )
        self.launches = state.get("launches", [])  # none in older versions' states
        launch = self.checkpointing.launch
        so_far = computes_on(self.launches[-1]) if self.launches else ""
        if so_far and so_far != computes_on(launch):
            self.reporter.message(
                f"was trained on {so_far} so far and continues on {computes_on(launch)}: its "
                f"numbers will differ from those of an uninterrupted run"
            )
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimisation.optimizer, state["optimizer"])
        self.step.meter.restore(state["meter"])
        self._step, self._seconds = state["step"], state["seconds"]
        self.step.guard.restore(state.get("loss_scale"), self._step)  # older versions had none
        self.fitting.restore(state)
        self.best = BestEpoch(**state["best"])
        self.history = [EpochMetrics.restored(metrics) for metrics in state["history"]]
        self.reporter.message(f"continues after epoch {state['epoch']}, step {state['step']}")
        best, epochs = self.best.epoch, self.history
        if any(self._is_better(metrics, epochs[best - 1]) for metrics in epochs):
            self.reporter.message(
                f"an older version selected epoch {best} by the fused head; the epochs to come are "
                f"compared with it by the mean of the experts' probabilities"
            )
        if self.history:
            self.reporter.resumed(self.history, self.best)
