"""What a running task tells the world: status record, CSV, TensorBoard, W&B, text log."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusionrun.common.image_classifier import has_output
from fusionrun.common.memory import peak_memory
from fusionrun.launch.checks.doubts import doubt
from fusionrun.launch.resume import as_found
from fusionrun.launch.run_logs import open_run_logs
from fusionrun.logs.background import BackgroundLog
from fusionrun.logs.csv import EXPERT_COLUMNS, EpochCsv, row_columns
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Activity, Outcome, Record, known
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.tables.headline import GAIN, GAIN_KEY, digits
from fusionrun.training.epoch import BestEpoch, EpochMetrics, Progress

# seconds that a task waits for its charts to be written at its end; less where a launch is stopped
PATIENCE, HURRIED_PATIENCE = 30.0, 2.0


class TaskReporter:
    """The loop's `Reporter` for one task. Opening logs waits for the first finished epoch.

    No log decides over the training: one that can't be written is warned of once.

    `sample` makes augmented training images (N, 3, H, W) uint8, if they are wanted; `val_images`
    select the epoch; the test takes `test_share` times as long as an epoch's validation.
    """

    sample: Callable[[], Tensor] | None = None
    val_images = 0
    test_share = 0.0

    def __init__(
        self, study: Study, task: Task, record: Record, log: TaskLog, device: torch.device
    ) -> None:
        self._study = study
        self._task = task
        self._record = record
        self._log = log
        self._device = device
        self._run_logs: list[BackgroundLog] | None = None
        self._csv, self._csv_failed = self._new_csv(), False
        self._in_csv: Sequence[EpochMetrics] = []
        self._history: Sequence[EpochMetrics] = ()  # earlier launches' epochs, too
        self._best = BestEpoch()
        record.begin(task.index)

    def message(self, text: str) -> None:
        self._record.progress_count += 1
        self._log.line(text)

    def waits(self) -> None:
        """For others, who go on: that's no hang."""
        self._record.progress_count += 1

    def begin(self, activity: Activity) -> None:
        """What comes when training is through."""
        record = self._record
        record.activity, record.eta_seconds = activity, None
        if activity == "testing" and self._history:
            record.eta_seconds = self.test_share * self._history[-1].validation_seconds
        record.progress_count += 1

    def progress(self, progress: Progress) -> None:
        record = self._record
        record.progress_count += 1
        record.epoch, record.step = float(progress.epoch), float(progress.step)
        record.steps = float(progress.steps)
        record.train_loss = known(progress.loss)
        record.train_accuracy = progress.train_accuracy
        record.images_per_second = known(progress.images_per_second)
        testing = self.test_share * progress.validation_seconds
        record.eta_seconds = known(progress.eta_seconds + testing)
        record.memory_bytes = peak_memory(self._device)

    def resumed(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None:
        """What an earlier launch did: the table and the CSV know it, the other logs have it."""
        metrics, record = history[-1], self._record
        record.progress_count += 1
        self._history, self._best = history, best
        record.epoch, record.step = float(metrics.epoch), 0.0
        record.train_loss = known(metrics.loss)
        record.train_accuracy = metrics.train_accuracies[0]
        record.val_loss = known(metrics.val_losses[0])
        record.val_accuracy, *experts = metrics.val_accuracies
        record.experts = list(experts)
        record.gain = metrics.gain_over_averaging
        record.val_images = float(self.val_images)
        record.best, record.best_epoch = best.val_accuracy, float(best.epoch)
        record.images_per_second = metrics.images_per_second
        left = (self._task.epochs - metrics.epoch) / metrics.epoch
        record.eta_seconds = left * sum(entry.seconds for entry in history)
        record.eta_seconds += self.test_share * metrics.validation_seconds
        record.memory_bytes = peak_memory(self._device)
        if self._in_csv != history[: len(self._in_csv)]:  # begun again, from an older state
            self._csv, self._in_csv = self._new_csv(), []
        new = range(len(self._in_csv), len(history))
        rows = [csv_cells(self._task, history[: index + 1]) for index in new]
        self._in_csv = [*history]
        try:
            self._csv.write(rows)
        except OSError as error:
            if not self._csv_failed:
                self.warn(f"{error.filename}: {error.strerror or error}; the training goes on")
            self._csv_failed = True

    def _new_csv(self) -> EpochCsv:
        layout, task = self._study.layout, self._task
        if not isinstance(task, RowTask):
            return EpochCsv(layout.expert_csv(*task.member), EXPERT_COLUMNS)
        columns = EXPERT_COLUMNS if task.trains_alone else row_columns(len(task.row.experts))
        return EpochCsv(layout.row(task.model, task.row.variant).csv, columns)

    def answered(self, source: str, logits: Tensor, labels: Tensor) -> None:
        """Warn of an expert from `source` whose logits (N, C) on validation fit ill."""
        asked = has_output(logits).gather(1, labels.unsqueeze(1))[:, 0]
        if found := doubt(logits[asked].argmax(dim=1), labels[asked], logits.shape[1]):
            self.warn(f"{source.partition(' (')[0]}: {found}")

    def warn(self, text: str) -> None:
        """What the person should know, though the training goes on."""
        self._log.line(f"warning: {text}")
        self._record.note = text

    def epoch(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None:
        """The newest of `history` to every log; the CSV is written whole."""
        self.resumed(history, best)
        metrics = history[-1]
        accuracy, *experts = metrics.val_accuracies
        compared, places = "", digits(self.val_images)
        if experts:
            numbers = " ".join(f"{value:.{min(places, 1)}f}" for value in experts)
            gain = metrics.gain_over_averaging
            over = "" if gain is None else f" {GAIN} {gain:+.{places}f}"
            compared = f" experts {numbers}{over}"
        self._log.line(
            f"epoch {metrics.epoch}/{self._task.epochs} loss {metrics.loss:.4f} "
            f"val {accuracy:.{places}f}%{compared} best {best.val_accuracy:.{places}f}% "
            f"@{best.epoch} "
            f"{metrics.images_per_second:.0f} images/s {metrics.seconds:.1f}s"
        )
        scalars = chart_scalars(metrics, trains_alone=self._task.trains_alone)
        for log in self._logs(first_epoch=metrics.epoch):
            log.put(lambda chart: chart.scalars(scalars, metrics.epoch))

    def measured(self, test: Mapping[str, Any]) -> None:
        """The row's accuracies on the test set, to where runs are compared."""
        numbers = {f"test_{key}": value for key, value in test.items()}
        numbers["validation"] = self._record.best
        metrics = {f"result/{key}": v for key, v in numbers.items() if isinstance(v, float)}
        fields = self._study.identity(self._task).fields
        own = {key: value for key, value in fields.items() if not key.startswith("data.")}
        for log in self._logs(first_epoch=self._task.epochs + 1):
            log.put(lambda chart: chart.outcome(own, metrics))

    def outcome(self, rank: int, together: int) -> Outcome:
        """How the finished task stands, for the table: every number is the saved epoch's."""
        if not self._history:  # it trained nothing itself
            found = Outcome("done", rank=rank, together=together)
            return as_found(self._study, self._task, found)
        saved = self._history[self._best.epoch - 1]
        accuracy, *experts = saved.val_accuracies
        return Outcome(
            "done",
            rank=rank,
            epoch=self._task.epochs,
            train_loss=known(saved.loss),
            train_accuracy=saved.train_accuracies[0],
            val_loss=known(saved.val_losses[0]),
            val_accuracy=accuracy,
            val_images=self.val_images,
            best=accuracy,
            best_epoch=saved.epoch,
            gain=saved.gain_over_averaging,
            experts=tuple(experts),
            seconds=sum(entry.seconds for entry in self._history),
            together=together,
        )

    def close(self, *, hurried: bool = False) -> None:
        """Wait for the charts, but not for long."""
        for log in self._run_logs or ():
            log.close(HURRIED_PATIENCE if hurried else PATIENCE)

    def _logs(self, first_epoch: int) -> list[BackgroundLog]:
        """TensorBoard and W&B as the recipe wants them; the first call opens them."""
        if self._run_logs is not None:
            return self._run_logs
        self._run_logs = open_run_logs(self._study, self._task, first_epoch, self.warn)
        if self._run_logs and first_epoch == 1 and self.sample is not None:
            # here: a log's thread wouldn't wait for the stream that makes them
            side_by_side = torch.cat(list(self.sample()), dim=2).cpu()
            for log in self._run_logs:
                log.put(lambda chart: chart.image("augmented_training_images", side_by_side))
        return self._run_logs


def csv_cells(task: Task, history: Sequence[EpochMetrics]) -> dict[str, object]:
    """Of the newest epoch, for the columns of the task's CSV."""
    metrics = history[-1]
    cells: dict[str, object] = {
        "epoch": metrics.epoch,
        "train_loss": metrics.loss,
        "train_accuracy": metrics.train_accuracies[0],
        "val_loss": metrics.val_losses[0],
        "val_accuracy": metrics.val_accuracies[0],
        "images_per_second": metrics.images_per_second,
        "seconds": metrics.seconds,
        "model": task.model,
        "timestamp": metrics.timestamp,
    }
    rates = metrics.learning_rates
    if isinstance(task, ExpertTask) or task.trains_alone:
        return cells | {
            "lr": rates["expert"],
            "best_val_accuracy": max(0.0, *(each.val_accuracies[0] for each in history)),
            "expert": task.expert if isinstance(task, ExpertTask) else None,
        }
    cells |= {
        "experts_lr": rates.get("experts", 0.0),  # 0: frozen
        "fusion_lr": rates.get("fusion", 0.0),  # 0: has no weights, nor a head
        "global_head_lr": rates.get("global_head", 0.0),
        "loss_global": metrics.train_losses[0],
        "loss_individual": sum(metrics.train_losses[1:]),
        "loss_total": metrics.loss,
        "alpha": task.row.alpha,
        "fusion_type": task.row.method,
    }
    for k in range(len(task.row.experts)):
        cells[f"expert_{k}_accuracy"] = metrics.val_accuracies[1 + k]
        cells[f"expert_{k}_loss"] = metrics.val_losses[1 + k]
    return cells


def chart_scalars(metrics: EpochMetrics, *, trains_alone: bool) -> dict[str, float]:
    """Tags grouped so that a chart overlays the rows, and no chart mixes rows and experts."""
    if trains_alone:
        return {
            "expert_training/accuracy_validation": metrics.val_accuracies[0],
            "expert_training/accuracy_train": metrics.train_accuracies[0],
            "expert_training/loss_validation": metrics.val_losses[0],
            "expert_training/loss_train": metrics.loss,
            "expert_training/rate": metrics.learning_rates["expert"],
            "expert_training/images_per_second": metrics.images_per_second,
        }
    fused, *experts = metrics.val_accuracies
    gain = metrics.gain_over_averaging
    return {
        "accuracy/validation": fused,
        "accuracy/train": metrics.train_accuracies[0],
        **({} if gain is None else {f"accuracy/{GAIN_KEY}": gain}),
        "loss/validation": metrics.val_losses[0],
        "loss/train": metrics.loss,
        "loss/train_global": metrics.train_losses[0],
        "loss/train_individual": sum(metrics.train_losses[1:]),
        "speed/images_per_second": metrics.images_per_second,
        "speed/epoch_seconds": metrics.seconds,
        **{f"rate/{name}": rate for name, rate in metrics.learning_rates.items()},
        **{f"experts/accuracy_{k}": accuracy for k, accuracy in enumerate(experts)},
    }
