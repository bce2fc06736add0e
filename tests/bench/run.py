"""`python -m tests.bench`: measure group after group, then show and store the rows."""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from tests.bench import (
    GROUPS,
    ON_REQUEST,
    data_loading,
    gpu,
    overheads,
    ranks,
    report,
    scaling,
    startup,
    steps,
)
from tests.bench.measure import Bench, Row
from tests.bench.peers import measure as peers

MEASURES: Mapping[str, Callable[[Bench], list[Row]]] = {
    "data": data_loading.measure,
    "step": steps.measure_steps,
    "epoch": steps.measure_epoch,
    "overheads": overheads.measure,
    "startup": startup.measure,
    "ranks": ranks.measure_speed,
    "memory": ranks.measure_memory,
    "growth": scaling.measure,
    "gpu": gpu.measure,
    "peers": peers.measure,
    "compiled": gpu.measure_compiled,
    "layout": steps.measure_layouts,
}


def run(
    groups: Sequence[str],
    console: Console,
    *,
    rounds: int,
    json: Path | None,
    device: torch.device,
    peers_python: Path | None = None,
) -> None:
    """Measure `groups` of GROUPS on `device`, if none is named all but those ON_REQUEST.

    `json` is written after every group, and once before the first. Raises OSError where it can't
    be. Whatever fails, the table of what was measured is shown.
    """
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fusionrun-bench-") as scratch:
        bench = Bench(device, cores, Path(scratch), console.print, rounds, peers_python)
        about = report.about(bench)
        try:
            for group in groups or [name for name in GROUPS if name not in ON_REQUEST]:
                report.write(json, about, rows)
                start = time.monotonic()
                rows += MEASURES[group](bench)
                gc.collect()
                torch.cuda.empty_cache()  # other processes come next
                console.print(f"{group}: {time.monotonic() - start:.0f} s")
            report.write(json, about, rows)
        finally:
            console.print(report.table(rows))
