"""The state of a launch at one moment: what the table shows and status.json holds."""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from fusionrun.common.distributed import RankInfo
from fusionrun.monitor.ages import Ages
from fusionrun.monitor.cards import Card, cards_of, devices_of
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.heartbeat import read_heartbeat
from fusionrun.monitor.record import ENDED, Outcome, OutcomeFiles, RankState, Record
from fusionrun.study.paths import Layout
from fusionrun.study.tasks import ExpertTask, RowTask, Task, TaskKind
from fusionrun.tables.headline import GAIN_KEY

TaskState = Literal[
    "waiting", "queued", "running", "testing", "saving", "done", "failed", "stopped"
]
AT_WORK: tuple[TaskState, ...] = ("running", "testing", "saving")
TRAINED = 0.99  # at most, of a task that isn't done: testing and saving come after the last epoch
LaunchState = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class TaskStatus:
    """One task as the table shows it; None: not measured."""

    name: str
    kind: TaskKind
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
    val_images: int | None = None
    best: float | None = None
    best_epoch: int | None = None
    gain: float | None = field(default=None, metadata={"key": GAIN_KEY})  # on validation, points
    experts: tuple[float | None, ...] = ()
    images_per_second: float | None = None
    eta_seconds: float | None = None
    seconds: float | None = None  # spent, once ended
    note: str = ""  # why it failed, what it waits for
    members: str = ""  # of a row of different experts, in words
    expert_seed: int | None = None  # of an expert's training; None: the recipe's
    together: int = 1  # experts that its rank trained at once

    @property
    def progress(self) -> float:
        """Finished part, 0 to 1; what failed isn't finished."""
        if self.state in ("done", "failed"):
            return float(self.state == "done")
        part = self.step / self.steps if self.steps else 0.0
        return min((self.epoch + part) / max(self.epochs, 1), TRAINED)

    def while_running(self, rank: int, record: Record, still: float) -> "TaskStatus":
        """The task as `rank`, which has it in hand, published it `still` seconds ago."""
        state: TaskState = "running" if record.activity == "training" else record.activity
        eta = record.eta_seconds
        if eta is not None and state == "testing":  # of which nothing is told before its end
            eta = max(eta - still, 0.0)
        return replace(
            self,
            state="stopped" if record.state == "stopped" else state,
            rank=rank,
            epoch=int(record.epoch),
            step=int(record.step),
            steps=int(record.steps),
            train_loss=record.train_loss,
            train_accuracy=record.train_accuracy,
            val_loss=record.val_loss,
            val_accuracy=record.val_accuracy,
            val_images=None if record.val_images is None else int(record.val_images),
            best=record.best,
            best_epoch=None if record.best_epoch is None else int(record.best_epoch),
            gain=record.gain,
            experts=tuple(record.experts) if self.kind == "row" else (),
            images_per_second=record.images_per_second,
            eta_seconds=eta,
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
    memory_total: float | None = None  # bytes of its device; None: a CPU
    tasks: tuple[str, ...] = ()  # that it has in hand; `task` is the first of them


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
    every_seconds: float = 1.0  # until the next one
    cards: tuple[Card, ...] = ()  # GPUs that ranks use, where nvidia-smi tells of them


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
        threads: int,
        every_seconds: float,
        outcome_of: Callable[[str], str | None],
    ) -> None:
        self._layout = layout
        self._tasks = tasks
        self._gather = gather
        self._rank_info = rank_info
        self._study = study
        self._threads = threads
        self._outcome_of = outcome_of
        self._every_seconds = every_seconds
        self._started, self._start = time.time(), time.monotonic()
        self._ages = Ages(every_seconds)
        self._outcomes = OutcomeFiles(layout.outcomes)

    def build(self) -> Snapshot:
        """The state of the launch now."""
        self._ages.tick()
        # of every rank, once the first gather is through
        gathered = dict(enumerate(self._gather.records))
        records = [
            fresher(gathered.get(rank), read_heartbeat(self._layout.heartbeat(rank)))
            for rank in range(self._rank_info.world_size)
        ]
        ranks = tuple(self._rank_status(rank, record) for rank, record in enumerate(records))
        tasks = self._task_statuses(records, [rank.still_seconds for rank in ranks])
        pairs = list(zip(self._tasks, tasks, strict=True))
        done = sum(task.cost * status.progress for task, status in pairs)
        total = sum(task.cost for task in self._tasks)
        return Snapshot(
            study=self._study,
            output_dir=str(self._layout.output_dir),
            state=launch_state(tasks, ranks),
            started=self._started,
            updated=time.time(),
            elapsed=time.monotonic() - self._start,
            eta_seconds=seconds_to_end(pairs, sum(rank.state not in ENDED for rank in ranks)),
            progress=done / total if total else 1.0,
            world_size=self._rank_info.world_size,
            threads=self._threads,
            device=devices_of(records),
            nodes=self._rank_info.nodes,
            restarts=self._rank_info.restarts,
            job_id=self._rank_info.job_id,
            channel=self._gather.broken,
            tasks=tasks,
            ranks=ranks,
            every_seconds=self._every_seconds,
            cards=cards_of(records),
        )

    def _rank_status(self, rank: int, record: Record | None) -> RankStatus:
        if record is None:
            return RankStatus(rank, "starting", None, None, None)
        still = 0.0
        if record.state == "working":
            moved = sum(each.progress_count for each in (record, *record.beside))
            still = self._ages.of((rank, "progress"), moved)
        tasks = tuple(self._tasks[each.task].name for each in record.in_hand)
        memory = [each.memory_bytes for each in record.in_hand if each.memory_bytes is not None]
        return RankStatus(
            rank=rank,
            state=record.state,
            task=tasks[0] if tasks else None,
            heartbeat_age=self._ages.of((rank, "heartbeat"), record.heartbeat_count),
            memory_bytes=max(memory, default=None),
            note=record.note,
            still_seconds=still,
            busy_seconds=record.busy_seconds,
            host=record.host,
            memory_total=record.memory_total,
            tasks=tasks,
        )

    def _task_statuses(
        self, records: Sequence[Record | None], still: Sequence[float]
    ) -> tuple[TaskStatus, ...]:
        running = {
            each.task: (rank, replace(each, state=record.state), len(record.in_hand))
            for rank, record in enumerate(records)
            if record is not None
            for each in record.in_hand
        }
        written = self._outcomes.read()
        outcomes = {}
        for task in self._tasks:
            outcome = written.get(task.name)
            # where no file could be written, its rank told what became of it
            if outcome is None and (word := self._outcome_of(task.name)) is not None:
                outcome = Outcome("done") if word == "done" else Outcome("failed", note=word)
            outcomes[task.name] = outcome
        statuses = []
        for task in self._tasks:
            row = task.row if isinstance(task, RowTask) else None
            status = TaskStatus(
                name=task.name,
                kind=task.kind,
                model=task.model,
                fusion=row.variant if row else "",
                state="queued",
                epochs=task.epochs,
                members=row.members if row and row.is_mixed else "",
                expert_seed=task.seed if isinstance(task, ExpertTask) else None,
            )
            missing = [need for need in task.needs if outcomes[need] is None]
            if (outcome := outcomes[task.name]) is not None:
                status = replace(status, **vars(outcome))
            elif task.index in running:
                rank, own, together = running[task.index]
                status = status.while_running(rank, own, still[rank])
                # the channel has room for as many as the study has; a mixed row may have fewer
                experts = status.experts[: len(row.experts) if row and row.is_mixed else None]
                status = replace(status, experts=experts, together=together)
            elif missing:
                status = replace(status, state="waiting", note=f"for {', '.join(missing)}")
            statuses.append(status)
        return tuple(statuses)


def fresher(gathered: Record | None, written: Record | None) -> Record | None:
    """The newer of what was gathered from a rank and what it wrote; the file alone has words."""
    if gathered is None or written is None:
        return gathered or written
    if gathered.heartbeat_count < written.heartbeat_count:
        return written
    return gathered.with_words_of(written)


def launch_state(tasks: Sequence[TaskStatus], ranks: Sequence[RankStatus]) -> LaunchState:
    """Of the launch as a whole: it runs until its last rank has ended."""
    if any(rank.state not in ENDED for rank in ranks):
        return "running"
    if all(task.state == "done" for task in tasks):
        return "done"
    return "failed" if any(task.state == "failed" for task in tasks) else "stopped"


def seconds_to_end(tasks: Sequence[tuple[Task, TaskStatus]], ranks: int) -> float | None:
    """Until the last of a launch's tasks is done, if each is begun as soon as it can be.

    What hasn't begun takes as long a unit of work as what runs or has ended, of its own model and
    kind where there is any. None while nothing shows how long that is.
    """
    paces: dict[tuple[str, str], list[float]] = {}  # seconds of a rank a unit of work
    for task, status in tasks:
        left = task.cost * (1 - status.progress)
        if status.state == "running" and status.eta_seconds is not None:
            pace = status.eta_seconds / status.together / left
            paces.setdefault((task.model, task.kind), []).append(pace)
        elif status.state == "done" and status.seconds:
            pace = status.seconds / status.together / task.cost
            paces.setdefault((task.model, task.kind), []).append(pace)
    if not paces:
        return None
    usual = fmean(pace for each in paces.values() for pace in each)

    def seconds(task: Task, status: TaskStatus) -> float:
        if status.eta_seconds is not None:
            return status.eta_seconds
        own = paces.get((task.model, task.kind))
        return task.cost * (1 - status.progress) * (fmean(own) if own else usual)

    ends: dict[str, float] = {}  # of tasks, from now on
    busy: dict[int | None, float] = {}  # until when each rank is
    for task, status in tasks:
        if status.state in AT_WORK:
            ends[task.name] = seconds(task, status)
            busy[status.rank] = max(busy.get(status.rank, 0.0), ends[task.name])
        elif status.state in ("done", "failed"):
            ends[task.name] = 0.0
    free = [0.0] * (max(ranks, 1) - len(busy)) + sorted(busy.values())  # when each rank is
    rest = [pair for pair in tasks if pair[0].name not in ends]
    # experts first, rows need them; of each the longest first
    for task, status in sorted(rest, key=lambda pair: (pair[0].kind, -seconds(*pair))):
        ready = max((ends[need] for need in task.needs if need in ends), default=0.0)
        start = max(heapq.heappop(free), ready)
        ends[task.name] = start + seconds(task, status)
        heapq.heappush(free, ends[task.name])
    return max(ends.values(), default=None)
