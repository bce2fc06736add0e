"""Rows, the tasks they consist of, and which rank does what.

Row i belongs to rank i. Whatever no rank owns is claimed through the process group's store,
longest expected first, each task exactly once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch.distributed import Store

# How long a row that can start is kept for the rank it belongs to. A rank that is free takes it
# within one poll; one that is busy with somebody's expert may be so for hours.
OWNER_SECONDS = 2.0

TaskKind = Literal["expert", "row"]


@dataclass(frozen=True)
class Row:
    """One (model, fusion, seed, alpha) of the assignment table."""

    index: int
    model: str
    fusion: str
    seed: int
    alpha: float
    variant: str  # the fusion, with -seed<n> or -alpha<x> where they depart from the recipe's

    @property
    def name(self) -> str:
        return f"task-{self.index}-{self.model}-{self.variant}"


@dataclass(frozen=True)
class Task:
    """What one rank executes at a time: one expert's training or one row's fusion training."""

    index: int  # position in the launch's list of tasks, the same on every rank
    name: str
    kind: TaskKind
    model: str
    cost: float  # expected work, in any unit that all tasks share
    epochs: int
    needs: tuple[str, ...] = ()  # names of tasks that must be done before
    row: Row | None = None
    expert: int | None = None


def make_rows(
    entries: Sequence[tuple[str, str, int | None, float | None]], *, seed: int, alpha: float
) -> tuple[Row, ...]:
    """Rows from (model, fusion, seed or None, alpha or None), None meaning the recipe's value."""
    rows = []
    for index, (model, fusion, own_seed, own_alpha) in enumerate(entries):
        variant = fusion
        if own_seed is not None and own_seed != seed:
            variant += f"-seed{own_seed}"
        if own_alpha is not None and own_alpha != alpha:
            # all its digits: two rows that differ in the ninth must not share their files
            variant += f"-alpha{own_alpha!r}".removesuffix(".0")
        row_seed = seed if own_seed is None else own_seed
        row_alpha = alpha if own_alpha is None else own_alpha
        rows.append(Row(index, model, fusion, row_seed, row_alpha, variant))
    return tuple(rows)


def make_tasks(
    rows: Sequence[Row],
    *,
    num_experts: int,
    expert_epochs: int,
    fusion_epochs: int,
    expert_cost: Callable[[str], float],
    row_cost: Callable[[str], float],
) -> tuple[Task, ...]:
    """The rows (tasks 0..R-1, so that a row's task has its index), then their experts."""
    tasks: list[Task] = []
    models = list(dict.fromkeys(row.model for row in rows))
    experts = {model: [f"expert-{model}-{k}" for k in range(num_experts)] for model in models}
    for row in rows:
        needs = tuple(experts[row.model])
        cost = row_cost(row.model)
        tasks.append(
            Task(len(tasks), row.name, "row", row.model, cost, fusion_epochs, needs, row=row)
        )
    for model in models:
        for k, name in enumerate(experts[model]):
            cost = expert_cost(model)
            tasks.append(Task(len(tasks), name, "expert", model, cost, expert_epochs, expert=k))
    return tuple(tasks)


@dataclass
class Queue:
    """The launch's open tasks as one rank sees them, shared through `store`."""

    tasks: Sequence[Task]
    store: Store
    rank: int
    world_size: int
    _claimed: set[str] = field(default_factory=set)
    _outcomes: dict[str, str] = field(default_factory=dict)
    _startable_since: dict[str, float] = field(default_factory=dict)

    def next(self) -> Task | None:
        """Claim a task that can start now; None while nothing can."""
        for task in self._by_preference():
            if self._can_start(task) and self._may_take(task) and self._claim(task):
                return task
        return None

    def close(self, task: Task, outcome: str) -> None:
        """Tell everybody how a task ended: "done", or why it failed."""
        self._outcomes[task.name] = outcome
        self.store.set(f"outcome/{task.name}", outcome)

    def outcome(self, name: str) -> str | None:
        """How the task called `name` ended, or None while it's open."""
        if name not in self._outcomes and self.store.check([f"outcome/{name}"]):
            self._outcomes[name] = self.store.get(f"outcome/{name}").decode()
        return self._outcomes.get(name)

    @property
    def exhausted(self) -> bool:
        """Nothing is left that this rank could still claim."""
        return all(self._is_claimed(task) for task in self.tasks)

    def _by_preference(self) -> list[Task]:
        """This rank's own row and its experts, then the longest expected first."""
        rows = [task for task in self.tasks if task.kind == "row"]
        own: set[str] = set()
        if self.rank < len(rows):
            own = {rows[self.rank].name, *rows[self.rank].needs}
        return sorted(self.tasks, key=lambda task: (task.name not in own, -task.cost, task.index))

    def _can_start(self, task: Task) -> bool:
        """Every need has ended (a failed one too: the task then reports why it can't run)."""
        if self._is_claimed(task):
            return False
        return all(self.outcome(need) is not None for need in task.needs)

    def _may_take(self, task: Task) -> bool:
        """Another rank's row is left to it for a moment."""
        owner = task.row.index if task.row is not None else self.rank
        if owner == self.rank or owner >= self.world_size:
            return True
        now = time.monotonic()
        return now - self._startable_since.setdefault(task.name, now) >= OWNER_SECONDS

    def _is_claimed(self, task: Task) -> bool:
        if task.name in self._claimed or self.outcome(task.name) is not None:
            return True
        if self.store.check([f"claim/{task.name}"]):
            self._claimed.add(task.name)
            return True
        return False

    def _claim(self, task: Task) -> bool:
        self._claimed.add(task.name)
        return int(self.store.add(f"claim/{task.name}", 1)) == 1
