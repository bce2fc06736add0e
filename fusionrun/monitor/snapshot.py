"""The state of a launch at one moment: what the table shows and status.json holds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from fusionrun.common.distributed import RankInfo
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.heartbeat import read_heartbeat
from fusionrun.monitor.record import ENDED, Outcome, RankState, Record, read_outcome
from fusionrun.study.paths import Layout
from fusionrun.study.tasks import RowTask, Task
from fusionrun.tables.headline import GAIN_KEY

TaskState = Literal["waiting", "queued", "running", "done", "failed", "stopped"]
LaunchState = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class TaskStatus:
    """One task as the table shows it; None: not measured."""

    name: str
    kind: Literal["expert", "row"]
    model: str
    fusion: str  # "" for an expert
    state: TaskState
    epochs: int
    rank: int | None = None
    epoch: int = 0  # completed
    step: int = 0
    steps: int = 0
    train_loss: float | None = None
    train_accuracy: float | None = None  # percent, as every accuracy here
    val_loss: float | None = None
    val_accuracy: float | None = None
    best: float | None = None
    best_epoch: int | None = None
    gain: float | None = field(default=None, metadata={"key": GAIN_KEY})  # on validation, points
    experts: tuple[float | None, ...] = ()
    images_per_second: float | None = None
    eta_seconds: float | None = None
    seconds: float | None = None  # spent, once ended
    note: str = ""  # why it failed, what it waits for

    @property
    def progress(self) -> float:
        """Finished part, 0 to 1."""
        if self.state == "done":
            return 1.0
        part = self.step / self.steps if self.steps else 0.0
        return min((self.epoch + part) / max(self.epochs, 1), 1.0)

    def while_running(self, rank: int, record: Record) -> "TaskStatus":
        """The task as `rank`, which has it in hand, publishes it."""
        return replace(
            self,
            state="stopped" if record.state == "stopped" else "running",
            rank=rank,
            epoch=int(record.epoch),
            step=int(record.step),
            steps=int(record.steps),
            train_loss=record.train_loss,
            train_accuracy=record.train_accuracy,
            val_loss=record.val_loss,
            val_accuracy=record.val_accuracy,
            best=record.best,
            best_epoch=None if record.best_epoch is None else int(record.best_epoch),
            gain=record.gain,
            experts=tuple(record.experts) if self.kind == "row" else (),
            images_per_second=record.images_per_second,
            eta_seconds=record.eta_seconds,
            note=record.note,
        )


@dataclass(frozen=True)
class RankStatus:
    """One process as the table shows it."""

    rank: int
    state: RankState
    task: str | None
    heartbeat_age: float | None  # seconds since it was last seen alive; None: never seen
    memory_bytes: float | None
    note: str = ""
    still_seconds: float = 0.0  # without any progress in its work
    busy_seconds: float = 0.0  # spent on tasks in this launch
    host: str = ""


@dataclass(frozen=True)
class Snapshot:
    """Everything the table shows, at one moment; the schema of status.json."""

    study: str  # the recipe's name
    output_dir: str
    state: LaunchState
    started: float  # seconds since 1970
    updated: float
    elapsed: float  # seconds of this launch
    eta_seconds: float | None
    progress: float  # of all tasks by expected work, 0 to 1
    world_size: int
    threads: int
    device: str
    nodes: int
    restarts: int
    job_id: str | None
    channel: str  # "" or why the gather no longer works
    tasks: tuple[TaskStatus, ...]
    ranks: tuple[RankStatus, ...]


class SnapshotBuilder:
    """Rank 0's view of the launch: gathered records, heartbeat files and outcomes -> Snapshot.

    `outcome_of` knows what became of a task ("done" or why it failed) without any file.
    """

    def __init__(
        self,
        layout: Layout,
        tasks: Sequence[Task],
        gather: StatusGather,
        rank_info: RankInfo,
        *,
        study: str,
        device: str,
        threads: int,
        outcome_of: Callable[[str], str | None],
    ) -> None:
        self._layout = layout
        self._tasks = tasks
        self._gather = gather
        self._rank_info = rank_info
        self._study = study
        self._device = device
        self._threads = threads
        self._outcome_of = outcome_of
        self._started = time.time()
        # (rank, what): (count, when it last changed); by this machine's clock, clocks differ
        self._counts: dict[tuple[int, str], tuple[float, float]] = {}

    def build(self) -> Snapshot:
        """The state of the launch now."""
        now = time.time()
        # of every rank, once the first gather is through
        gathered = dict(enumerate(self._gather.records))
        records = [
            fresher(gathered.get(rank), read_heartbeat(self._layout.heartbeat(rank)))
            for rank in range(self._rank_info.world_size)
        ]
        tasks = self._task_statuses(records)
        ranks = tuple(self._rank_status(rank, record, now) for rank, record in enumerate(records))
        pairs = zip(self._tasks, tasks, strict=True)
        unfinished = [(task, status) for task, status in pairs if status.state not in _FINISHED]
        remaining = [task.cost * (1 - status.progress) for task, status in unfinished]
        total = sum(task.cost for task in self._tasks)
        return Snapshot(
            study=self._study,
            output_dir=str(self._layout.output_dir),
            state=launch_state(tasks, ranks),
            started=self._started,
            updated=now,
            elapsed=now - self._started,
            eta_seconds=seconds_to_end(unfinished, self._rank_info.world_size),
            progress=1 - sum(remaining) / total if total else 1.0,
            world_size=self._rank_info.world_size,
            threads=self._threads,
            device=self._device,
            nodes=self._rank_info.nodes,
            restarts=self._rank_info.restarts,
            job_id=self._rank_info.job_id,
            channel=self._gather.broken,
            tasks=tasks,
            ranks=ranks,
        )

    def _rank_status(self, rank: int, record: Record | None, now: float) -> RankStatus:
        if record is None:
            return RankStatus(rank, "starting", None, None, None)
        still = 0.0
        if record.state == "working":
            still = self._age(rank, "progress", record.progress_count, now)
        return RankStatus(
            rank=rank,
            state=record.state,
            task=self._tasks[record.task].name if record.task >= 0 else None,
            heartbeat_age=self._age(rank, "heartbeat", record.heartbeat_count, now),
            memory_bytes=record.memory_bytes,
            note=record.note,
            still_seconds=still,
            busy_seconds=record.busy_seconds,
            host=record.host,
        )

    def _age(self, rank: int, what: str, count: float, now: float) -> float:
        """Seconds since the rank's count of `what` last changed."""
        before, since = self._counts.get((rank, what), (-1.0, now))
        if count != before:
            since = now
            self._counts[rank, what] = (count, now)
        return now - since

    def _task_statuses(self, records: Sequence[Record | None]) -> tuple[TaskStatus, ...]:
        running = {r.task: (rank, r) for rank, r in enumerate(records) if r and r.task >= 0}
        outcomes = {}
        for task in self._tasks:
            outcome = read_outcome(self._layout.outcome(task.name))
            # where no file could be written, its rank told what became of it
            if outcome is None and (word := self._outcome_of(task.name)) is not None:
                outcome = Outcome("done") if word == "done" else Outcome("failed", note=word)
            outcomes[task.name] = outcome
        statuses = []
        for task in self._tasks:
            status = TaskStatus(
                name=task.name,
                kind=task.kind,
                model=task.model,
                fusion=task.row.variant if isinstance(task, RowTask) else "",
                state="queued",
                epochs=task.epochs,
            )
            missing = [need for need in task.needs if outcomes[need] is None]
            if (outcome := outcomes[task.name]) is not None:
                status = replace(status, **vars(outcome))
            elif task.index in running:
                status = status.while_running(*running[task.index])
            elif missing:
                status = replace(status, state="waiting", note=f"for {', '.join(missing)}")
            statuses.append(status)
        return tuple(statuses)


_FINISHED: tuple[TaskState, ...] = ("done", "failed")


def fresher(gathered: Record | None, written: Record | None) -> Record | None:
    """The newer of what was gathered from a rank and what it wrote; the file alone has words."""
    if gathered is None or written is None:
        return gathered or written
    if gathered.heartbeat_count < written.heartbeat_count:
        return written
    return replace(gathered, note=written.note, host=written.host)


def launch_state(tasks: Sequence[TaskStatus], ranks: Sequence[RankStatus]) -> LaunchState:
    """Of the launch as a whole: it runs until its last rank has ended."""
    if any(rank.state not in ENDED for rank in ranks):
        return "running"
    if all(task.state == "done" for task in tasks):
        return "done"
    return "failed" if any(task.state == "failed" for task in tasks) else "stopped"


def seconds_to_end(unfinished: Sequence[tuple[Task, TaskStatus]], ranks: int) -> float | None:
    """The open work shared evenly among `ranks`, but no less than the longest task's remainder.

    The speed (work a second) is what the running tasks show, by their own remaining time; None
    while none does.
    """
    running = [
        (task.cost * (1 - status.progress), status.eta_seconds)
        for task, status in unfinished
        if status.state == "running" and status.eta_seconds
    ]
    speeds = [work / seconds for work, seconds in running]
    if sum(speeds) <= 0:
        return None
    speed = sum(speeds) / len(speeds)
    etas = [seconds for _, seconds in running]
    waiting = sum(task.cost for task, s in unfinished if s.state in ("waiting", "queued"))
    workers = min(ranks, len(unfinished))
    return max(max(etas), (sum(etas) + waiting / speed) / workers)
