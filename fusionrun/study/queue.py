"""Rows, the tasks they consist of, and which rank does what.

Rank i begins with row i. What comes then is claimed through the process group's store, each task
exactly once, the longest remaining work first.
"""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from torch.distributed import HashStore, Store

from fusionrun.study.recipe import SINGLE, RowConfig

# How long a row that can start is kept for the rank it belongs to. A rank that is free takes it
# within one poll; one that is busy with somebody's expert may be so for hours.
OWNER_SECONDS = 2.0

TaskKind = Literal["expert", "row"]


@dataclass(frozen=True)
class Row:
    """One (model, fusion, seed, alpha, control) of the assignment table."""

    index: int
    model: str
    fusion: str  # or SINGLE: one network on everything that experts and fusion see
    seed: int
    alpha: float
    variant: str  # the method, with -seed<n> or -alpha<x> where they depart from the recipe's
    control: str | None = None  # frozen, detached

    @property
    def name(self) -> str:
        return f"task-{self.index}-{self.model}-{self.variant}"

    @property
    def is_single(self) -> bool:
        return self.fusion == SINGLE

    @property
    def method(self) -> str:
        """The fusion type, with its control."""
        return f"{self.fusion}-{self.control}" if self.control else self.fusion


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

    @property
    def trains_alone(self) -> bool:
        """Whether it trains one network by itself: an expert, or a row that is a single one."""
        return self.row is None or self.row.is_single


def make_rows(entries: Sequence[RowConfig], *, seed: int, alpha: float) -> tuple[Row, ...]:
    """The recipe's rows with its `seed` and `alpha` where they have none of their own."""
    rows = []
    for index, entry in enumerate(entries):
        variant = f"{entry.fusion}-{entry.control}" if entry.control else entry.fusion
        if entry.seed is not None and entry.seed != seed:
            variant += f"-seed{entry.seed}"
        if entry.alpha is not None and entry.alpha != alpha:
            # all its digits: two rows that differ in the ninth must not share their files
            variant += f"-alpha{entry.alpha!r}".removesuffix(".0")
        own_seed = seed if entry.seed is None else entry.seed
        own_alpha = alpha if entry.alpha is None else entry.alpha
        names = entry.model, entry.fusion
        rows.append(Row(index, *names, own_seed, own_alpha, variant, entry.control))
    return tuple(rows)


def make_tasks(
    rows: Sequence[Row],
    *,
    num_experts: int,
    expert_epochs: int,
    fusion_epochs: int,
    expert_cost: Callable[[str], float],
    row_cost: Callable[[Row], float],
) -> tuple[Task, ...]:
    """A task for each of `rows`, the i-th being rank i's own, then one for each expert."""
    tasks: list[Task] = []
    models = list(dict.fromkeys(row.model for row in rows if not row.is_single))
    experts = {model: [f"expert-{model}-{k}" for k in range(num_experts)] for model in models}
    for row in rows:
        needs = () if row.is_single else tuple(experts[row.model])
        epochs = expert_epochs if row.is_single else fusion_epochs
        cost = row_cost(row)
        tasks.append(Task(len(tasks), row.name, "row", row.model, cost, epochs, needs, row=row))
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
    clock: Callable[[], float] = time.monotonic  # seconds
    _claimed: set[str] = field(default_factory=set)
    _outcomes: dict[str, str] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)  # that tasks took
    _startable_since: dict[str, float] = field(default_factory=dict)
    _changes_seen: int = -1  # outcomes there were when nothing could start
    _has_begun: bool = False
    _holds_back: bool = False  # from a row that is reserved for another rank

    def next(self) -> Task | None:
        """Claim a task that can start now; None while nothing can."""
        changes = int(self.store.add("changes", 0))
        if changes == self._changes_seen and not self._holds_back:
            return None
        self._holds_back = False
        for task in self.tasks:
            self.outcome(task.name)  # which also tells how long it took
        for task in self._by_preference():
            if self._can_start(task) and self._may_take(task) and self._claim(task):
                return task
        self._changes_seen = changes
        return None

    def close(self, task: Task, outcome: str, seconds: float | None = None) -> None:
        """Tell everybody how a task ended, "done" or why it failed, and how long it took."""
        if seconds is not None:
            self.store.set(f"seconds/{task.name}", repr(seconds))
        self.store.set(f"outcome/{task.name}", outcome)
        self.store.add("changes", 1)

    def outcome(self, name: str) -> str | None:
        """How the task called `name` ended, or None while it's open."""
        if name not in self._outcomes and self.store.check([f"outcome/{name}"]):
            self._outcomes[name] = self.store.get(f"outcome/{name}").decode()
            if self.store.check([f"seconds/{name}"]):
                self._seconds[name] = float(self.store.get(f"seconds/{name}"))
        return self._outcomes.get(name)

    @property
    def exhausted(self) -> bool:
        """Nothing is left that this rank could still claim."""
        return all(self._is_claimed(task) for task in self.tasks)

    def _by_preference(self) -> list[Task]:
        """This rank's own row (at first an expert of it), then the longest remaining work.

        That is a task with the row behind it: an expert of a slow row comes before a quick row.
        """
        rows = [task for task in self.tasks if task.kind == "row"]
        own = {name for row in rows[self.rank : self.rank + 1] for name in (row.name, *row.needs)}
        paces = self._paces()
        expected = {task.name: task.cost * paces[task.model] for task in self.tasks}
        behind: dict[str, float] = {}
        for row in rows:
            for need in row.needs:
                behind[need] = max(behind.get(need, 0.0), expected[row.name])

        def preference(task: Task) -> tuple[bool, float, bool, int]:
            is_own = task.name in own
            comes_first = is_own and (task.kind == "row" or not self._has_begun)
            remaining = expected[task.name] + behind.get(task.name, 0.0)
            return not comes_first, -remaining, not is_own, task.index

        return sorted(self.tasks, key=preference)

    def _paces(self) -> dict[str, float]:
        """Seconds a unit of cost by model, as its finished tasks show; else all models' mean."""
        known: dict[str, list[float]] = {}
        for task in self.tasks:
            if task.name in self._seconds:
                known.setdefault(task.model, []).append(self._seconds[task.name] / task.cost)
        paces = {model: fmean(each) for model, each in known.items()}
        usual = fmean(paces.values()) if paces else 1.0
        return {task.model: paces.get(task.model, usual) for task in self.tasks}

    def _can_start(self, task: Task) -> bool:
        """Every need has ended (a failed one too: the task then reports why it can't run)."""
        if self._is_claimed(task):
            return False
        return all(self.outcome(need) is not None for need in task.needs)

    def _may_take(self, task: Task) -> bool:
        """Another rank's row is left to it for a moment."""
        owner = task.index if task.kind == "row" else self.rank
        if owner == self.rank or owner >= self.world_size:
            return True
        now = self.clock()
        if now - self._startable_since.setdefault(task.name, now) >= OWNER_SECONDS:
            return True
        self._holds_back = True
        return False

    def _is_claimed(self, task: Task) -> bool:
        if task.name in self._claimed or self.outcome(task.name) is not None:
            return True
        if self.store.check([f"claim/{task.name}"]):
            self._claimed.add(task.name)
            return True
        return False

    def _claim(self, task: Task) -> bool:
        self._claimed.add(task.name)
        is_first = int(self.store.add(f"claim/{task.name}", 1)) == 1
        self._has_begun |= is_first
        return is_first


@dataclass(frozen=True)
class Run:
    """One task in a schedule: which rank does it, from when to when (seconds)."""

    task: Task
    rank: int
    start: float
    end: float


def simulate(tasks: Sequence[Task], seconds: Mapping[str, float], ranks: int) -> list[Run]:
    """What `ranks` ranks do and when, if each task takes `seconds` of its own.

    They claim from real queues by a clock that jumps from event to event. Needs that aren't among
    `tasks` are done.
    """
    now = 0.0
    store = HashStore()
    for need in {need for task in tasks for need in task.needs} - {task.name for task in tasks}:
        store.set(f"outcome/{need}", "done")
    queues = [Queue(tasks, store, rank, ranks, clock=lambda: now) for rank in range(ranks)]
    working: dict[int, Run] = {}
    runs: list[Run] = []
    events = [0.0]  # a heap
    while events:
        now = heapq.heappop(events)
        for rank in [rank for rank, run in working.items() if run.end <= now]:
            run = working.pop(rank)
            queues[rank].close(run.task, "done", run.end - run.start)
        for rank, queue in enumerate(queues):
            if rank not in working and (task := queue.next()) is not None:
                working[rank] = Run(task, rank, now, now + seconds[task.name])
                runs.append(working[rank])
                for moment in (working[rank].end, working[rank].end + OWNER_SECONDS):
                    heapq.heappush(events, moment)
    return runs


def lower_bound(tasks: Sequence[Task], seconds: Mapping[str, float], ranks: int) -> float:
    """Seconds that no schedule can beat: the work shared evenly, or a row after its experts."""
    bound = sum(seconds[task.name] for task in tasks) / ranks
    for task in tasks:
        before = max((seconds.get(need, 0.0) for need in task.needs), default=0.0)
        bound = max(bound, before + seconds[task.name])
    return bound
