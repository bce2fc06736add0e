"""How a launch ends: stop signals, the watchdog, the exit status, its results."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import torch

from fusionrun.common.distributed import RankInfo
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.locks import locked
from fusionrun.common.text import problem_of
from fusionrun.evaluation.results import Result, collect_results
from fusionrun.evaluation.results_tables import write_results
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.record import ENDED, Record
from fusionrun.monitor.snapshot import Snapshot
from fusionrun.study.queue import Queue
from fusionrun.study.recipe import RecipeError
from fusionrun.study.rows import rows_of
from fusionrun.study.stored import join_stored
from fusionrun.study.study import Study
from fusionrun.training.errors import StopRequested

# how long a stopped rank waits for its peers: together well inside any grace time
SHUTDOWN_SECONDS, LONGEST_TICK = 3.0, 10.0
GPU_HANG_MINUTES = 30.0  # runtime.hang_minutes=auto: a GPU that hangs does so for ever
LOOK_SECONDS = 0.5  # between two looks whether torchrun is suspended


def is_suspended(pid: int) -> bool:
    """Whether a process was stopped as by Ctrl-Z (Linux only)."""
    try:
        # "pid (any name) state ..."
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


class StopSignals:
    """Remembers, while it's entered, that a stop signal came; a second one changes nothing.

    A signal to any rank stops the launch: the gather tells the others, which `request` it.

    The handlers that were there before come back at the end. A thread that isn't the main one
    can't listen, so nothing stops a launch that a notebook's thread began.
    """

    def __init__(self, names: Sequence[str], has_launcher: bool = False) -> None:
        self._names = names
        self._launcher = os.getppid() if has_launcher else None
        self._looked = 0.0  # at the launcher
        self._before: dict[signal.Signals, Any] = {}
        self._is_requested = False

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for name in self._names:
                number = signal.Signals[name]
                if signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup, or a shell's `&`, protects from it
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            # None: whoever was there before isn't Python's, and can't be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def requested(self) -> bool:
        """Whether a stop signal came; waits first while the launcher is suspended.

        A terminal's Ctrl-Z reaches torchrun alone: its ranks have sessions of their own.
        """
        if self._launcher is not None and time.monotonic() - self._looked > LOOK_SECONDS:
            while not self._is_requested and is_suspended(self._launcher):
                time.sleep(0.2)
            self._looked = time.monotonic()
        return self._is_requested

    def request(self) -> None:
        """Stop as if a signal had come."""
        self._is_requested = True

    def check(self) -> None:
        """Raises StopRequested when a stop signal came."""
        if self.requested():
            raise StopRequested

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._is_requested = True


class Watchdog:
    """Stops the launch when a rank makes no progress for too long (runtime.hang_minutes)."""

    def __init__(
        self,
        limit_minutes: float | Literal["auto"] | None,
        rank_info: RankInfo,
        device: torch.device,
    ) -> None:
        on_device = None if device.type == "cpu" else GPU_HANG_MINUTES
        self._limit = on_device if limit_minutes == "auto" else limit_minutes
        self._rank_info = rank_info
        self._fired = False

    def look(self, snapshot: Snapshot) -> None:
        for rank in snapshot.ranks if self._limit is not None and not self._fired else ():
            still = max(rank.still_seconds, rank.heartbeat_age or 0.0)
            if rank.state not in ENDED and still > 60 * (self._limit or 0.0):
                self._fired = True
                print(
                    f"fusionrun: rank {rank.rank} ({rank.task or rank.state}) has made no progress "
                    f"for {still:.0f} s (runtime.hang_minutes={self._limit:g}); the launch stops. "
                    f"The same command resumes from the last checkpoints",
                    file=sys.stderr,
                    flush=True,
                )
                # torchrun tells every rank, and kills one that can't hear
                target = os.getppid() if self._rank_info.is_distributed else os.getpid()
                os.kill(target, signal.SIGTERM)


def exit_status(study: Study, queue: Queue, records: Sequence[Record]) -> int | None:
    """The launch's, once all ranks have ended; None before."""
    if any(record.state not in ENDED for record in records):
        return None
    outcomes = [queue.outcome(task.name) for task in study.tasks]
    if all(outcome == "done" for outcome in outcomes):
        return ExitStatus.DONE
    if any(record.state == "stopped" for record in records):
        return ExitStatus.STOPPED
    is_idle = all(record.busy_seconds == 0 for record in records)
    if is_idle and any(record.state == "failed" for record in records):
        return ExitStatus.NOT_STARTED
    return ExitStatus.ROW_FAILED


def wait_for_peers(gather: StatusGather, stop: StopSignals, every_seconds: float) -> int | None:
    """Keep serving the table until rank 0 ends it; None when that can't be waited for.

    Whoever was told to stop stays until the gather, at every tick, has told the others.
    """
    patience = SHUTDOWN_SECONDS + min(every_seconds, LONGEST_TICK)
    stopped_at = None
    gather.hurry()
    while gather.is_alive():
        if gather.wait(0.2) is not None:
            break
        if stop.requested():
            stopped_at = stopped_at or time.monotonic()
            if time.monotonic() - stopped_at > patience:
                break
    return gather.exit_code


def exit_for_restart() -> NoReturn:
    """End as a crash does, whoever else is told the exit status: a peer, or the device, has died.

    A rank that leaves quietly has done its work, in torchrun's eyes. On several nodes the torchrun
    of such ranks would never start them again, and that of the dead peer would wait for it.
    """
    sys.stdout.flush()
    os._exit(ExitStatus.STOPPED)


def store_results(study: Study) -> list[Result]:
    """Write the tables of what is finished in the output directory, by whichever launch.

    Returns what they hold. Neither a full disk nor somebody who damages the folder's recipe.yaml
    meanwhile may hide how the launch ended: then it's this launch's rows alone.
    """
    try:
        with locked(study.layout.recipe_lock):
            recipe = join_stored(study.recipe, study.layout, in_use=True)
            results = collect_results(replace(study, recipe=recipe, rows=rows_of(recipe)))
            write_results(study.layout, results)
            return results
    except (OSError, RecipeError) as error:
        print(f"fusionrun: results could not be written: {problem_of(error)}", file=sys.stderr)
        return collect_results(study)
