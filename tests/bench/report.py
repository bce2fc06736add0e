"""The figures as a table for people and as JSON, with what they depend on."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from fusionrun import __version__
from fusionrun.common.atomic_files import write_json
from tests.bench.measure import Bench, Row

VERDICTS = {True: Text("met", "green"), False: Text("missed", "red"), None: Text("n/a")}


def table(rows: Sequence[Row]) -> Table:
    """One line a figure, its note below."""
    drawn = Table(title="ratios: median (smallest - largest round)", title_justify="left")
    for heading in ("group", "what", "ratio", "goal", "", "ours", "other", "unit"):
        drawn.add_column(heading)
    for row in rows:
        what = Text.assemble(row.name, (f"\n{row.note}" if row.note else "", "dim"))
        ratio = "n/a"
        if row.ratios:
            ratio = f"{row.ratio:.3g} ({min(row.ratios):.3g} - {max(row.ratios):.3g})"
        sides = ["" if side is None else f"{side:.3g}" for side in (row.ours, row.theirs)]
        verdict = VERDICTS[row.met]
        drawn.add_row(row.group, what, ratio, str(row.goal or ""), verdict, *sides, row.unit)
    return drawn


def write(path: Path | None, about: Mapping[str, object], rows: Sequence[Row]) -> None:
    """{machine, versions, rows: [{name, ratio, low, high, goal, met, ...}]}; no path, no file."""
    if path is not None:
        write_json(path, {**about, "rows": [row.to_json() for row in rows]})


def about(bench: Bench) -> dict[str, object]:
    """The machine and the versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    machine = {
        "processor": next(names, platform.machine()),
        "cores": bench.cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name(bench.device) if bench.on_gpu else None,
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
    }
    versions = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    versions |= {"fusionrun": __version__, "python": platform.python_version()}
    return {"machine": machine, "versions": versions}
