"""What every rank is doing: the record each publishes, its gather to rank 0, and the status file.

Training only stores numbers in its rank's `Record`. Three threads carry them away: a heartbeat
writes a small file a rank, a gather brings all records to rank 0 on a process group of its own,
and rank 0's display (board.py draws it) merges the fresher of the two. They are apart on purpose:
one stalled peer holds up the gather of all, but neither the heartbeats nor any training.
"""

import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist

from fusionrun.common.atomic_files import write_json
from fusionrun.common.distributed import PEER_TIMEOUT, RankInfo
from fusionrun.study.paths import Layout
from fusionrun.study.tasks import RowTask, Task

RankState = Literal["starting", "working", "idle", "finished", "stopped", "failed"]
RANK_STATES: tuple[RankState, ...] = (
    "starting",
    "working",
    "idle",
    "finished",
    "stopped",
    "failed",
)
ENDED: frozenset[RankState] = frozenset({"finished", "stopped", "failed"})
TaskState = Literal["waiting", "queued", "running", "done", "failed", "stopped"]

NAN = math.nan


@dataclass
class Record:
    """One rank's numbers; training stores into it, the threads read it. NaN: not measured (yet)."""

    state: RankState = "starting"
    task: int = -1  # index of the task in hand, -1 for none
    beat: float = 0.0  # counts up with every heartbeat: the process lives
    pulse: float = 0.0  # counts up as the work goes on: it doesn't hang
    epoch: float = 0.0  # completed epochs
    step: float = 0.0  # steps done in the current epoch
    steps: float = 0.0  # steps of an epoch
    train_loss: float = NAN
    train_accuracy: float = NAN  # percent
    val_loss: float = NAN
    val_accuracy: float = NAN  # percent, of the fused head (or the expert)
    best: float = NAN  # best val_accuracy so far
    best_epoch: float = NAN
    gain: float = NAN  # points over the best expert in the same epoch
    images_per_second: float = NAN
    eta_seconds: float = NAN  # of the task
    memory_bytes: float = NAN  # of this process on its device
    busy_seconds: float = 0.0  # spent on tasks in this launch
    experts: list[float] = field(default_factory=list)  # val accuracy of each expert, percent
    note: str = ""  # travels by file only, as does the next one
    host: str = ""

    def begin(self, task: int) -> None:
        """Work on the task with this index: its numbers start anew, the rank's go on."""
        of_rank = ("beat", "pulse", "busy_seconds", "host")
        for name, value in vars(Record(state="working", task=task)).items():
            if name not in of_rank:
                setattr(self, name, value)

    def to_vector(self, num_experts: int) -> torch.Tensor:
        """All numbers as one float64 vector, the same length on every rank."""
        numbers = [float(RANK_STATES.index(self.state)), float(self.task)]
        numbers += [getattr(self, name) for name in _NUMBERS]
        experts = list(self.experts)[:num_experts]
        numbers += experts + [NAN] * (num_experts - len(experts))
        return torch.tensor(numbers, dtype=torch.float64)

    @staticmethod
    def from_vector(vector: torch.Tensor) -> "Record":
        """The inverse of `to_vector`."""
        state, task, *numbers = vector.tolist()
        record = Record(state=RANK_STATES[int(state)], task=int(task))
        for name, value in zip(_NUMBERS, numbers, strict=False):
            setattr(record, name, value)
        record.experts = numbers[len(_NUMBERS) :]
        return record


_NUMBERS = tuple(spec.name for spec in dataclasses.fields(Record) if spec.type is float)


@dataclass(frozen=True)
class TaskView:
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
    gain: float | None = None  # points over the best expert
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


@dataclass(frozen=True)
class RankView:
    """One process as the table shows it."""

    rank: int
    state: RankState
    task: str | None
    heartbeat_age: float | None  # seconds since it was last seen alive; None: never seen
    memory_bytes: float | None
    note: str = ""
    still_seconds: float = 0.0  # since its work last went on
    busy_seconds: float = 0.0  # spent on tasks in this launch
    host: str = ""


@dataclass(frozen=True)
class Snapshot:
    """Everything the table shows, at one moment; what status.json holds."""

    study: str  # the recipe's name
    output_dir: str
    state: Literal["running", "done", "failed", "stopped"]
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
    tasks: tuple[TaskView, ...]
    ranks: tuple[RankView, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Snapshot":
        """The inverse of `to_json`; raises KeyError or TypeError for anything else."""
        tasks = tuple(
            TaskView(**{**task, "experts": tuple(task["experts"])}) for task in tree["tasks"]
        )
        ranks = tuple(RankView(**rank) for rank in tree["ranks"])
        return Snapshot(**{**tree, "tasks": tasks, "ranks": ranks})


def known(value: float) -> float | None:
    """A number, or None for NaN: JSON and people have no use for NaN."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Outcome:
    """How a task ended, on disk, for the table and for the next launch."""

    state: Literal["done", "failed"]
    note: str = ""
    rank: int | None = None
    epoch: int = 0
    val_accuracy: float | None = None
    best: float | None = None
    best_epoch: int | None = None
    gain: float | None = None
    experts: tuple[float | None, ...] = ()
    seconds: float | None = None


def write_outcome(path: Path, outcome: Outcome) -> None:
    write_json(path, dataclasses.asdict(outcome))


def read_outcome(path: Path) -> Outcome | None:
    """The outcome at `path`, or None where there is none that can be read."""
    try:
        tree = json.loads(path.read_text())
        return Outcome(**{**tree, "experts": tuple(tree["experts"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


class Heartbeat:
    """A thread that writes this rank's record to its file every tick: alive, whatever peers do."""

    def __init__(self, record: Record, path: Path, every_seconds: float) -> None:
        self._record = record
        self._path = path
        self._every = every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write the last state and end."""
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            last = self._done.is_set()
            self._record.beat += 1
            tree = {key: _storable(value) for key, value in vars(self._record).items()}
            try:
                write_json(self._path, {**tree, "pid": os.getpid()}, durable=False)
            except OSError as error:
                # a full disk must not end the thread; the table shows the age instead
                self._record.note = f"heartbeat file: {error.strerror}"
            if last:
                return
            self._done.wait(self._every)


def _storable(value: Any) -> Any:
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return known(value) if isinstance(value, float) else value


def read_heartbeat(path: Path) -> Record | None:
    """A rank's record from its file, or None where there is none yet."""
    try:
        tree = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    record = Record()
    for name, value in tree.items():
        if name == "experts":
            record.experts = [NAN if item is None else item for item in value]
        elif hasattr(record, name):
            setattr(record, name, NAN if value is None else value)
    return record


class Channel:
    """The gather of all records to rank 0, on its own group and thread.

    It's served until rank 0 ends it, spreading the launch's exit code: `decide(records)` returns
    it once every rank has ended, and None before. A broken channel (a peer died) never disturbs
    training: `broken` says why, and the rank goes on.
    """

    def __init__(
        self,
        rank_info: RankInfo,
        record: Record,
        *,
        num_experts: int,
        every_seconds: float,
        decide: Callable[[Sequence[Record]], int | None],
    ) -> None:
        self._rank_info = rank_info
        self._record = record
        self._num_experts = num_experts
        self._every = every_seconds
        self._decide = decide
        self._group: dist.ProcessGroup | None = None
        if rank_info.is_distributed:
            group = dist.new_group(backend="gloo", timeout=PEER_TIMEOUT)
            self._group = cast(dist.ProcessGroup, group)
        self._thread = threading.Thread(target=self._serve, name="gather", daemon=True)
        self.records: list[Record] = []  # rank 0: the latest of every rank
        self.exit_code: int | None = None
        self.broken = ""

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still gathers."""
        return self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> int | None:
        """The launch's exit code, or None when the channel broke or `timeout` seconds passed."""
        self._thread.join(timeout)
        return self.exit_code

    def _serve(self) -> None:
        try:
            while self.exit_code is None:
                started = time.monotonic()
                self._tick()
                if self.exit_code is None:
                    time.sleep(max(0.0, self._every - (time.monotonic() - started)))
        except RuntimeError as error:
            self.broken = str(error).splitlines()[0]

    def _tick(self) -> None:
        vector = self._record.to_vector(self._num_experts)
        if self._group is None:
            self.records = [Record.from_vector(vector)]
            self.exit_code = self._decide(self.records)
            return
        verdict = torch.tensor([-1])
        if self._rank_info.rank == 0:
            vectors = [torch.empty_like(vector) for _ in range(self._rank_info.world_size)]
            dist.gather(vector, vectors, dst=0, group=self._group)
            self.records = [Record.from_vector(item) for item in vectors]
            code = self._decide(self.records)
            verdict.fill_(-1 if code is None else code)
        else:
            dist.gather(vector, dst=0, group=self._group)
        dist.broadcast(verdict, src=0, group=self._group)
        if verdict.item() >= 0:
            self.exit_code = int(verdict.item())


class Observer:
    """Rank 0's view of the launch: gathered records, heartbeat files and outcomes -> Snapshot."""

    def __init__(
        self,
        layout: Layout,
        tasks: Sequence[Task],
        channel: Channel,
        rank_info: RankInfo,
        *,
        study: str,
        device: str,
        threads: int,
        outcome_of: Callable[[str], str | None],
    ) -> None:
        self._layout = layout
        self._tasks = tasks
        self._channel = channel
        self._rank_info = rank_info
        self._about = {"study": study, "device": device, "threads": threads}
        self._outcome_of = outcome_of
        self._started = time.time()
        # (rank, what): (count, when it last changed); by this machine's clock, clocks differ
        self._counts: dict[tuple[int, str], tuple[float, float]] = {}

    def snapshot(self) -> Snapshot:
        """The state of the launch now."""
        now = time.time()
        records = [self._freshest(rank) for rank in range(self._rank_info.world_size)]
        tasks = self._task_views(records)
        ranks = tuple(self._rank_view(rank, record, now) for rank, record in enumerate(records))
        remaining = [task.cost * (1 - view.progress) for task, view in self._open(tasks)]
        total = sum(task.cost for task in self._tasks)
        return Snapshot(
            output_dir=str(self._layout.output_dir),
            state=self._state(tasks, ranks),
            started=self._started,
            updated=now,
            elapsed=now - self._started,
            eta_seconds=self._eta(tasks),
            progress=1 - sum(remaining) / total if total else 1.0,
            world_size=self._rank_info.world_size,
            nodes=self._rank_info.nodes,
            restarts=self._rank_info.restarts,
            job_id=self._rank_info.job_id,
            channel=self._channel.broken,
            tasks=tasks,
            ranks=ranks,
            **self._about,  # type: ignore[arg-type]
        )

    def _freshest(self, rank: int) -> Record | None:
        """The newer of what was gathered and what the rank wrote; the file alone has the note."""
        gathered = self._channel.records[rank] if rank < len(self._channel.records) else None
        written = read_heartbeat(self._layout.heartbeat(rank))
        if gathered is None or written is None:
            return gathered or written
        gathered.note, gathered.host = written.note, written.host
        return gathered if gathered.beat >= written.beat else written

    def _rank_view(self, rank: int, record: Record | None, now: float) -> RankView:
        if record is None:
            return RankView(rank, "starting", None, None, None)
        name = self._tasks[record.task].name if record.task >= 0 else None
        age = self._age(rank, "beat", record.beat, now)
        still = self._age(rank, "pulse", record.pulse, now) if record.state == "working" else 0.0
        memory = known(record.memory_bytes)
        return RankView(
            rank,
            record.state,
            name,
            age,
            memory,
            record.note,
            still,
            record.busy_seconds,
            record.host,
        )

    def _age(self, rank: int, what: str, count: float, now: float) -> float:
        """Seconds since the rank's count of `what` last changed."""
        before, since = self._counts.get((rank, what), (-1.0, now))
        if count != before:
            since = now
            self._counts[rank, what] = (count, now)
        return now - since

    def _task_views(self, records: Sequence[Record | None]) -> tuple[TaskView, ...]:
        running = {r.task: (rank, r) for rank, r in enumerate(records) if r and r.task >= 0}
        outcomes = {task.name: self._outcome(task.name) for task in self._tasks}
        views = []
        for task in self._tasks:
            outcome = outcomes[task.name]
            if outcome is not None:
                views.append(_ended_view(task, outcome))
            elif task.index in running:
                views.append(_running_view(task, *running[task.index]))
            else:
                missing = [need for need in task.needs if outcomes[need] is None]
                views.append(_open_view(task, missing))
        return tuple(views)

    def _outcome(self, name: str) -> Outcome | None:
        """How a task ended: from its file or, where none could be written, from its rank."""
        outcome = read_outcome(self._layout.outcome(name))
        word = self._outcome_of(name) if outcome is None else None
        if word is None:
            return outcome
        return Outcome("done") if word == "done" else Outcome("failed", note=word)

    def _open(self, views: Sequence[TaskView]) -> list[tuple[Task, TaskView]]:
        pairs = zip(self._tasks, views, strict=True)
        return [(task, view) for task, view in pairs if view.state not in ("done", "failed")]

    def _eta(self, views: Sequence[TaskView]) -> float | None:
        """Seconds to the end: the open work shared evenly, but no less than the longest task's.

        The speed (work a second) is what the running tasks show, by their own remaining time.
        """
        running = [
            (task, view, view.eta_seconds)
            for task, view in self._open(views)
            if view.state == "running" and view.eta_seconds
        ]
        if not running:
            return None
        speeds = [task.cost * (1 - view.progress) / eta for task, view, eta in running]
        speed = sum(speeds) / len(speeds)
        if speed <= 0:
            return None
        waiting = sum(t.cost for t, v in self._open(views) if v.state in ("waiting", "queued"))
        workers = min(self._rank_info.world_size, len(self._open(views)))
        etas = [eta for _, _, eta in running]
        return max(max(etas), (sum(etas) + waiting / speed) / workers)

    @staticmethod
    def _state(
        tasks: Sequence[TaskView], ranks: Sequence[RankView]
    ) -> Literal["running", "done", "failed", "stopped"]:
        if any(rank.state not in ENDED for rank in ranks):
            return "running"
        if all(task.state == "done" for task in tasks):
            return "done"
        return "failed" if any(task.state == "failed" for task in tasks) else "stopped"


def _ended_view(task: Task, outcome: Outcome) -> TaskView:
    return TaskView(
        **_about(task),
        state=outcome.state,
        rank=outcome.rank,
        epoch=outcome.epoch,
        val_accuracy=outcome.val_accuracy,
        best=outcome.best,
        best_epoch=outcome.best_epoch,
        gain=outcome.gain,
        experts=outcome.experts,
        seconds=outcome.seconds,
        note=outcome.note,
    )


def _running_view(task: Task, rank: int, record: Record) -> TaskView:
    return TaskView(
        **_about(task),
        state="stopped" if record.state == "stopped" else "running",
        rank=rank,
        epoch=int(record.epoch),
        step=int(record.step),
        steps=int(record.steps),
        train_loss=known(record.train_loss),
        train_accuracy=known(record.train_accuracy),
        val_loss=known(record.val_loss),
        val_accuracy=known(record.val_accuracy),
        best=known(record.best),
        best_epoch=None if math.isnan(record.best_epoch) else int(record.best_epoch),
        gain=known(record.gain),
        experts=tuple(known(value) for value in record.experts)
        if isinstance(task, RowTask)
        else (),
        images_per_second=known(record.images_per_second),
        eta_seconds=known(record.eta_seconds),
        note=record.note,
    )


def _open_view(task: Task, missing: Sequence[str]) -> TaskView:
    note = f"for {', '.join(missing)}" if missing else ""
    return TaskView(**_about(task), state="waiting" if missing else "queued", note=note)


def _about(task: Task) -> dict[str, Any]:
    fusion = task.row.variant if isinstance(task, RowTask) else ""
    return {
        "name": task.name,
        "kind": task.kind,
        "model": task.model,
        "fusion": fusion,
        "epochs": task.epochs,
    }
