"""How long a launch takes: its claims played through by a clock that jumps, and the least time."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.distributed import HashStore

from fusionrun.study.queue import OWNER_SECONDS, Queue
from fusionrun.study.tasks import Task


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
