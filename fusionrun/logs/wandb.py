"""Weights & Biases, optional: one run a task, in a project per architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

PROJECTS: Mapping[str, str] = {
    "densenet": "MCN_DenseNet_Fusion",
    "resnet": "MCN_ResNet_Fusion",
    "improved_wide_resnet": "MCN_ImprovedWideResNet_Fusion",
    "resnext": "MCN_ResNeXt_Fusion",
}


class WandbLog:
    """A run called as its task; `offline` writes it to disk for a later `wandb sync`.

    Raises ImportError when the wandb package isn't installed.
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

        # the id makes a resumed task continue its own run
        self._run = wandb.init(
            project=PROJECTS.get(model, f"MCN_{model}_Fusion"),
            name=task,
            id=run_id,
            resume="allow",
            dir=str(directory),
            mode=mode,
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
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
