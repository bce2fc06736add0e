"""What a running task tells the world: status record, CSV, TensorBoard, W&B, text log."""

import hashlib
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionrun.logs.csv import EXPERT_COLUMNS, row_columns, write_csv
from fusionrun.logs.tensorboard import NullLog, RunLog, TensorBoardLog
from fusionrun.logs.text import TaskLog
from fusionrun.logs.wandb import WandbLog
from fusionrun.monitor.record import NAN, Outcome, Record, known
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.training.epoch import BestEpoch, EpochMetrics, Progress


class TaskReporter:
    """The loop's `Reporter` for one task. Opening logs waits for the first finished epoch.

    `sample` makes augmented training images (N, 3, H, W) uint8, if they are wanted.
    """

    sample: Callable[[], Tensor] | None = None

    def __init__(
        self, study: Study, task: Task, record: Record, log: TaskLog, device: torch.device
    ) -> None:
        self._study = study
        self._task = task
        self._record = record
        self._log = log
        self._device = device
        self._run_logs: list[RunLog] | None = None
        record.begin(task.index)

    def message(self, text: str) -> None:
        self._record.pulse += 1
        self._log.line(text)

    def progress(self, progress: Progress) -> None:
        record = self._record
        record.pulse += 1
        record.epoch, record.step = float(progress.epoch), float(progress.step)
        record.steps = float(progress.steps)
        record.train_loss, record.train_accuracy = progress.loss, progress.train_accuracy
        record.images_per_second = progress.images_per_second
        record.eta_seconds = progress.eta_seconds
        record.memory_bytes = _memory(self._device)

    def epoch(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None:
        """The newest of `history` to every log; the CSV is written whole."""
        metrics = history[-1]
        self._publish(history, best)
        self._write_csv(history)
        self._log.line(self._summary(metrics, best))
        for log in self._logs(first_epoch=metrics.epoch):
            log.scalars(self._scalars(metrics), metrics.epoch)

    def resumed(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None:
        """What an earlier launch did: the table and the CSV know it, the other logs have it."""
        self._publish(history, best)
        self._write_csv(history)

    def measured(self, test: Mapping[str, Any]) -> None:
        """The row's accuracies on the test set, to where runs are compared."""
        numbers = {key: value for key, value in test.items() if isinstance(value, float)}
        metrics = {f"result/test_{key}": value for key, value in numbers.items()}
        metrics["result/validation"] = self._record.best
        settings = self._study.identity(self._task).fields
        own = {key: value for key, value in settings.items() if not key.startswith("data.")}
        for log in self._logs(first_epoch=self._task.epochs + 1):
            log.outcome(own, metrics)

    def outcome(self, rank: int) -> Outcome:
        """How the finished task stands, for the table."""
        record = self._record
        return Outcome(
            "done",
            rank=rank,
            epoch=self._task.epochs,
            val_accuracy=known(record.val_accuracy),
            best=known(record.best),
            best_epoch=int(record.best_epoch),
            gain=known(record.gain),
            experts=tuple(known(value) for value in record.experts),
            seconds=self._seconds,
        )

    def close(self) -> None:
        for log in self._run_logs or ():
            log.close()

    def _publish(self, history: Sequence[EpochMetrics], best: BestEpoch) -> None:
        metrics, record = history[-1], self._record
        record.pulse += 1
        self._seconds = sum(entry.seconds for entry in history)
        record.epoch, record.step = float(metrics.epoch), 0.0
        record.train_loss = metrics.loss
        record.train_accuracy = metrics.train_accuracies[0]
        record.val_loss, record.val_accuracy = metrics.val_losses[0], metrics.val_accuracies[0]
        record.best, record.best_epoch = best.val_accuracy, float(best.epoch)
        record.experts = metrics.val_accuracies[1:]
        record.gain = metrics.val_accuracies[0] - max(record.experts) if record.experts else NAN
        record.images_per_second = metrics.images_per_second
        record.eta_seconds = self._seconds / metrics.epoch * (self._task.epochs - metrics.epoch)
        record.memory_bytes = _memory(self._device)

    def _write_csv(self, history: Sequence[EpochMetrics]) -> None:
        task, layout = self._task, self._study.layout
        if isinstance(task, RowTask):
            path = layout.row(task.model, task.row.variant).csv
        else:
            path = layout.expert_csv(task.model, task.expert)
        if isinstance(task, ExpertTask) or task.row.is_single:
            columns: Sequence[str] = EXPERT_COLUMNS
            rows = [self._expert_cells(history[: i + 1]) for i in range(len(history))]
        else:
            columns = row_columns(self._study.recipe.experts.count)
            rows = [_row_cells(task.row, metrics) for metrics in history]
        write_csv(path, columns, rows)

    def _expert_cells(self, history: Sequence[EpochMetrics]) -> dict[str, object]:
        metrics, task = history[-1], self._task
        return {
            **_common_cells(metrics),
            "lr": metrics.learning_rates["expert"],
            "best_val_accuracy": max(entry.val_accuracies[0] for entry in history),
            "model": task.model,
            "expert": task.expert if isinstance(task, ExpertTask) else None,
        }

    def _summary(self, metrics: EpochMetrics, best: BestEpoch) -> str:
        record = self._record
        experts = " ".join(f"{value:.1f}" for value in record.experts)
        compared = f" experts {experts} gain {record.gain:+.1f}" if record.experts else ""
        return (
            f"epoch {metrics.epoch}/{self._task.epochs} loss {metrics.loss:.4f} "
            f"val {metrics.val_accuracies[0]:.2f}%{compared} "
            f"best {best.val_accuracy:.2f}% @{best.epoch} "
            f"{metrics.images_per_second:.0f} images/s {metrics.seconds:.1f}s"
        )

    def _scalars(self, metrics: EpochMetrics) -> dict[str, float]:
        """Tags grouped so that a chart overlays the rows, and no chart mixes rows and experts."""
        if self._task.trains_alone:
            return {
                "expert_training/accuracy_validation": metrics.val_accuracies[0],
                "expert_training/accuracy_train": metrics.train_accuracies[0],
                "expert_training/loss_validation": metrics.val_losses[0],
                "expert_training/loss_train": metrics.loss,
                "expert_training/rate": metrics.learning_rates["expert"],
                "expert_training/images_per_second": metrics.images_per_second,
            }
        scalars = {
            "accuracy/validation": metrics.val_accuracies[0],
            "accuracy/train": metrics.train_accuracies[0],
            "accuracy/gain_over_best_expert": self._record.gain,
            "loss/validation": metrics.val_losses[0],
            "loss/train": metrics.loss,
            "loss/train_global": metrics.train_losses[0],
            "loss/train_individual": sum(metrics.train_losses[1:]),
            "speed/images_per_second": metrics.images_per_second,
            "speed/epoch_seconds": metrics.seconds,
        }
        scalars |= {f"rate/{name}": rate for name, rate in metrics.learning_rates.items()}
        for k, accuracy in enumerate(metrics.val_accuracies[1:]):
            scalars[f"experts/accuracy_{k}"] = accuracy
        return scalars

    def _logs(self, first_epoch: int) -> list[RunLog]:
        if self._run_logs is None:
            self._run_logs = open_run_logs(self._study, self._task, first_epoch)
            if first_epoch == 1 and self.sample is not None:
                side_by_side = torch.cat(list(self.sample()), dim=2)
                for log in self._run_logs:
                    log.image("augmented_training_images", side_by_side)
        return self._run_logs


def open_run_logs(study: Study, task: Task, first_epoch: int) -> list[RunLog]:
    """TensorBoard and W&B as the recipe wants them, or the null log."""
    logs: list[RunLog] = []
    settings = study.identity(task).fields
    if study.recipe.logs.tensorboard:
        lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())
        directory = study.layout.tensorboard(task.name)
        logs.append(TensorBoardLog(directory, first_epoch, {"recipe": lines}))
    mode = study.recipe.logs.wandb
    if mode != "off":
        logs.append(_open_wandb(study, task, mode, settings))
    return logs or [NullLog()]


def _open_wandb(study: Study, task: Task, mode: Any, settings: Mapping[str, Any]) -> RunLog:
    output = Path(study.layout.output_dir)
    return WandbLog(
        output,
        task=task.name,
        model=task.model,
        mode=mode,
        settings=settings,
        run_id=f"{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:8]}-{task.name}",
    )


def _row_cells(row: Row, metrics: EpochMetrics) -> dict[str, object]:
    rates = metrics.learning_rates
    experts = list(zip(metrics.val_accuracies[1:], metrics.val_losses[1:], strict=True))
    cells: dict[str, object] = {
        **_common_cells(metrics),
        "experts_lr": rates.get("experts", 0.0),  # 0: frozen
        "fusion_lr": rates["fusion"],
        "global_head_lr": rates["global_head"],
        "loss_global": metrics.train_losses[0],
        "loss_individual": sum(metrics.train_losses[1:]),
        "loss_total": metrics.loss,
        "alpha": row.alpha,
        "model": row.model,
        "fusion_type": row.method,
    }
    for k, (accuracy, loss) in enumerate(experts):
        cells |= {f"expert_{k}_accuracy": accuracy, f"expert_{k}_loss": loss}
    return cells


def _common_cells(metrics: EpochMetrics) -> dict[str, object]:
    return {
        "epoch": metrics.epoch,
        "train_loss": metrics.loss,
        "train_accuracy": metrics.train_accuracies[0],
        "val_loss": metrics.val_losses[0],
        "val_accuracy": metrics.val_accuracies[0],
        "images_per_second": metrics.images_per_second,
        "seconds": metrics.seconds,
        "timestamp": metrics.timestamp,
    }


def _memory(device: torch.device) -> float:
    """Peak bytes: of this process on its GPU, or its resident memory on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return math.nan if kibibytes == 0 else 1024.0 * kibibytes
