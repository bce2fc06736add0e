"""What a launch does beside training: its status threads, logs and checkpoints."""

import io
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from fusionrun.common.distributed import read_rank_info
from fusionrun.launch.shutdown import StopSignals
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.heartbeat import Heartbeat
from fusionrun.monitor.live import Display
from fusionrun.monitor.record import Record
from fusionrun.training.checkpoint import ResumeFile
from tests.bench import fusionrun_side
from tests.bench.measure import Bench, Row, share
from tests.bench.scaling import RANKS, SEED_STUDY, builder_of, study_of
from tests.bench.worker_pool import Part, WorkerPool

TICK, TICKS = 0.1, 10  # seconds, and ticks of a round; a launch ticks once a second
EPOCHS = 100  # in the CSV before the first that is timed; every epoch writes it whole
PAUSE_BATCH = 16  # as the steps that are timed


def measure(bench: Bench) -> list[Row]:
    """Share of the training time at one record a second, an epoch in each, and the checkpoints.

    Status: CPU time of all threads of rank 0, which also draws the table of sixteen rows on a
    terminal. A record: what the loop itself does, from reading the device to CSV and TensorBoard.
    A checkpoint: a full-size ResNet row's, as often as recipes have it by default.
    """
    save, interval = _checkpoint(bench)
    folder = bench.folder("status")
    with WorkerPool([partial(_status_threads, rank, folder) for rank in range(RANKS)]) as pool:
        status, records, saves = bench.interleave(
            lambda: pool()[0], bench.timed(_record(bench)), bench.timed(save)
        )
    total = [s + r + c / interval for s, r, c in zip(status, records, saves, strict=True)]
    name = "status, CSV, TensorBoard and checkpoints in a second of training"
    note = (
        f"status {1e3 * min(status):.1f}-{1e3 * max(status):.1f} ms, record "
        f"{1e3 * min(records):.1f}-{1e3 * max(records):.1f} ms; checkpoint {min(saves):.2f}-"
        f"{max(saves):.2f} s every {interval:.0f} s"
    )
    return [
        share("overheads", name, 0.01, ours=total, of=[1.0] * len(total), note=note),
        _pause(bench),
    ]


def _pause(bench: Bench) -> Row:
    """How long training stands still for a state: until it may go on, and where it waits later.

    Whatever the thread that writes takes of the processors comes on top, as it did before.
    """
    context = fusionrun_side.run_context(bench, "resnet", batch_size=PAUSE_BATCH)
    trainer = fusionrun_side.row(context)
    batch = fusionrun_side.batch_for_both(trainer)[0]
    trainer.train_step(batch)
    weights, moments = trainer.model.state_dict(), trainer.optimisation.optimizer.state_dict()
    file = ResumeFile(bench.folder("pause") / "checkpoint.pth")
    saver, waits = trainer._saver, list[float]()
    save, release = bench.timed(trainer.save), bench.timed(saver.release)
    saver.release = lambda: waits.append(release())  # type: ignore[method-assign]

    def pause() -> float:
        waits.clear()
        seconds = save()
        trainer.train_step(batch)
        saver.settle()
        return seconds + sum(waits)

    ours, whole = bench.interleave(
        pause, bench.timed(lambda: file.save({"model": weights, "optimizer": moments}))
    )
    name = f"a resnet row, batch {PAUSE_BATCH}: a save's pause against a synchronous save"
    return share("overheads", name, 0.15, ours=ours, of=whole)


def _record(bench: Bench) -> Callable[[], None]:
    trainer = fusionrun_side.row(
        fusionrun_side.run_context(bench, "resnet", fusionrun_side.TINY, batch_size=16)
    )
    fusionrun_side.train_epoch(trainer)
    history = [replace(trainer.history[0], epoch=number + 1) for number in range(EPOCHS)]

    def record() -> None:
        history.append(replace(history[-1], epoch=len(history) + 1))
        trainer._last_report = 0.0  # long ago: the loop's second has passed
        trainer.after_step()
        trainer.reporter.epoch(history, trainer.best)

    return record


def _checkpoint(bench: Bench) -> tuple[Callable[[], None], float]:
    """What saves a row with its optimizer's state, and the seconds between two saves."""
    trainer = fusionrun_side.row(fusionrun_side.run_context(bench, "resnet", batch_size=2))
    trainer.train_step(fusionrun_side.batch_for_both(trainer)[0])

    def save() -> None:  # all of it, though training need not wait for most
        trainer.save()
        trainer._saver.settle()

    return save, 60 * trainer.checkpointing.every_minutes


class _Terminal(io.StringIO):
    """Takes what is drawn, and throws it away."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def _status_threads(rank: int, folder: Path) -> Part:
    """One rank's threads as a launch starts them, but ticking faster; returns CPU s a tick."""
    rank_info = replace(read_rank_info({}), rank=rank, world_size=RANKS)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    study = study_of(SEED_STUDY, folder)
    record = Record(state="working", task=rank, epoch=3, step=40, steps=79, train_loss=1.0)
    gather = StatusGather(
        rank_info,
        record,
        shape=(4, 1),
        every_seconds=TICK,
        decide=lambda _: None,
        stop=StopSignals([]),
    )
    if rank == 0:
        sys.stdout = terminal = _Terminal()
        Display(
            builder_of(study, rank_info, gather).build,
            study.layout,
            [task.name for task in study.tasks],
            every_seconds=TICK,
            summary_minutes=5.0,
            console=Console(
                file=terminal, force_terminal=True, width=140, height=60, _environ={"TERM": "xterm"}
            ),
        ).start()
    Heartbeat(record, study.layout.heartbeat(rank), TICK).start()
    gather.start()

    def part() -> float:
        start = time.process_time()
        for _ in range(TICKS):
            record.step += 1  # so that there is something to draw
            time.sleep(TICK)
        return (time.process_time() - start) / TICKS

    return part
