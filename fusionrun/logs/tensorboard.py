"""Scalars for TensorBoard, one run a task, grouped so that runs compare at a glance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class ScalarLog(Protocol):
    """Where scalars by tag go; the null log takes them nowhere."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None: ...

    def close(self) -> None: ...


class NullLog:
    """No TensorBoard, no Weights & Biases."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoardLog:
    """Event files in `directory`; of earlier ones counts what lies before `first_epoch`.

    `text` by tag is written once, by the first launch that works here.
    """

    def __init__(self, directory: Path, first_epoch: int, text: Mapping[str, str]) -> None:
        # costs about a second, which a launch without TensorBoard need not pay
        from torch.utils.tensorboard import SummaryWriter

        resumed = any(directory.glob("events.*"))
        self._writer = SummaryWriter(str(directory), purge_step=first_epoch)
        if not resumed:
            for tag, value in text.items():
                self._writer.add_text(tag, value)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
