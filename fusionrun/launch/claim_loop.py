"""What a rank does between joining and leaving: claim a task, execute it, until none is left."""

import contextlib
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from fusionrun.common.distributed import RankInfo
from fusionrun.common.memory import reset_peak
from fusionrun.launch import sick_devices
from fusionrun.launch.broken_process import leave_if_broken
from fusionrun.launch.company import Company
from fusionrun.launch.crashes import count_start
from fusionrun.launch.failures import USER_ERRORS, in_words
from fusionrun.launch.reading import read_context
from fusionrun.launch.resume import ended_before, require_own_task
from fusionrun.launch.shutdown import StopSignals
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.launch.train_task import train
from fusionrun.launch.waiting import attempts
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Outcome, Record, write_outcome
from fusionrun.study.context import RunContext
from fusionrun.study.queue import Queue
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task
from fusionrun.tables.headline import too_few
from fusionrun.training import errors


@dataclass
class ClaimLoop:
    """One rank at work; how it ended is in the record's state."""

    study: Study
    rank_info: RankInfo
    queue: Queue
    record: Record
    stop: StopSignals
    device: torch.device
    threads: int
    say: Callable[[str], None] | None = None  # rank 0's, until the data's notes are said

    def __post_init__(self) -> None:
        self._company = Company.of_rank(self.study, self.device, self.rank_info)
        self._broken = ""  # what broke the device for good

    def run(self) -> None:
        """Claim and execute tasks until none is left or a stop is asked for; raises nothing."""
        record = self.record
        try:
            for task in self.study.tasks:
                if found := ended_before(self.study, task, self.rank_info.restarts):
                    self._close(task, found)
            for context, tasks in self._claims():
                started = time.monotonic()
                records = [record, *(Record() for _ in tasks[1:])]
                record.beside = records[1:]
                works = map(partial(self.execute, context, len(tasks)), tasks, records)
                turns = deque(zip(self._company.lanes(len(tasks)), works, strict=True))
                try:
                    while turns:  # a step of each
                        lane, work = turns.popleft()
                        with lane:
                            if next(work, "ended") != "ended":
                                turns.append((lane, work))
                finally:
                    record.busy_seconds += time.monotonic() - started
            record.state = "stopped" if self.stop.requested() else "finished"
        except errors.StopRequested:
            record.state = "stopped"
        except USER_ERRORS as error:
            record.note, record.state = in_words(error), "failed"
        except Exception:
            record.note, record.state = traceback.format_exc(), "failed"

    def _claims(self) -> Iterator[tuple[RunContext, list[Task]]]:
        """What is executed next, a task or several side by side, as soon as there is any."""
        record, context, is_examined = self.record, None, False
        while not self.stop.requested():
            if not is_examined and not self.queue.exhausted:  # before anything is claimed
                sick_devices.require_healthy(self.study.layout, self.rank_info, self.device)
                is_examined = True
            claimed = self.queue.next()
            if claimed is not None:
                # only now: a rank that finds nothing to do needs no data
                context = context or self._open_context(claimed)
                yield context, [claimed, *self._claim_beside(claimed)]
                if self._broken:
                    raise errors.TaskError(
                        f"{self._broken}: this process can't use {self.device} any more, and "
                        f"nobody starts it again; the same command goes on with what is left"
                    )
                with contextlib.suppress(RuntimeError):  # of a sick GPU
                    reset_peak(self.device)  # neighbours on it may need what the tasks had
            elif self.say is not None and self._has_open_tasks():
                self._say_notes(None)  # while others work
            elif self.queue.exhausted:
                break
            else:
                record.state = "idle"
                record.progress_count += 1
                time.sleep(0.2)

    def _claim_beside(self, claimed: Task) -> list[Task]:
        """What is executed beside it; but a task that may have killed its process is alone."""

        def is_sound(task: Task) -> bool:
            return not self.study.layout.crashes(task.name).exists()

        most = self._company.most - 1 if is_sound(claimed) else 0
        return self.queue.beside(claimed, most, is_sound)

    def execute(
        self, context: RunContext, together: int, task: Task, record: Record
    ) -> Iterator[None]:
        """One of `together` tasks, step by step, from claim to outcome; a failure is the task's.

        But what broke the device is the process's: it ends for torchrun to start it again. Where
        that can't be, this rank does no other.
        """
        layout, rank, trace = self.study.layout, self.rank_info.rank, ""
        try:
            with TaskLog(layout.task_log(task.name), task.name) as log:
                reporter = TaskReporter(self.study, task, record, log, self.device)
                how = f"{self.threads} threads{f', {together} at once' * (together > 1)}"
                log.line(f"starts on rank {rank}, {self.device}, {how}")
                try:
                    self._require_needs(task)
                    require_own_task(self.study, task)
                    count_start(self.study, task, rank)
                    for attempt in attempts(context, reporter, self._company):
                        while self._company.is_full:
                            self.stop.check()
                            yield
                        with self._company, attempt:
                            yield from train(context, task, reporter)
                    log.line("done")
                except errors.StopRequested:
                    log.line("stopped; the same command resumes from this checkpoint")
                    layout.crashes(task.name).unlink(missing_ok=True)
                    return
                finally:
                    reporter.close(hurried=self.stop.requested())
            outcome = reporter.outcome(rank, together)
        except Exception as error:
            broken = leave_if_broken(error, self.study, task, self.rank_info, self.device)
            note = broken or in_words(error)
            if broken or not isinstance(error, USER_ERRORS):
                trace = traceback.format_exc()  # for its log
            outcome = Outcome("failed", note=note, rank=rank, epoch=int(record.epoch))
            self._broken = self._broken or broken
        try:
            if outcome.state == "done":
                sick_devices.count_success(self._device_note)
            self._write_down(task, outcome, trace)
        except OSError as error:
            # a full disk can't even hold the reason; the table gets it from the queue
            print(f"[{task.name}] {outcome.note}; {in_words(error)}", file=sys.stderr, flush=True)
        record.task, record.note = -1, ""
        self._close(task, outcome)

    def _close(self, task: Task, outcome: Outcome) -> None:
        """Tell the other ranks how the task ended, and how long a rank needs for one like it."""
        word = "done" if outcome.state == "done" else outcome.note
        seconds = None if outcome.seconds is None else outcome.seconds / outcome.together
        self.queue.close(task, word, seconds)

    @property
    def _device_note(self) -> Path:
        return self.study.layout.rank_device(self.rank_info.rank)

    def _require_needs(self, task: Task) -> None:
        for need in task.needs:
            if self.queue.outcome(need) != "done":
                log_file = self.study.layout.task_log(need)
                raise errors.TaskError(f"can't start: {need} failed; see {log_file}")

    def _open_context(self, claimed: Task) -> RunContext:
        """Load the data; what hinders that is told to those who wait for the claimed task."""
        self.record.state, self.record.note = "starting", "reads the data"
        try:
            context = self._read(self.device)
        except errors.StopRequested:
            raise
        except Exception as error:
            leave_if_broken(error, self.study, claimed, self.rank_info, self.device)
            path = self.study.layout.task_log(claimed.name)
            with contextlib.suppress(OSError), TaskLog(path, claimed.name) as log:
                log.line(f"failed: {in_words(error)}")
            self.queue.close(claimed, in_words(error))
            raise
        self._say_notes(context)
        return context

    def _read(self, device: torch.device) -> RunContext:
        context = read_context(
            self.study, self.rank_info, device, self.threads, self.record, self.stop, self.queue
        )
        return replace(context, has_company=self._company.has_others)

    def _say_notes(self, context: RunContext | None) -> None:
        """Once, where there is somebody to `say` it: the notes of the data, a small validation.

        None: the data have to be read for it.
        """
        say, self.say = self.say, None
        if say is not None:
            with contextlib.suppress(*USER_ERRORS):  # whoever works on the data meets them, too
                context = context or self._read(torch.device("cpu"))
                for line in context.data.notes:
                    say(f"note: {line}")
                if few := too_few(len(context.splits.fusion_val)):
                    say(f"warning: {few}; data.val_fraction is its share of the holdout")
        self.record.note = ""

    def _has_open_tasks(self) -> bool:
        return any(self.queue.outcome(task.name) is None for task in self.study.tasks)

    def _write_down(self, task: Task, outcome: Outcome, trace: str) -> None:
        """The outcome, and a failure's reason in the task's log. Raises OSError."""
        layout = self.study.layout
        if outcome.state == "failed":
            with TaskLog(layout.task_log(task.name), task.name) as log:
                log.details(trace)
                log.line(f"failed: {outcome.note}")
        write_outcome(layout.outcome(task.name), outcome)
        layout.crashes(task.name).unlink(missing_ok=True)
