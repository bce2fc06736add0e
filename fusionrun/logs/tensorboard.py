"""TensorBoard, one run a task, grouped so that runs compare at a glance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fusionrun.tables.headline import GAIN, GAIN_KEY

Charts = Mapping[str, Mapping[str, list[Any]]]

# of the Custom Scalars tab: {category: {chart: [kind, tags as regular expressions]}}
LAYOUT: Charts = {
    "Rows": {
        "fused accuracy on validation": ["Multiline", ["^accuracy/validation$"]],
        GAIN: ["Multiline", [f"^accuracy/{GAIN_KEY}$"]],
        "training loss": ["Multiline", ["^loss/train$"]],
        "experts' accuracy on validation": ["Multiline", [r"^experts/accuracy_\d+$"]],
        "rates": ["Multiline", ["^rate/"]],
    },
    "Experts before fusion": {
        "accuracy on validation": ["Multiline", ["^expert_training/accuracy_validation$"]],
        "training loss": ["Multiline", ["^expert_training/loss_train$"]],
    },
}


class TensorBoardLog:
    """Event files in `directory`; of earlier ones counts what lies before `first_epoch`.

    `text` by tag and the charts of LAYOUT are written once, by the launch that begins.
    """

    def __init__(self, directory: Path, first_epoch: int, text: Mapping[str, str]) -> None:
        # costs about a second, which a launch without TensorBoard need not pay
        from torch.utils.tensorboard import SummaryWriter

        # what another experiment left here has no part in one that begins
        resumed = first_epoch > 1 and any(directory.glob("events.*"))
        self._writer = SummaryWriter(str(directory), purge_step=first_epoch if resumed else 0)
        if not resumed:
            self._writer.add_custom_scalars(LAYOUT)
            for tag, value in text.items():
                self._writer.add_text(tag, value)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()

    def image(self, tag: str, pixels: Tensor) -> None:
        """Pixels (3, H, W) uint8."""
        self._writer.add_image(tag, pixels)

    def outcome(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The task's line in the HParams tab: its settings and how it ended."""
        from torch.utils.tensorboard.summary import hparams

        values = {key: value for key, value in settings.items() if value is not None}
        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in values.items()}
        for summary in hparams(plain, dict(metrics)):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        self.scalars(metrics, 0)

    def close(self) -> None:
        self._writer.close()
