"""What a rank publishes: its record while it works, and how each of its tasks ended.

Training only stores numbers in its rank's `Record`. Three threads carry them away: a heartbeat
writes a small file a rank, a gather brings all records to rank 0 on a process group of its own,
and rank 0's display merges the fresher of the two. They are apart on purpose: one stalled peer
holds up the gather of all, but neither the heartbeats nor any training.
"""

import dataclasses
import math
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from fusionrun.common.atomic_files import write_json
from fusionrun.common.gpus import Gpu
from fusionrun.common.memory import total_memory
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.tables.headline import GAIN_KEY

RankState = Literal["starting", "working", "idle", "finished", "stopped", "failed"]
RANK_STATES: tuple[RankState, ...] = get_args(RankState)
Activity = Literal["training", "testing", "saving"]  # of a rank that works on a task
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
ENDED: frozenset[RankState] = frozenset({"finished", "stopped", "failed"})


@dataclass
class Record:
    """One rank's numbers; training stores into it, the threads read it. None: not measured (yet).

    What is stored is finite, see `known`.
    """

    state: RankState = "starting"
    task: int = -1  # index of the task in hand, -1 for none
    activity: Activity = "training"
    # both only ever count up, every tick and as the work gets on: the process lives, it moves
    heartbeat_count: float = field(default=0.0, metadata={"key": "beat"})
    progress_count: float = field(default=0.0, metadata={"key": "pulse"})
    epoch: float = 0.0  # completed epochs
    step: float = 0.0  # steps done in the current epoch
    steps: float = 0.0  # steps of an epoch
    train_loss: float | None = None
    train_accuracy: float | None = None  # percent
    val_loss: float | None = None
    val_accuracy: float | None = None  # percent, of the fused head (or the expert)
    val_images: float | None = None  # that these accuracies rest on
    best: float | None = None  # best val_accuracy so far
    best_epoch: float | None = None
    gain: float | None = field(default=None, metadata={"key": GAIN_KEY})  # on validation, points
    images_per_second: float | None = None
    eta_seconds: float | None = None  # of the task, with its test; as `progress_count` last changed
    memory_bytes: float | None = None  # at most, of the task in hand on the rank's device
    busy_seconds: float = 0.0  # spent on tasks in this launch
    stopping: float = 0.0  # 1: was told to stop
    memory_total: float | None = None  # bytes that the rank's device has; None on a CPU
    experts: list[float | None] = field(default_factory=list)  # val accuracy of each, percent
    note: str = ""  # travels by file only, as do the next ones
    host: str = ""
    pid: int = 0
    device: str = ""  # and how it calculates, for people: NVIDIA H100, bf16
    gpu_uuid: str = ""  # of its device
    gpus: tuple[Gpu, ...] = ()  # of the machine, from the one of its ranks that looks
    # of each task that is trained beside the first, a record in which the rank's numbers stay 0
    beside: list["Record"] = field(default_factory=list)

    @staticmethod
    def of_rank(host: str, device: torch.device, precision: str) -> "Record":
        """The record of a rank that starts on `device`, where models compute in that precision."""
        record, name = Record(host=host), "CPU"
        if device.type == "cuda":
            found = torch.cuda.get_device_properties(device)
            name, record.gpu_uuid = found.name, str(found.uuid)
            record.memory_total = total_memory(device)
        record.device = f"{name}, {precision}"
        return record

    @property
    def in_hand(self) -> list["Record"]:
        """Of each task in hand, the one with its numbers."""
        return [each for each in (self, *self.beside) if each.task >= 0]

    def begin(self, task: int) -> None:
        """Work on the task with this index: its numbers start again, the rank's stay."""
        for name, value in vars(Record(state="working", task=task)).items():
            if name not in _OF_RANK:
                setattr(self, name, value)

    def with_words_of(self, written: "Record") -> "Record":
        """What was gathered from a rank, with what only its file can carry."""
        words = {name: getattr(written, name) for name in ("note", *_BY_FILE)}
        notes = {each.task: each.note for each in written.beside}
        beside = [dataclasses.replace(b, note=notes.get(b.task, "")) for b in self.beside]
        return dataclasses.replace(self, **words, beside=beside)

    def to_table(self, num_experts: int, tasks: int) -> torch.Tensor:
        """All numbers as float64 (tasks, N), a line each for up to so many tasks in hand.

        The same shape on every rank; NaN for None.
        """
        lines = [self, *self.beside, *(Record() for _ in range(tasks))][:tasks]
        return torch.tensor([each._line(num_experts) for each in lines], dtype=torch.float64)

    def _line(self, num_experts: int) -> list[float]:
        values = [getattr(self, name) for name in _NUMBERS] + self.experts[:num_experts]
        values += [None] * (len(_NUMBERS) + num_experts - len(values))
        numbers = [math.nan if value is None else value for value in values]
        return [RANK_STATES.index(self.state), self.task, ACTIVITIES.index(self.activity), *numbers]

    @staticmethod
    def from_table(table: torch.Tensor) -> "Record":
        """The inverse of `to_table`; what is beside the first, where there is a task."""
        first, *others = map(Record._of_line, table.tolist())
        first.beside = [other for other in others if other.task >= 0]
        return first

    @staticmethod
    def _of_line(line: list[float]) -> "Record":
        state, task, activity, *numbers = line
        record = Record(
            state=RANK_STATES[int(state)], task=int(task), activity=ACTIVITIES[int(activity)]
        )
        values = [known(number) for number in numbers]
        for name, value in zip(_NUMBERS, values, strict=False):
            setattr(record, name, value)
        record.experts = values[len(_NUMBERS) :]
        return record


_BY_FILE = ("host", "pid", "device", "gpu_uuid", "gpus")
_OF_RANK = (
    "beside",
    "heartbeat_count",
    "progress_count",
    "busy_seconds",
    "stopping",
    "memory_total",
    *_BY_FILE,
)
_NUMBERS = tuple(
    spec.name for spec in dataclasses.fields(Record) if spec.type in (float, float | None)
)


def known(value: float | None) -> float | None:
    """A finite number, else None: JSON and people have no use for NaN."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Outcome:
    """How a task ended, on disk, for the table and for the next launch."""

    state: Literal["done", "failed"]
    note: str = ""
    rank: int | None = None
    epoch: int = 0
    val_accuracy: float | None = None  # all numbers but `epoch` and `seconds`: of the saved epoch
    best: float | None = None
    best_epoch: int | None = None
    gain: float | None = field(default=None, metadata={"key": GAIN_KEY})
    experts: tuple[float | None, ...] = ()
    seconds: float | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_images: int | None = None
    together: int = 1  # tasks that its rank executed at once


def write_outcome(path: Path, outcome: Outcome) -> None:
    write_json(path, plain(outcome))


def read_outcome(path: Path) -> Outcome | None:
    """The outcome at `path`, or None where there is none that can be read."""
    try:
        return read_json(path, Outcome)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


class OutcomeFiles:
    """The outcomes in a folder; a file is read again only when it was replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[object, Outcome | None]] = {}  # by file, with its identity

    def read(self) -> dict[str, Outcome]:
        """{task: outcome} of those that have one."""
        known, self._known = self._known, {}
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in list(os.scandir(self._folder)):
                with suppress(FileNotFoundError):
                    found = entry.stat()  # before it's read: what replaces it later is seen later
                    identity = found.st_ino, found.st_mtime_ns, found.st_size
                    before, outcome = known.get(entry.name, (None, None))
                    if before != identity:
                        outcome = read_outcome(self._folder / entry.name)
                    self._known[entry.name] = identity, outcome
        return {
            name.removesuffix(".json"): outcome
            for name, (_, outcome) in self._known.items()
            if outcome is not None and name.endswith(".json")
        }
