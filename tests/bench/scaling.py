"""Many rows: how good the order of claims is, and what a row more costs the launch itself."""

import io
import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console, Group
from torch.distributed import HashStore

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.common.distributed import RankInfo, read_rank_info
from fusionrun.experts import build_expert
from fusionrun.launch.shutdown import StopSignals
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.record import Record
from fusionrun.monitor.snapshot import SnapshotBuilder
from fusionrun.monitor.table import table
from fusionrun.study.planning import plan_study
from fusionrun.study.queue import Queue
from fusionrun.study.recipe import DataConfig, Recipe, RowConfig
from fusionrun.study.schedule import lower_bound, simulate
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task
from tests.bench.fusionrun_side import CLASSES
from tests.bench.measure import MODELS, Bench, Row, share
from tests.bench.steps import expert_step

FUSIONS = ("multiplicative", "multiplicativeAddition", "TransformerBase", "concatenation")
RANKS = 4
FEW, SEED_STUDY, MANY = 4, 16, 64  # rows
TABLES = 5  # drawn in a round
BATCH = 8  # of the steps that are timed
IMAGES = 50_000  # of the data set that experts and rows divide


def study_of(rows: int, folder: Path) -> Study:
    """`rows` full-size rows: neighbours differ in their model, then in fusion, then in seed."""
    seeds = range(rows)  # more than enough
    combinations = itertools.islice(itertools.product(seeds, FUSIONS, MODELS), rows)
    configs = tuple(RowConfig(model, fusion, seed) for seed, fusion, model in combinations)
    data = DataConfig(num_classes=CLASSES)
    return plan_study(Recipe(output_dir=str(folder), rows=configs, data=data), "benchmark")


def builder_of(study: Study, rank_info: RankInfo, gather: StatusGather) -> SnapshotBuilder:
    """Rank 0's view of a launch in which no task has ended yet."""
    return SnapshotBuilder(
        study.layout,
        study.tasks,
        gather,
        rank_info,
        study=study.name,
        threads=1,
        every_seconds=1.0,
        outcome_of=Queue(study.tasks, HashStore(), rank_info.rank, rank_info.world_size).outcome,
    )


def measure(bench: Bench) -> list[Row]:
    """Makespans with the step times of this run, and the launch's own CPU time for each row."""
    seconds = {model: _expert_seconds(bench, model) for model in MODELS}
    few, many = bench.interleave(
        partial(_seconds_a_row, bench, FEW), partial(_seconds_a_row, bench, MANY)
    )
    name = f"planning, claims, {TABLES} tables: a row of {MANY} against one of {FEW}"
    return [
        *(_makespan(bench, rows, seconds) for rows in (FEW, SEED_STUDY, MANY)),
        share("growth", name, 1.0, ours=many, of=few, unit="CPU s a row"),
    ]


def _expert_seconds(bench: Bench, model: str) -> float:
    """What an image takes one expert in training, roughly: it's for simulations."""
    step = expert_step(bench, model, BATCH)
    step()  # the first is slower
    return bench.timed(step)() / BATCH


def _makespan(bench: Bench, rows: int, seconds_per_image: Mapping[str, float]) -> Row:
    tasks = study_of(rows, bench.scratch).tasks
    seconds = task_seconds(tasks, seconds_per_image)
    end = max(run.end for run in simulate(tasks, seconds, RANKS))
    bound = lower_bound(tasks, seconds, RANKS)
    name = f"{rows} rows and their experts on {RANKS} ranks: makespan against its lower bound"
    note = "simulated; real claims, task times from this run's steps"
    return share("growth", name, 1.1, ours=[end], of=[bound], note=note)


def task_seconds(tasks: Sequence[Task], seconds_per_image: Mapping[str, float]) -> dict[str, float]:
    """How long each task trains, if an image takes its model `seconds_per_image` of one expert.

    A task's cost is its epochs x its part of the data set x multiply-accumulates an image.
    """
    work_per_image = {}
    for model in {task.model for task in tasks}:
        with torch.device("meta"):
            expert = build_expert(model, CLASSES)
        work_per_image[model] = multiply_accumulates(expert, 32)
    return {
        task.name: task.cost / work_per_image[task.model] * IMAGES * seconds_per_image[task.model]
        for task in tasks
    }


def _seconds_a_row(bench: Bench, rows: int) -> float:
    """CPU time for everything that a launch does by row, beside training."""
    rank_info = read_rank_info({})
    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    start = time.process_time()
    study = study_of(rows, bench.scratch)
    simulate(study.tasks, {task.name: task.cost for task in study.tasks}, RANKS)
    gather = StatusGather(
        rank_info,
        Record(),
        shape=(4, 1),
        every_seconds=1.0,
        decide=lambda _: None,
        stop=StopSignals([]),
    )
    builder = builder_of(study, rank_info, gather)
    for _ in range(TABLES):
        console.print(Group(*table(builder.build(), console.width)))
    return (time.process_time() - start) / rows
