"""Which rank does what: the launch's open tasks, claimed one by one.

Rank i begins with row i. What comes then is claimed through the process group's store, each task
exactly once, the longest remaining work first.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from torch.distributed import Store

from fusionrun.study.tasks import ExpertTask, RowTask, Task

# How long a row that can start is kept for the rank it belongs to. A rank that is free takes it
# within one poll; one that is busy with somebody's expert may be so for hours.
OWNER_SECONDS = 2.0
Work = Literal["idle", "row", "other"]  # a row of experts, or what trains one network


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
    _work: Work | None = None
    _has_begun: bool = False
    _rounds: int = 0  # of sharing out that this rank has been in
    _holds_back: bool = False  # from a row that is reserved for another rank

    def next(self) -> Task | None:
        """Claim a task that can start now; None while nothing can. All are told what this does."""
        task = self._claim()
        work: Work = "idle" if task is None else "other" if task.trains_alone else "row"
        if work != self._work:
            self._work = work
            self.store.set(f"work/{self.rank}", work)
        return task

    def work_of(self, rank: int) -> str:
        """What `rank` does, a `Work`; "" before it has begun."""
        key = f"work/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _claim(self) -> Task | None:
        # not add(..., 0): a store in a file grows by whatever is added, and ranks poll for hours
        changes = int(self.store.get("changes")) if self.store.check(["changes"]) else 0
        if changes == self._changes_seen and not self._holds_back:
            return None
        self._holds_back = False
        for task in self.tasks:
            self.outcome(task.name)  # which also tells how long it took
        for task in self._by_preference():
            if self._is_claimed(task) or any(self.outcome(need) is None for need in task.needs):
                continue  # a need that failed has ended, too: the task then says why it can't run
            if self._may_take(task):
                self._claimed.add(task.name)
                if int(self.store.add(f"claim/{task.name}", 1)) == 1:
                    self._has_begun = True
                    return task
        self._changes_seen = changes
        return None

    def beside(
        self, task: Task, most: int, may_be: Callable[[Task], bool] = lambda other: True
    ) -> list[Task]:
        """Claim experts to be trained beside this one, of its model: `most`, or fewer.

        Those `may_be`, and no more than this rank's share: in each round a rank that comes takes an
        equal part of what could start and leaves the rest to those that are still to come.
        """
        if most < 1 or not isinstance(task, ExpertTask):
            return []
        come = int(self.store.add(f"round/{self._rounds}", 1))
        self._rounds += 1
        free = [
            other
            for other in self._by_preference()
            if not self._is_claimed(other)
            and all(self.outcome(need) is not None for need in other.needs)
        ]
        share = (1 + len(free)) // (self.world_size - come + 1) - 1
        alike = [other for other in free if other.model == task.model and may_be(other)]
        taken: list[Task] = []
        for other in alike:
            if len(taken) < min(most, share) and isinstance(other, ExpertTask):
                self._claimed.add(other.name)
                if int(self.store.add(f"claim/{other.name}", 1)) == 1:
                    taken.append(other)
        return taken

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
        rows = [task for task in self.tasks if isinstance(task, RowTask)]
        own = {name for row in rows[self.rank : self.rank + 1] for name in (row.name, *row.needs)}
        paces = self._paces()
        expected = {task.name: task.cost * paces[task.model] for task in self.tasks}
        behind: dict[str, float] = {}
        for row in rows:
            for need in row.needs:
                behind[need] = max(behind.get(need, 0.0), expected[row.name])

        def preference(task: Task) -> tuple[bool, float, bool, int]:
            is_own = task.name in own
            comes_first = is_own and (isinstance(task, RowTask) or not self._has_begun)
            remaining = expected[task.name] + behind.get(task.name, 0.0)
            return not comes_first, -remaining, not is_own, task.index

        return sorted(self.tasks, key=preference)

    def _paces(self) -> dict[str, float]:
        """Seconds a unit of cost by model, as its finished tasks show; else all models' mean.

        A mixed row's is that of its architectures.
        """
        known: dict[str, list[float]] = {}
        for task in self.tasks:
            if task.name in self._seconds:
                known.setdefault(task.model, []).append(self._seconds[task.name] / task.cost)
        paces = {model: fmean(each) for model, each in known.items()}
        usual = fmean(paces.values()) if paces else 1.0
        for task in self.tasks:
            models = task.row.architectures if isinstance(task, RowTask) else ()
            if found := [paces[model] for model in models if model in paces]:
                paces.setdefault(task.model, fmean(found))
        return {task.model: paces.get(task.model, usual) for task in self.tasks}

    def _may_take(self, task: Task) -> bool:
        """Another rank's row is left to it for a moment."""
        owner = task.index if isinstance(task, RowTask) else self.rank
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
