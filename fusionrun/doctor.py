"""`doctor RECIPE`: everything that a launch needs, and how long it will take, before it starts."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionrun.checks import (
    Finding,
    check_device,
    check_disk,
    check_folders,
    check_threads,
    plural,
    run_checks,
    size,
)
from fusionrun.data.datasets import DataError
from fusionrun.data.splits import HOLDOUT_FILE, META_FILE, POOL_FILE, SplitError
from fusionrun.distributed import LaunchError, Place, choose_device, divide_threads
from fusionrun.estimate import Estimate, RowEstimate, estimate
from fusionrun.execution import Workplace, open_workplace
from fusionrun.inspection import (
    check_compute,
    check_data,
    check_experts,
    check_gpu_memory,
    check_port,
    check_splits,
    split_message,
    standing,
)
from fusionrun.study import Study

HEALTHY, SICK, INTERRUPTED = 0, 1, 130  # exit statuses

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}
UNKNOWN = "n/a"


def doctor(study: Study, place: Place, console: Console, *, ranks: int, seconds: float) -> int:
    """Print what was found; returns 1 when something would make a launch fail, else 0.

    `ranks` is how many the launch will have on this machine; `seconds` bounds the timing of each
    row. Nothing is written but the data set's cache and a scratch folder, which is removed.
    """
    place = replace(place, rank=0, world_size=ranks, local_rank=0, local_world_size=ranks)
    try:
        with (
            console.status("looking around") as status,
            tempfile.TemporaryDirectory(prefix="fusionrun-doctor-") as scratch,
        ):
            findings, numbers = examine(
                study, place, Path(scratch), seconds, lambda text: status.update(Text(text))
            )
    except KeyboardInterrupt:
        console.print("interrupted; nothing was changed")
        return INTERRUPTED
    console.print(findings_table(findings))
    if numbers is not None:
        console.print(estimates_table(numbers))
    console.print(verdict(findings, numbers), markup=False, highlight=False, soft_wrap=True)
    return SICK if any(finding.state == "fail" for finding in findings) else HEALTHY


def examine(
    study: Study, place: Place, scratch: Path, seconds: float, progress: Callable[[str], None]
) -> tuple[list[Finding], Estimate | None]:
    """All findings, and the estimate where data and device are there to make one."""
    ranks = place.local_world_size
    device, devices = _devices(study, place)
    threads = divide_threads(place, study.recipe.runtime.threads)
    findings = run_checks(
        [
            ("write permission", lambda: check_folders(study)),
            ("disk space", lambda: check_disk(study, ranks)),
            ("port", check_port),
            ("CPU threads", lambda: check_threads(study, ranks)),
            ("device", lambda: check_device(study, ranks)),
            ("device", lambda: check_gpu_memory() if device and device.type == "cuda" else ()),
            ("compute", lambda: check_compute(devices)),
        ]
    )
    progress("loading the data")
    work, problems = _load(study, device or torch.device("cpu"), threads, scratch, progress)
    findings += problems
    if work is None:
        return findings, None
    progress("reading checkpoints")
    done: dict[str, int] = {}
    ...
