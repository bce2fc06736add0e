"""One rank, start to end: join, take tasks until none is left, leave together."""

import faulthandler
import sys

from rich.console import Console
from torch.distributed import Store

from fusionrun.common import distributed
from fusionrun.common.distributed import RankInfo
from fusionrun.common.exit_status import ExitStatus
from fusionrun.launch.claim_loop import ClaimLoop
from fusionrun.launch.last_words import print_last_words
from fusionrun.launch.rank_log import keep_errors, redirect_output, remove_if_empty
from fusionrun.launch.session import Session, open_session
from fusionrun.launch.shutdown import (
    StopSignals,
    Watchdog,
    exit_for_restart,
    exit_status,
    store_results,
    wait_for_peers,
)
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.heartbeat import Heartbeat
from fusionrun.monitor.live import Display
from fusionrun.monitor.record import Record
from fusionrun.monitor.snapshot import Snapshot, SnapshotBuilder
from fusionrun.study.queue import Queue
from fusionrun.study.study import Study
from fusionrun.training.errors import StopRequested


def run(
    study: Study, rank_info: RankInfo, console: Console, *, only_failed: bool = False
) -> ExitStatus:
    """Work on `study` as the rank that `rank_info` says; returns the launch's exit status.

    With `only_failed`, on the rows alone that failed in the last launch. Raises RecipeError when
    the output directory holds another study, LaunchError when the launch can't start.
    """
    if rank_info.has_launcher:
        distributed.die_with_parent()  # where a script of the user's calls
    with StopSignals(study.recipe.runtime.stop_signals, rank_info.has_launcher) as stop:
        try:
            store, session = begin(study, rank_info, stop, only_failed=only_failed)
        except StopRequested:
            if rank_info.rank == 0:
                print("fusionrun: stopped before it began", file=sys.stderr)
            return ExitStatus.STOPPED
        study = session.study
        threads = distributed.divide_threads(rank_info, study.recipe.runtime.threads)
        queue = Queue(study.tasks, store, rank_info.rank, rank_info.world_size)
        record = Record.of_rank(rank_info.host, session.device, session.precision.name)
        gather = StatusGather(
            rank_info,
            record,
            shape=(study.recipe.experts.count, study.recipe.experts.most_together),
            every_seconds=study.recipe.status.every_seconds,
            decide=lambda records: exit_status(study, queue, records),
            stop=stop,
        )
        path = study.layout.heartbeat(rank_info.rank)
        heartbeat = Heartbeat(record, path, 1.0, rank_info.local_rank)
        display = make_display(session, rank_info, gather, queue, threads, stop, console)
        heartbeat.start()
        gather.start()
        if display is not None:
            display.start()
        try:
            say = display.say if display is not None else None
            loop = ClaimLoop(study, rank_info, queue, record, stop, session.device, threads, say)
            loop.run()
        finally:
            code = wait_for_peers(gather, stop, study.recipe.status.every_seconds)
            heartbeat.stop()
            # None: the peers can't be asked how they ended
            status = ExitStatus.STOPPED if code is None else ExitStatus(code)
            lost_peers = code is None and not stop.requested()
            if display is not None:
                results = store_results(study)
                display.stop()
                print_last_words(
                    study, results, status, record, console, rank_info, lost_peers=lost_peers
                )
        if lost_peers:
            exit_for_restart()
        session.close(forget=rank_info.rank == 0 and code is not None)
        remove_if_empty(study.layout.rank_log(rank_info.rank))
        if not gather.is_alive() and not gather.broken:
            distributed.leave()
        return status


def begin(
    study: Study, rank_info: RankInfo, stop: StopSignals, *, only_failed: bool
) -> tuple[Store, Session]:
    """Meet the other ranks and open the session with them; only rank 0 keeps the terminal.

    Raises StopRequested when a stop signal comes meanwhile, otherwise as `run`.
    """
    store = distributed.join(rank_info, stop.check)
    session = open_session(study, rank_info, store, stop.check, only_failed=only_failed)
    if rank_info.rank > 0:
        redirect_output(session.study.layout.rank_log(rank_info.rank))
    elif rank_info.restarts_left:
        keep_errors(session.study.layout.rank_log(0))
    elif rank_info.has_launcher:
        faulthandler.enable()  # torchrun doesn't say what a signal killed in native code
    return store, session


def make_display(
    session: Session,
    rank_info: RankInfo,
    gather: StatusGather,
    queue: Queue,
    threads: int,
    stop: StopSignals,
    console: Console,
) -> Display | None:
    """The live table, with the watchdog that looks at every snapshot of it; rank 0's alone."""
    if rank_info.rank > 0:
        return None
    study = session.study
    builder = SnapshotBuilder(
        study.layout,
        study.tasks,
        gather,
        rank_info,
        study=study.name,
        threads=threads,
        every_seconds=study.recipe.status.every_seconds,
        outcome_of=queue.outcome,
    )
    watchdog = Watchdog(study.recipe.runtime.hang_minutes, rank_info, session.device)

    def observe() -> Snapshot:
        stop.requested()  # nothing is drawn over the prompt while torchrun is suspended
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
