"""How everything is measured: sides in turn, round by round, and ratios within a round.

What disturbs the machine for a while then hits both sides alike. A figure is the median over the
rounds; low and high are the smallest and largest round, nothing is left out.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from fusionrun.common.device_errors import is_out_of_memory
from fusionrun.training.errors import TaskError

ROUNDS = 7  # counted ones; one more goes before them to warm up
MODELS = ("resnet", "densenet", "improved_wide_resnet", "resnext")


@dataclass
class Bench:
    """Where measurements are made."""

    device: torch.device
    cores: int  # that this process may use
    scratch: Path
    say: Callable[[str], None]
    rounds: int = ROUNDS
    peers_python: Path | None = None  # that has the programs we compare with; None: this one

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def folder(self, name: str) -> Path:
        """A new folder for one measurement's files."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))

    def settle(self) -> None:
        """Wait until the device has done everything asked of it."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], object], repeat: int = 1) -> Callable[[], float]:
        """A side: seconds that one `work()` takes, over `repeat` of them."""

        def side() -> float:
            self.settle()
            start = time.perf_counter()
            for _ in range(repeat):
                work()
            self.settle()
            return (time.perf_counter() - start) / repeat

        return side

    def interleave(self, *sides: Callable[[], float]) -> list[list[float]]:
        return interleave(sides, self.rounds)


@dataclass(frozen=True)
class Goal:
    """What a ratio should be."""

    value: float
    at_most: bool = False  # else at least

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.value if self.at_most else ratio >= self.value

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}"


@dataclass(frozen=True)
class Row:
    """One line of the report; without rounds it says in `note` why there is no number."""

    group: str
    name: str
    goal: Goal | None  # None: nobody has set one
    ratios: Sequence[float] = ()  # of each round
    ours: float | None = None  # median, in `unit`
    theirs: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        if self.goal is None or self.ratio is None:
            return None
        return self.goal.is_met(self.ratio)

    def to_json(self) -> dict[str, object]:
        return {
            "group": self.group,
            "name": self.name,
            "ratio": self.ratio,
            "low": min(self.ratios, default=None),
            "high": max(self.ratios, default=None),
            "goal": str(self.goal) if self.goal else None,
            "met": self.met,
            "ours": self.ours,
            "theirs": self.theirs,
            "unit": self.unit,
            "rounds": len(self.ratios),
            "note": self.note,
        }


def interleave(
    sides: Sequence[Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> list[list[float]]:
    """Costs of each side in each round; every round starts with another side.

    A round more goes before them to warm up, but for sides that always begin cold.
    """
    costs: list[list[float]] = [[] for _ in sides]
    for number in range(0 if warm_up else 1, rounds + 1):
        for turn in range(len(sides)):
            side = (number + turn) % len(sides)
            cost = sides[side]()
            if number > 0:
                costs[side].append(cost)
    return costs


def times_as_fast(
    group: str,
    name: str,
    goal: float | None,
    *,
    theirs: Sequence[float],
    ours: Sequence[float],
    unit: str = "s",
    note: str = "",
) -> Row:
    """How many times what ours costs theirs does."""
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    least = None if goal is None else Goal(goal)
    return Row(group, name, least, ratios, median(ours), median(theirs), unit, note)


def share(
    group: str,
    name: str,
    goal: float | None,
    *,
    ours: Sequence[float],
    of: Sequence[float],
    unit: str = "s",
    note: str = "",
) -> Row:
    """Ours as a part or a multiple of something else, which should stay small if there's a goal."""
    ratios = [our / whole for our, whole in zip(ours, of, strict=True)]
    most = None if goal is None else Goal(goal, at_most=True)
    return Row(group, name, most, ratios, median(ours), median(of), unit, note)


def unless_out_of_memory(measure: Callable[[], list[Row]], group: str, name: str) -> list[Row]:
    """What `measure` finds, or a row that says so: the next may need less."""
    try:
        return measure()
    except (RuntimeError, TaskError) as error:  # which is what a step makes of it
        if not (is_out_of_memory(error) or isinstance(error, TaskError)):
            raise
    gc.collect()  # the traceback held what filled the memory
    torch.cuda.empty_cache()
    return [Row(group, name, None, note="out of memory")]
