"""Tables of epochs as CSV: always the whole file, so never half a row."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionrun.common.atomic_files import write_text
from fusionrun.tables.csv import csv_text


def row_columns(num_experts: int) -> tuple[str, ...]:
    """Columns of a row's training log. Accuracies are percent; losses are means over the epoch."""
    experts = [f"expert_{k}_{what}" for k in range(num_experts) for what in ("accuracy", "loss")]
    return (
        "epoch",
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "experts_lr",
        "fusion_lr",
        "global_head_lr",
        "loss_global",
        "loss_individual",
        "loss_total",
        *experts,
        "images_per_second",
        "seconds",
        "alpha",
        "model",
        "fusion_type",
        "timestamp",
    )


EXPERT_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "best_val_accuracy",
    "images_per_second",
    "seconds",
    "model",
    "expert",
    "timestamp",
)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write all rows, atomically. Raises ValueError for a value that has no column."""
    EpochCsv(path, columns).write(rows)


class EpochCsv:
    """The file of a table that grows: written whole, though only new rows are made text of."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._columns = columns
        self._text = csv_text([], columns)

    def write(self, new: Sequence[Mapping[str, object]]) -> None:
        """Rows of before and these, atomically; where that fails (OSError), the next has all.

        Raises ValueError for a value that has no column.
        """
        # 7 significant digits: more than the training's own precision
        lines = [
            {key: f"{value:.7g}" if isinstance(value, float) else value for key, value in r.items()}
            for r in new
        ]
        self._text += csv_text(lines, self._columns).partition("\n")[2]
        write_text(self._path, self._text, durable=False)
