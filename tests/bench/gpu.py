"""What only a GPU has, figure by figure, while the time lasts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tests.bench import gpu_launches, gpu_steps, gpu_tasks
from tests.bench.measure import MODELS, Bench, Row

BUDGET = 460.0  # seconds for all figures


@dataclass(frozen=True)
class Figure:
    """A measurement that is left out where less than its seconds, of an H100, are left."""

    name: str
    seconds: int
    measure: Callable[[Bench], list[Row]]


# what there is a goal for comes first
FIGURES = (
    *(Figure(f"{model} row", 25, partial(gpu_steps.row_steps, model=model)) for model in MODELS),
    *(
        Figure(f"{model} expert", 20, partial(gpu_steps.expert_steps, model=model))
        for model in MODELS
    ),
    Figure("whole command", 40, gpu_launches.row_command),
    Figure("first epoch", 40, gpu_tasks.first_epoch),
    *(
        Figure(f"save of a {model} row", 15, partial(gpu_tasks.save_pause, model=model))
        for model in ("densenet", "improved_wide_resnet")
    ),
    Figure("waits", 5, gpu_tasks.waits),
    Figure("learning curve", 20, gpu_tasks.curve),
    *(
        Figure(f"{model} in fp16", 10, partial(gpu_steps.halves, model=model))
        for model in ("densenet", "resnext")
    ),
    Figure("makespan", 110, gpu_launches.study_command),
)


# kernels that are made for a network take a minute and more
COMPILED = tuple(
    Figure(f"{model} compiled", seconds, partial(gpu_steps.compiled, model=model))
    for model, seconds in (
        ("resnet", 60),
        ("resnext", 80),
        ("densenet", 240),
        ("improved_wide_resnet", 60),
    )
)


def measure(bench: Bench) -> list[Row]:
    """What is compiled only where time is left."""
    return figures_of(bench, [*FIGURES, *COMPILED], BUDGET)


def measure_compiled(bench: Bench) -> list[Row]:
    """However long it takes."""
    return figures_of(bench, COMPILED, float("inf"))


def figures_of(bench: Bench, figures: Sequence[Figure], budget: float) -> list[Row]:
    """Their rows; what wasn't measured says why, and keeps no other from being measured."""
    began, rows = time.monotonic(), list[Row]()
    for figure in figures:
        left = budget - (time.monotonic() - began)
        if not bench.on_gpu:
            rows.append(Row("gpu", figure.name, None, note="there is no GPU here"))
        elif left < figure.seconds:
            rows.append(Row("gpu", figure.name, None, note=f"no time left: {left:.0f} s"))
        else:
            bench.say(f"gpu: {figure.name}")
            rows += gpu_steps.unless_it_fails(partial(figure.measure, bench), figure.name)
            gpu_steps.give_back()
    return rows
