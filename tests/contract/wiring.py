"""How every task is wired, read from the trainers that execute it.

`python -m tests.contract.wiring [MODEL ...]` prints it for architectures as published, and
test_wiring.py holds it to literal tables. A task is executed as a rank does it, from the recipe to
the saved files, but for two things: epochs have no steps, and what validation finds is written
here.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from fusionrun.data.loader import Batch
from fusionrun.experts import BUILDERS
from fusionrun.fusions import FUSIONS
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.train_task import train
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.tasks import RowTask, Task
from fusionrun.training.trainer import Trainer

CLASSES = 4
# the epochs in which a task's first head, and the mean of the experts' probabilities, are best;
# neither is the last one, and the next one is as accurate with a larger loss
HEAD_BEST, MEAN_BEST = 4, 6

CONTROLS = ("frozen", "detached", "single", "full_ensemble")

RECIPE = f"""
output_dir: out
data: {{name: synthetic, num_classes: {CLASSES}, train_images: 160, test_images: 8, image_size: 16,
  val_fraction: 0.25}}
experts: {{count: 2, epochs: 10}}
fusion: {{epochs: 12}}
runtime: {{device: cpu, threads: 1}}
logs: {{tensorboard: false}}
"""


class Scripted(Trainer):
    """Learns nothing: each epoch leaves its number in the heads, and finds what is written here.

    Its only step is its end.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begun: list[dict[str, float]] = []  # {group: rate} in the optimizer, by epoch
        self.training: dict[nn.Module, bool] = {}  # modules' modes while the model learns

    def steps(self) -> Iterator[None]:
        yield from super().steps()
        yield

    def start_epoch(self) -> Iterator[Batch]:
        super().start_epoch()
        groups = self.optimisation.optimizer.param_groups
        self.begun.append({group["name"]: float(group["lr"]) for group in groups})
        self.training = {module: module.training for module in self.model.modules()}
        for head in heads(self.model):
            head.bias.data.fill_(len(self.begun))
        return iter(())

    def validate(self) -> tuple[list[float], list[float], float | None]:
        epoch, experts = len(self.begun), len(self.optimisation.head_weights) - 1
        losses = [2.0 - (epoch == HEAD_BEST)] * (1 + experts)
        fused = 60.0 if epoch in (HEAD_BEST, HEAD_BEST + 1) else 40.0
        averaged = 70.0 if epoch in (MEAN_BEST, MEAN_BEST + 1) else 50.0
        return losses, [fused, *validated(epoch, experts)], averaged if experts else None


def validated(epoch: int, experts: int) -> list[float]:
    """What each expert of a row comes to in that epoch."""
    return [10.0 * epoch + k for k in range(experts)]


def heads(model: nn.Module) -> list[nn.Linear]:
    """What answers: the experts' classifiers and the global head."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [module for module in linear if module.out_features == CLASSES]


@dataclass(frozen=True)
class Wired:
    """A task that was executed, and what executed it."""

    context: RunContext
    task: Task
    trainer: Scripted
    is_saved: bool  # and was measured

    @property
    def augmentation(self) -> Any:
        return self.trainer.loaders.train.augmentation

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the optimizer, the same in each of its groups, but for what the groups differ in."""
        own = ("params", "lr", "name")
        first, *others = (
            {name: value for name, value in group.items() if name not in own}
            for group in self.trainer.optimisation.optimizer.param_groups
        )
        assert all(other == first for other in others)
        return first

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Of the model: expert k, fusion, global head; a network alone is expert 0."""
        experts = getattr(self.trainer.model, "experts", [self.trainer.model])
        parts = {f"expert {k}": expert for k, expert in enumerate(experts)}
        named = dict(self.trainer.model.named_children())
        others = {name: named[name] for name in ("fusion", "global_head") if name in named}
        return parts | others

    def dropout(self, part: str) -> set[float]:
        """All rates in that part of the model."""
        modules = [*self.parts[part].modules()]
        rates = {module.p for module in modules if isinstance(module, nn.Dropout)}
        return rates | {m.dropout for m in modules if isinstance(m, nn.MultiheadAttention)}


def open_recipe(folder: Path, *overrides: str) -> RunContext:
    """RECIPE with the `overrides`, which bring its rows, in `folder`."""
    path = folder / "wiring.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path, [f"output_dir={folder / 'out'}", *overrides])
    study = plan_study(recipe, "wiring")
    return open_context(study, torch.device("cpu"), 1, progress=lambda text: None)


def executed(context: RunContext, saved: Sequence[str]) -> dict[str, Wired]:
    """Every task of the study that trains, as a rank executes them: "resnet 0" of experts,

    "resnet/concatenation-frozen" of rows, "resnet/single-network1" of a full ensemble's networks.
    What rows need and those of the architectures `saved` are executed to the end, the other rows
    until they are trained.
    """
    found = {}
    for task in sorted(context.study.tasks, key=lambda task: bool(task.needs)):
        ends = not task.needs or task.model in saved
        for trainer in trainers_of(context, task, ends):  # a full ensemble has none of its own
            found[name_of(task)] = Wired(context, task, trainer, ends)
    return found


def name_of(task: Task) -> str:
    if isinstance(task, RowTask):
        return f"{task.model}/{task.row.variant}"
    return f"{task.model} {task.expert}" + (f" of seed {task.seed}" if task.seed else "")


def trainers_of(context: RunContext, task: Task, to_the_end: bool) -> list[Scripted]:
    """Execute it, from new or loaded weights to saved files, or to trained ones."""
    made = list[Scripted]()

    def scripted(*arguments: Any, **more: Any) -> Scripted:
        made.append(Scripted(*arguments, **more))
        return made[-1]

    path = context.study.layout.task_log(task.name)
    with TaskLog(path, task.name) as log, patch("fusionrun.launch.trainers.Trainer", scripted):
        device = context.device
        with closing(TaskReporter(context.study, task, Record(), log, device)) as reporter:
            for _ in train(context, task, reporter):
                if not to_the_end:
                    break
    return made


def cells(name: str, wired: Wired) -> dict[str, str]:
    """A line of the table."""
    trainer, optimisation = wired.trainer, wired.trainer.optimisation
    first, last = trainer.begun[0], trainer.begun[-1]
    groups = optimisation.groups
    weights = ", ".join(f"{weight:g}" for weight in optimisation.head_weights.tolist())
    augmentation, dropout = wired.augmentation, {part: wired.dropout(part) for part in wired.parts}
    policy = augmentation.policy
    if policy == "randaugment":
        policy += f" {augmentation.num_ops}/{augmentation.magnitude}"
    loaders = trainer.loaders
    return {
        "task": name,
        "optimizer": type(optimisation.optimizer).__name__,
        "rate, first to last epoch": "; ".join(
            f"{group.name} {first[group.name]:.3g} to {last[group.name]:.3g}" for group in groups
        ),
        "schedule": ", ".join(dict.fromkeys(group.schedule.__name__ for group in groups)),
        "clip": ", ".join(f"{group.clip:g}" for group in groups),
        "decay": f"{wired.settings['weight_decay']:g}",
        "weights of losses": weights,
        "smoothing": f"{optimisation.label_smoothing:g}",
        "augmentation": f"{policy}, erasing {augmentation.erasing:g}, "
        f"{augmentation.mixing} {augmentation.mixing_alpha:g}",
        "dropout": "; ".join(
            f"{part} {max(p):g}" for part, p in dropout.items() if max(p, default=0)
        ),
        "images": f"{loaders.train.num_images} by {loaders.train.batch_size}, "
        f"{loaders.validation.num_images} validate",
        "epoch": f"{trainer.best.epoch} of {len(trainer.begun)}",
    }


def main(models: Sequence[str]) -> None:
    """As published, but for the images, which are few and made."""
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            grid = f"grid={{models: [{model}], fusions: [{', '.join(FUSIONS)}]}}"
            context = open_recipe(Path(folder), grid, f"controls=[{', '.join(CONTROLS)}]")
            lines = [cells(*named) for named in executed(context, saved=()).items()]
        print(
            f"\n{model}; the first head is best in epoch {HEAD_BEST}, "
            f"the mean of the experts' probabilities in {MEAN_BEST}\n"
        )
        print(f"| {' | '.join(lines[0])} |")
        print("|---" * len(lines[0]) + "|")
        for line in lines:
            print(f"| {' | '.join(line.values())} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.contract.wiring", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="architectures; none: all four")
    main(parser.parse_args(sys.argv[1:]).models or list(BUILDERS))
