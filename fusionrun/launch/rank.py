"""One rank, start to end: join, take tasks until none is left, leave together."""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, TextIO

import torch
import torch.distributed as dist
from rich.console import Console

from fusionrun.common.atomic_files import sweep_temporaries, write_json, write_text
from fusionrun.common.distributed import (
    LaunchError,
    RankInfo,
    choose_device,
    die_with_parent,
    divide_threads,
    join,
    leave,
)
from fusionrun.common.exit_status import ExitStatus
from fusionrun.data.datasets import DataError
from fusionrun.evaluation.results import collect_results, results_tables, write_results
from fusionrun.launch.preflight import require_startable
from fusionrun.launch.resume import is_done, is_reusable, resume_path
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.train_task import train_expert, train_row
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.heartbeat import Heartbeat, read_heartbeat
from fusionrun.monitor.live import Display
from fusionrun.monitor.record import ENDED, Outcome, Record, read_outcome, write_outcome
from fusionrun.monitor.snapshot import Snapshot, SnapshotBuilder
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.queue import Queue
from fusionrun.study.recipe_yaml import dump_recipe
from fusionrun.study.rows import Row
from fusionrun.study.study import Study
from fusionrun.study.tasks import RowTask, Task
from fusionrun.training.checkpoint import CheckpointError
from fusionrun.training.errors import StopRequested, TaskError

FAREWELL_SECONDS = 3.0  # how long a stopped rank waits for its peers: well inside any grace time

CRASHES = 3  # a task that kills its process so often at one point isn't started again

# what a person can mend; anything else deserves its traceback in the task's log
USER_ERRORS = (TaskError, CheckpointError, DataError, LaunchError, OSError)


class Stop:
    """Remembers that a stop signal came; a second one changes nothing."""

    def __init__(self) -> None:
        self.signal = 0

    def listen(self, names: Sequence[str]) -> None:
        for name in names:
            signal.signal(signal.Signals[name], self._receive)

    def requested(self) -> bool:
        return self.signal != 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number


def run(study: Study, rank_info: RankInfo, console: Console, *, only_failed: bool = False) -> int:
    """Work on `study` as the rank that `rank_info` says; returns the launch's exit status.

    With `only_failed`, on the rows alone that failed in the last launch.
    """
    die_with_parent()
    stop = Stop()
    stop.listen(study.recipe.runtime.stop_signals)
    store = join(rank_info)
    device, lock, study = _open_launch(study, rank_info, only_failed)
    threads = divide_threads(rank_info, study.recipe.runtime.threads)
    queue = Queue(study.tasks, store, rank_info.rank, rank_info.world_size)
    record = Record(host=rank_info.host)
    gather = StatusGather(
        rank_info,
        record,
        num_experts=study.recipe.experts.count,
        every_seconds=study.recipe.status.every_seconds,
        decide=lambda records: _verdict(study, queue, records),
    )
    heartbeat = Heartbeat(record, study.layout.heartbeat(rank_info.rank), 1.0)
    display = None
    if rank_info.rank == 0:
        display = _make_display(study, rank_info, gather, queue, str(device), threads, console)
    heartbeat.start()
    gather.start()
    if display is not None:
        display.start()
    try:
        _work(study, rank_info, queue, record, stop, device, threads)
    finally:
        code = _wait_for_peers(gather, stop)
        heartbeat.stop()
        # None: the peers can't be asked how they ended
        status = ExitStatus.STOPPED if code is None else ExitStatus(code)
        lost_peers = code is None and not stop.requested()
        if display is not None:
            _write_results(study)
            display.stop()
            _say_goodbye(study, status, record, console, lost_peers=lost_peers)
    if lost_peers:
        _leave_to_torchrun()
    if lock is not None:
        lock.close()
    if not gather.alive and not gather.broken:
        leave()
    return status


def _open_launch(
    study: Study, rank_info: RankInfo, only_failed: bool
) -> tuple[torch.device, TextIO | None, Study]:
    """This rank's device, on rank 0 the lock on the output directory, and what is to be done.

    Raises LaunchError on every rank when any rank can't start: all leave together.
    """
    device, lock, problem, rows = torch.device("cpu"), None, "", list(study.rows)
    try:
        device = choose_device(rank_info, study.recipe.runtime.device)
        _check_packages(study)
        if rank_info.rank == 0:
            if rank_info.restarts == 0:  # what has run once needs no second look
                require_startable(study, rank_info, _warn)
            lock = _lock(study, rank_info)
            if only_failed:
                rows = _failed_rows(study, is_first_attempt=rank_info.restarts == 0)
            _prepare_output(study, first_attempt=rank_info.restarts == 0)
    except LaunchError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or study.layout.output_dir}: {error.strerror or error}"
    told: list[tuple[str, list[Row]]] = [(problem, rows)]
    if rank_info.is_distributed:
        told = told * rank_info.world_size
        dist.all_gather_object(told, told[0])
    for rank, (text, _) in enumerate(told):
        if text:
            raise LaunchError(text if rank == 0 else f"rank {rank}: {text}")
    return device, lock, study.only(told[0][1]) if only_failed else study


def _failed_rows(study: Study, *, is_first_attempt: bool) -> list[Row]:
    """The rows that failed in the last launch; its restarts go on with those it began with."""
    path = study.layout.selection
    if is_first_attempt or not path.exists():
        outcomes = {row.index: read_outcome(study.layout.outcome(row.name)) for row in study.rows}
        failed = [index for index, found in outcomes.items() if found and found.state == "failed"]
        if not failed:
            raise LaunchError(
                f"{study.layout.output_dir}: no row failed in the last launch, so --rerun failed "
                f"has nothing to do; without it, everything that isn't done is run"
            )
        write_json(path, failed)
    return [study.rows[index] for index in json.loads(path.read_text())]


def _warn(text: str) -> None:
    """On the way to a launch that goes on: not among the errors."""
    print(f"fusionrun: {text}", flush=True)


def _check_packages(study: Study) -> None:
    """Weights & Biases isn't among the requirements: whoever asks for it brings it."""
    mode = study.recipe.logs.wandb
    if mode != "off" and importlib.util.find_spec("wandb") is None:
        raise LaunchError(
            f"{study.name}: logs.wandb is {mode}, but the package isn't installed; "
            f"run `pip install wandb`, or set logs.wandb=off"
        )


def _lock(study: Study, rank_info: RankInfo) -> TextIO:
    """The kernel frees the lock when its process ends, however it ends: none is ever stale."""
    path = study.layout.state / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise LaunchError(
            f"{study.layout.output_dir}: another launch works here ({lock.read().strip()}); "
            f"wait for it, stop it, or choose another output_dir"
        ) from None
    lock.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    lock.write(f"host {rank_info.host}, pid {os.getpid()}, since {since}\n")
    lock.flush()
    return lock


def _prepare_output(study: Study, *, first_attempt: bool) -> None:
    """Clear what an earlier launch left unfinished, and write down the recipe."""
    layout = study.layout
    sweep_temporaries(layout.output_dir)
    if first_attempt:  # torchrun's restarts count crashes, a person's new start doesn't
        shutil.rmtree(layout.crashes("").parent, ignore_errors=True)
    for path in layout.heartbeat(0).parent.glob("*.json"):
        path.unlink()
    for task in study.tasks:
        outcome = layout.outcome(task.name)
        found = read_outcome(outcome)
        if found is not None and not (found.state == "done" and is_reusable(study, task)):
            outcome.unlink()
        if found is None and is_reusable(study, task):
            write_outcome(outcome, Outcome("done", note="found"))
    write_text(layout.recipe, dump_recipe(study.recipe))


def _make_display(
    study: Study,
    rank_info: RankInfo,
    gather: StatusGather,
    queue: Queue,
    device: str,
    threads: int,
    console: Console,
) -> Display:
    builder = SnapshotBuilder(
        study.layout,
        study.tasks,
        gather,
        rank_info,
        study=study.name,
        device=device,
        threads=threads,
        outcome_of=queue.outcome,
    )
    watchdog = Watchdog(study.recipe.runtime.hang_minutes, rank_info)

    def observe() -> Snapshot:
        snapshot = builder.build()
        watchdog.look(snapshot)
        return snapshot

    return Display(
        observe,
        study.layout,
        [task.name for task in study.tasks],
        every_seconds=study.recipe.status.every_seconds,
        summary_minutes=study.recipe.status.summary_minutes,
        console=console,
    )


class Watchdog:
    """Stops the launch when a rank stands still for too long (runtime.hang_minutes)."""

    def __init__(self, limit_minutes: float | None, rank_info: RankInfo) -> None:
        self._limit = limit_minutes
        self._rank_info = rank_info
        self._barked = False

    def look(self, snapshot: Snapshot) -> None:
        for rank in snapshot.ranks if self._limit is not None and not self._barked else ():
            still = max(rank.still_seconds, rank.heartbeat_age or 0.0)
            if rank.state not in ENDED and still > 60 * (self._limit or 0.0):
                self._barked = True
                print(
                    f"fusionrun: rank {rank.rank} ({rank.task or rank.state}) has stood still for "
                    f"{still:.0f} s (runtime.hang_minutes={self._limit:g}); the launch stops. The "
                    f"same command goes on from the last checkpoints",
                    file=sys.stderr,
                    flush=True,
                )
                # torchrun tells every rank, and kills one that can't hear
                target = os.getppid() if self._rank_info.is_distributed else os.getpid()
                os.kill(target, signal.SIGTERM)


def _work(
    study: Study,
    rank_info: RankInfo,
    queue: Queue,
    record: Record,
    stop: Stop,
    device: torch.device,
    threads: int,
) -> None:
    """Everything between joining and leaving; how it ended is in the record's state."""
    try:
        for task in study.tasks:
            if is_reusable(study, task):
                found = read_outcome(study.layout.outcome(task.name))
                queue.close(task, "done", found.seconds if found else None)
        _take_tasks(study, rank_info, queue, record, stop, device, threads)
        record.state = "stopped" if stop.requested() else "finished"
    except StopRequested:
        record.state = "stopped"
    except USER_ERRORS as error:
        record.note, record.state = _in_words(error), "failed"
    except Exception:
        record.note, record.state = traceback.format_exc(), "failed"


def _note(record: Record, stop: Stop, text: str) -> None:
    """What the set-up is doing, for the table; long set-ups can be stopped too."""
    record.note = text
    if stop.requested():
        raise StopRequested


def _take_tasks(
    study: Study,
    rank_info: RankInfo,
    queue: Queue,
    record: Record,
    stop: Stop,
    device: torch.device,
    threads: int,
) -> None:
    """Claim and execute tasks until none is left or a stop is asked for."""
    context = None
    while not stop.requested():
        task = queue.next()
        if task is not None:
            try:  # only now: a rank that finds nothing to do needs no data
                context = context or _open_context(study, rank_info, record, stop, device, threads)
            except StopRequested:
                raise
            except Exception as error:
                queue.close(task, _in_words(error))  # other ranks wait for it
                raise
            _execute(context, rank_info, queue, task, record)
        elif queue.exhausted:
            return
        else:
            record.state = "idle"
            record.progress_count += 1
            time.sleep(0.2)


def _open_context(
    study: Study,
    rank_info: RankInfo,
    record: Record,
    stop: Stop,
    device: torch.device,
    threads: int,
) -> RunContext:
    launch = {
        "job_id": rank_info.job_id,
        "nodes": rank_info.nodes,
        "restarts": rank_info.restarts,
        "rank": rank_info.rank,
        "host": rank_info.host,
    }
    context = open_context(
        study,
        device,
        threads,
        progress=lambda text: _note(record, stop, text),
        launch=launch,
        stop_requested=stop.requested,
    )
    record.note = ""
    return context


def _execute(
    context: RunContext, rank_info: RankInfo, queue: Queue, task: Task, record: Record
) -> None:
    """One task from claim to outcome; only a stop gets past this, a failure is the task's own."""
    layout = context.study.layout
    trace, started = "", time.monotonic()
    try:
        outcome = _attempt(context, rank_info, queue, task, record)
    except StopRequested:
        raise
    except USER_ERRORS as error:
        outcome = _failed(rank_info, record, _in_words(error))
    except Exception as error:
        trace = traceback.format_exc()
        note = f"{type(error).__name__}: {error}; traceback in {layout.task_log(task.name)}"
        outcome = _failed(rank_info, record, note)
    finally:
        record.busy_seconds += time.monotonic() - started
    try:
        if outcome.state == "failed":
            with TaskLog(layout.task_log(task.name), task.name) as log:
                log.details(trace)
                log.line(f"failed: {outcome.note}")
        write_outcome(layout.outcome(task.name), outcome)
        layout.crashes(task.name).unlink(missing_ok=True)
    except OSError as error:
        # a full disk can't even hold the reason; the table gets it from the queue
        print(f"[{task.name}] {outcome.note}; {_in_words(error)}", file=sys.stderr, flush=True)
    record.task, record.note = -1, ""
    queue.close(task, "done" if outcome.state == "done" else outcome.note, outcome.seconds)


def _attempt(
    context: RunContext, rank_info: RankInfo, queue: Queue, task: Task, record: Record
) -> Outcome:
    """Train the task and say how it stands; whatever goes wrong is raised."""
    layout = context.study.layout
    with TaskLog(layout.task_log(task.name), task.name) as log:
        reporter = TaskReporter(context.study, task, record, log, context.device)
        try:
            log.line(
                f"starts on rank {rank_info.rank}, {context.device}, {context.threads} threads"
            )
            _require_needs(queue, task)
            is_done(context.study, task)  # says why when a result of other settings stands there
            _count_crashes(context.study, task)
            if isinstance(task, RowTask):
                train_row(context, task, reporter)
            else:
                train_expert(context, task, reporter)
            log.line("done")
        except StopRequested:
            log.line("stopped; the same command goes on from here")
            layout.crashes(task.name).unlink(missing_ok=True)
            raise
        finally:
            reporter.close()
    return reporter.outcome(rank_info.rank)


def _failed(rank_info: RankInfo, record: Record, note: str) -> Outcome:
    return Outcome("failed", note=note, rank=rank_info.rank, epoch=int(record.epoch))


def _in_words(error: Exception) -> str:
    """What a person needs to know of an error; the system's own come with the file's name."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}. Nothing that was saved before is lost"
    return str(error)


def _count_crashes(study: Study, task: Task) -> None:
    """Note that the task starts; a clean end removes the note.

    Raises TaskError when the task took its process with it CRASHES times without getting further:
    torchrun's restarts are there for the other rows too.
    """
    note, checkpoint = study.layout.crashes(task.name), resume_path(study, task)
    reached = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    crashes = 0
    if note.exists():
        before = json.loads(note.read_text())
        crashes = before["crashes"] + 1 if before["reached"] == reached else 0
    if crashes >= CRASHES:
        raise TaskError(
            f"its process died {crashes} times without getting further; the log of the rank and "
            f"the system's (dmesg: out of memory?) may say why. A new launch tries it again"
        )
    write_json(note, {"crashes": crashes, "reached": reached})


def _require_needs(queue: Queue, task: Task) -> None:
    failed = [need for need in task.needs if queue.outcome(need) != "done"]
    if failed:
        raise TaskError(f"can't start: {failed[0]} failed ({queue.outcome(failed[0])})")


def _verdict(study: Study, queue: Queue, records: Sequence[Record]) -> int | None:
    """The launch's exit status once all ranks have ended, None before."""
    if any(record.state not in ENDED for record in records):
        return None
    outcomes = [queue.outcome(task.name) for task in study.tasks]
    if all(outcome == "done" for outcome in outcomes):
        return ExitStatus.DONE
    if any(record.state == "stopped" for record in records):
        return ExitStatus.STOPPED
    if all(record.state == "failed" or record.busy_seconds == 0 for record in records):
        return ExitStatus.NOT_STARTED
    return ExitStatus.ROW_FAILED


def _wait_for_peers(gather: StatusGather, stop: Stop) -> int | None:
    """Keep serving the table until rank 0 ends it; None when that can't be waited for."""
    stopped_at = None
    while gather.alive:
        if gather.wait(0.2) is not None:
            break
        if stop.requested():
            stopped_at = stopped_at or time.monotonic()
            if time.monotonic() - stopped_at > FAREWELL_SECONDS:
                break
    return gather.exit_code


def _leave_to_torchrun() -> NoReturn:
    """End as a crash does, whoever else is told the exit status: a peer has died.

    A rank that leaves quietly has done its work, in torchrun's eyes. On several nodes the torchrun
    of such ranks would never start them again, and that of the dead peer would wait for it.
    """
    sys.stdout.flush()
    os._exit(ExitStatus.STOPPED)


def _write_results(study: Study) -> None:
    """The tables of what is finished; a full disk must not hide how the launch ended."""
    try:
        write_results(study.layout, collect_results(study))
    except OSError as error:
        print(f"fusionrun: results could not be written: {error}", file=sys.stderr)


def _say_goodbye(
    study: Study, code: ExitStatus, record: Record, console: Console, *, lost_peers: bool
) -> None:
    """The last words on the terminal or in the job's output."""
    if code == ExitStatus.NOT_STARTED:
        beats = [read_heartbeat(path) for path in study.layout.heartbeat(0).parent.glob("*.json")]
        notes = [record.note, *(beat.note for beat in beats if beat and beat.state == "failed")]
        print(f"fusionrun: {next(filter(None, notes), 'no rank could start')}", file=sys.stderr)
        return
    if code != ExitStatus.STOPPED:
        console.print(results_tables(collect_results(study), console.width))
    words = {
        ExitStatus.DONE: "all rows done",
        ExitStatus.ROW_FAILED: "some tasks failed; the same command runs them again, and only them",
        ExitStatus.STOPPED: "stopped before the end; the same command goes on from here",
    }
    if lost_peers:
        words[ExitStatus.STOPPED] = (
            "another rank has died; if torchrun doesn't start all again, the same command goes on"
        )
    line = f"{words[code]}. Results: {study.layout.results('md')}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
