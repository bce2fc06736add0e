"""Real launches: stopped and killed ones end as undisturbed ones, a broken task breaks no other."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fusionrun.common.text import plural
from fusionrun.components.manifest import read_manifest
from tests.bench.measure import Bench
from tests.chaos import command_line, descendants
from tests.gpu.part import Verdict, judged
from tests.tiny import ROOT, TINY, csv_numbers, environment

QUIET = "logs.tensorboard=false"
TWO_ROWS = (
    "rows=[{model: densenet, fusion: multiplicative}, {model: resnet, fusion: TransformerBase}]"
)
# the rank that meets the broken one has others to do afterwards
ROWS = ("resnet", "broken", "densenet", "resnext")
# what a kernel does that is asked for an element that isn't there; a CPU says it in its words
BROKEN = """
import torch
from torch import nn
from fusionrun import Expert

class Broken(Expert):
    def __init__(self, num_classes):
        super().__init__(num_classes, nn.Sequential(nn.Conv2d(3, 8, 4, stride=4)), feature_dim=8)

    def forward(self, images):
        if self.training:
            if not images.is_cuda:
                raise RuntimeError("CUDA error: device-side assert triggered")
            images = images[torch.full((len(images),), 10**6, device=images.device)]
        return super().forward(images)
"""


class Launch:
    """One study, launched as a user does."""

    def __init__(self, folder: Path, recipe: str | Path, *words: str, ranks: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._ranks = folder, ranks
        self._words = [str(recipe), *words, QUIET]

    @contextmanager
    def begun(self) -> Iterator[subprocess.Popen[bytes]]:
        """Its process; whatever happens, nothing of it runs on afterwards."""
        with (self.folder / "output.txt").open("ab") as output:
            running = subprocess.Popen(
                ["bash", str(ROOT / "launch.sh"), *self._words],
                cwd=self.folder,
                env=environment(PYTHON=sys.executable, RANKS=str(self._ranks)),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield running
        finally:
            for pid in (*descendants(running.pid), running.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            running.wait()

    def run(self) -> int:
        """Its exit status."""
        with self.begun() as running:
            return self._ended(running)

    def stopped(self) -> list[int]:
        """Told to stop when a row is under way, then given again: both exit statuses."""
        with self.begun() as running:
            self._await_a_row(running)
            running.send_signal(signal.SIGUSR1)
            first = self._ended(running)
        return [first, self.run()]

    def killed(self) -> int:
        """A rank dies when a row is under way; the launch goes on."""
        with self.begun() as running:
            self._await_a_row(running)
            family = {pid: command_line(pid) for pid in descendants(running.pid)}
            ranks = [pid for pid, line in family.items() if " -m fusionrun train" in line]
            os.kill(max(ranks), signal.SIGKILL)
            return self._ended(running)

    def _await_a_row(self, running: subprocess.Popen[bytes]) -> None:
        while running.poll() is None and not self._rows_under_way():
            time.sleep(0.05)

    def _rows_under_way(self) -> list[Path]:
        """A row's CSV is written at the end of its first epoch."""
        return list(self.folder.glob("out/csv_logs/*_fusions/*.csv"))

    def _ended(self, running: subprocess.Popen[bytes]) -> int:
        status = running.wait()
        print(f"{self.folder.name}: exit status {status}", flush=True)
        if status != 0:
            print(*(self.folder / "output.txt").read_text().splitlines()[-15:], sep="\n")
        return status


def same_bits(bench: Bench) -> Verdict:
    """Deterministic rows that were stopped and resumed, or killed, equal undisturbed ones."""
    words = [TWO_ROWS, "fusion.epochs=40", "runtime.deterministic=true"]
    words.append(f"runtime.device={bench.device.type}")
    plain, stopped, killed = (
        Launch(bench.scratch / name, _recipe(bench), *words, ranks=2)
        for name in ("undisturbed", "stopped", "killed")
    )
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(each) for each in (plain.run, stopped.stopped, killed.killed)]
        found = [run.result() for run in runs]
    expected = [0, [4, 0], 0]
    wrong = [f"exit statuses {found}, expected {expected}"] if found != expected else []
    if not wrong:
        right, *others = (_results(each.folder) for each in (plain, stopped, killed))
        for name, result in zip(("stopped", "killed"), others, strict=True):
            if result != right:
                wrong.append(f"{name}: other numbers than undisturbed")
    return judged(wrong, "stopped and resumed = killed and resumed = undisturbed")


def _recipe(bench: Bench) -> Path:
    path = bench.scratch / "tiny.yaml"
    path.write_text(TINY.replace("threads: 1", "threads: null"))
    return path


def _results(folder: Path) -> object:
    """Weights and CSV numbers of every row and expert."""
    manifests = sorted(folder.glob("out/*_fusions/*/manifest.json"))
    return [read_manifest(path).weights for path in manifests], csv_numbers(folder)


def broken_task(bench: Bench) -> Verdict:
    """A device assert in one task fails that one alone, whoever has to do others after it."""
    plugin = bench.scratch / "broken.py"
    plugin.write_text(BROKEN)
    rows = ", ".join(f"{{model: {model}, fusion: single}}" for model in ROWS)
    words = [f"rows=[{rows}]", f"plugins={{broken: {plugin}:Broken}}"]
    words.append(f"runtime.device={bench.device.type}")
    launch = Launch(bench.scratch / "study", _recipe(bench), *words, ranks=2)
    status = launch.run()
    folder = launch.folder / "out"
    outcomes = {
        path.stem: json.loads(path.read_text())
        for path in folder.glob(".fusionrun/outcomes/task-*-single.json")
    }
    states = {name.split("-")[2]: outcome["state"] for name, outcome in outcomes.items()}
    expected = {model: "failed" if model == "broken" else "done" for model in ROWS}
    wrong = [f"exit status {status}, expected 3"] if status != 3 else []
    wrong += [
        f"{model}: {states.get(model, 'no outcome')}, expected {right}"
        for model, right in expected.items()
        if states.get(model) != right
    ]
    starts = sum(
        path.read_text().count(" started again") for path in folder.glob("logs/rank-*.log")
    )
    if not starts:
        wrong.append("the rank that met it was never started again")
    notes = {name: outcome.get("note", "") for name, outcome in outcomes.items()}
    return judged(
        wrong,
        f"it alone failed, after {plural(starts, 'restart')}",
        {"restarts": starts, "notes": notes},
    )


def demo(bench: Bench) -> Verdict:
    """`RANKS=4 launch.sh`, stopped in the middle, ends with 4; the same again with 0."""
    words = ["output_dir=out", f"runtime.device={bench.device.type}"]
    if not bench.on_gpu:
        words += ["experts.epochs=1", "fusion.epochs=3"]
    began = time.monotonic()
    statuses = Launch(bench.scratch / "demo", "demo", *words, ranks=4).stopped()
    seconds = time.monotonic() - began
    wrong = [f"exit statuses {statuses}, expected [4, 0]"] if statuses != [4, 0] else []
    return judged(wrong, f"stopped, then done, in {seconds:.0f} s", {"seconds": seconds})
