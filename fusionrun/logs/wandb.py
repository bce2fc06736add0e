"""Weights & Biases, optional: one run a task, in a project per architecture."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import plain, read_json

PROJECTS: Mapping[str, str] = {
    "densenet": "MCN_DenseNet_Fusion",
    "resnet": "MCN_ResNet_Fusion",
    "improved_wide_resnet": "MCN_ImprovedWideResNet_Fusion",
    "resnext": "MCN_ResNeXt_Fusion",
}
# seconds that W&B may take for what it does by default in 90 or without end
INIT_SECONDS, FINISH_SECONDS = 45.0, 20.0


@dataclass(frozen=True)
class StoredRun:
    """Which W&B run a task's numbers go to."""

    id: str
    place: str  # of the file that says so, when it was written


def run_id(record: Path, *, resumed: bool) -> str:
    """The id of the task's run, kept in the file `record`.

    A task that begins is a new run, whatever was trained at this path before. A resumed one goes
    on with its own wherever its folder is now; in a copy, beside the original, it's a new one.
    Raises OSError.
    """
    place = record.resolve()
    found = _stored(record) if resumed else None
    if found is not None and found.place != str(place):
        original = Path(found.place)
        there = _stored(original)
        if there is not None and there.id == found.id and not original.samefile(place):
            found = None
    stored = StoredRun(found.id if found else secrets.token_hex(6), str(place))
    write_json(record, plain(stored))
    return stored.id


def _stored(record: Path) -> StoredRun | None:
    try:
        return read_json(record, StoredRun)
    except (OSError, ValueError):
        return None


class WandbLog:
    """A run called as its task; `offline` writes it to disk for a later `wandb sync`.

    Raises ImportError when the wandb package isn't installed, and what wandb raises.
    """

    def __init__(
        self,
        directory: Path,
        *,
        task: str,
        model: str,
        mode: Literal["offline", "online"],
        settings: Mapping[str, Any],
        run_id: str,
    ) -> None:
        import wandb

        # create_new: a rank may train several tasks at once
        quiet = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_SECONDS, reinit="create_new"
        )
        if hasattr(quiet, "finish_timeout"):  # since W&B 0.24
            quiet.finish_timeout = FINISH_SECONDS
        # the id makes a resumed task continue its own run
        self._run = wandb.init(
            project=PROJECTS.get(model, f"MCN_{model}_Fusion"),
            name=task,
            id=run_id,
            resume="allow",
            dir=str(directory),
            mode=mode,
            config=dict(settings),
            settings=quiet,
        )

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self._run.log({**values, "epoch": epoch}, step=epoch)

    def image(self, tag: str, pixels: Tensor) -> None:
        """Pixels (3, H, W) uint8."""
        import wandb

        picture = wandb.Image(pixels.permute(1, 2, 0).cpu().numpy())
        self._run.log({tag: picture}, commit=False)  # belongs to the epoch that comes

    def outcome(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The run's summary; its settings are the config since the start."""
        self._run.summary.update(dict(metrics))

    def close(self) -> None:
        self._run.finish()
