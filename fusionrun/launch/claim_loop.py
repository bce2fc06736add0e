"""What a rank does between joining and leaving: claim a task, execute it, until none is left."""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fusionrun.common.distributed import RankInfo
from fusionrun.common.memory import reset_peak
from fusionrun.components.starting_experts import with_origin_notes
from fusionrun.launch import train_task
from fusionrun.launch.crashes import count_start
from fusionrun.launch.failures import USER_ERRORS, in_words
from fusionrun.launch.resume import is_done, is_reusable
from fusionrun.launch.shutdown import StopSignals
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Outcome, Record, read_outcome, write_outcome
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.queue import Queue
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, Task
from fusionrun.tables.headline import too_few
from fusionrun.training.errors import StopRequested, TaskError


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

    def run(self) -> None:
        """Claim and execute tasks until none is left or a stop is asked for; raises nothing."""
        record, context = self.record, None
        try:
            for task in self.study.tasks:
                if is_reusable(self.study, task):
                    found = read_outcome(self.study.layout.outcome(task.name))
                    self.queue.close(task, "done", found.seconds if found else None)
            while not self.stop.requested():
                claimed = self.queue.next()
                if claimed is not None:
                    # only now: a rank that finds nothing to do needs no data
                    context = context or self._open_context(claimed)
                    self.execute(context, claimed)
                    with contextlib.suppress(RuntimeError):  # of a sick GPU
                        reset_peak(self.device)  # neighbours on it may need what the task had
                elif self.say is not None and self._has_open_tasks():
                    self._say_notes(None)  # while others work
                elif self.queue.exhausted:
                    break
                else:
                    record.state = "idle"
                    record.progress_count += 1
                    time.sleep(0.2)
            record.state = "stopped" if self.stop.requested() else "finished"
        except StopRequested:
            record.state = "stopped"
        except USER_ERRORS as error:
            record.note, record.state = in_words(error), "failed"
        except Exception:
            record.note, record.state = traceback.format_exc(), "failed"

    def execute(self, context: RunContext, task: Task) -> None:
        """One task from claim to outcome; only a stop gets past this, a failure is the task's."""
        layout, record = self.study.layout, self.record
        trace, started = "", time.monotonic()
        try:
            with TaskLog(layout.task_log(task.name), task.name) as log:
                reporter = TaskReporter(self.study, task, record, log, self.device)
                log.line(
                    f"starts on rank {self.rank_info.rank}, {self.device}, {self.threads} threads"
                )
                try:
                    for need in task.needs:
                        if self.queue.outcome(need) != "done":
                            log_file = layout.task_log(need)
                            raise TaskError(f"can't start: {need} failed; see {log_file}")
                    is_done(self.study, task)  # raises for the result of another experiment
                    count_start(self.study, task, self.rank_info.rank)
                    if isinstance(task, ExpertTask):
                        train_task.train_expert(context, task, reporter)
                    else:
                        train_task.train_row(context, task, reporter)
                    log.line("done")
                except StopRequested:
                    log.line("stopped; the same command resumes from this checkpoint")
                    layout.crashes(task.name).unlink(missing_ok=True)
                    raise
                finally:
                    reporter.close(hurried=self.stop.requested())
            outcome = reporter.outcome(self.rank_info.rank)
        except StopRequested:
            raise
        except USER_ERRORS as error:
            outcome = self._failed(in_words(error))
        except Exception as error:
            trace = traceback.format_exc()
            outcome = self._failed(f"{type(error).__name__}: {error}")  # traceback: in its log
        finally:
            record.busy_seconds += time.monotonic() - started
        try:
            self._write_down(task, outcome, trace)
        except OSError as error:
            # a full disk can't even hold the reason; the table gets it from the queue
            print(f"[{task.name}] {outcome.note}; {in_words(error)}", file=sys.stderr, flush=True)
        record.task, record.note = -1, ""
        word = "done" if outcome.state == "done" else outcome.note
        self.queue.close(task, word, outcome.seconds)

    def _open_context(self, claimed: Task) -> RunContext:
        """Load the data; what hinders that is told to those who wait for the claimed task."""
        self.record.state, self.record.note = "starting", "reads the data"
        try:
            context = self._read(self.device)
        except StopRequested:
            raise
        except Exception as error:
            path = self.study.layout.task_log(claimed.name)
            with contextlib.suppress(OSError), TaskLog(path, claimed.name) as log:
                log.line(f"failed: {in_words(error)}")
            self.queue.close(claimed, in_words(error))
            raise
        self._say_notes(context)
        return context

    def _read(self, device: torch.device) -> RunContext:
        rank_info, record = self.rank_info, self.record
        launch: dict[str, Any] = {
            "job_id": rank_info.job_id,
            "nodes": rank_info.nodes,
            "restarts": rank_info.restarts,
            "rank": rank_info.rank,
            "host": rank_info.host,
        }

        def note(text: str) -> None:
            record.note = text
            if self.stop.requested():  # long set-ups can be stopped too
                raise StopRequested

        return with_origin_notes(
            open_context(
                self.study,
                device,
                self.threads,
                progress=note,
                launch=launch,
                stop_requested=self.stop.requested,
            )
        )

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

    def _failed(self, note: str) -> Outcome:
        return Outcome("failed", note=note, rank=self.rank_info.rank, epoch=int(self.record.epoch))

    def _write_down(self, task: Task, outcome: Outcome, trace: str) -> None:
        """The outcome, and a failure's reason in the task's log. Raises OSError."""
        layout = self.study.layout
        if outcome.state == "failed":
            with TaskLog(layout.task_log(task.name), task.name) as log:
                log.details(trace)
                log.line(f"failed: {outcome.note}")
        write_outcome(layout.outcome(task.name), outcome)
        layout.crashes(task.name).unlink(missing_ok=True)
