"""Weights & Biases, optional: one run a task, in a project per architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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

    def close(self) -> None:
        self._run.finish()
