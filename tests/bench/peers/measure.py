"""Whole commands side by side, each from cold processes: we train a row, too, most peers none."""

import csv
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, median

from fusionrun.components.manifest import read_manifest
from fusionrun.study.paths import Layout
from tests.bench.measure import Bench, Goal, Row, interleave, times_as_fast
from tests.bench.peers.job import ANSWER, JOB, ROW, Answer, Job
from tests.bench.peers.studies import FUSION, MODEL, Size, make
from tests.tiny import ROOT, environment

GOAL = 1.3
ROUNDS = 3  # at most: a pair takes a minute or two
LIMIT, GRACE = 600.0, 30.0  # seconds for a command, and to end when it's told to
INSTALL = "pip install -r tests/bench/peers/requirements.txt, and --peers-python if elsewhere"


@dataclass(frozen=True)
class Peer:
    """A program of this folder, and how it is run."""

    words: str
    program: str
    package: str = ""  # that it needs beside fusionrun's own
    at_once: bool = True  # a process for each expert, else one for all
    trains_row: bool = False  # in a process after them


PREDECESSOR = Peer("the predecessor, four at once, then the row", "predecessor", trains_row=True)
LIGHTNING = Peer("four Lightning processes at once, no row", "lightning_expert", "lightning")
TIMM = Peer("four timm processes at once, no row", "timm_expert", "timm")
ENSEMBLE = Peer(
    "Ensemble-PyTorch's fusion, no row", "ensemble_fusion", "torchensemble", at_once=False
)
STUDIES: dict[str, tuple[Size, Sequence[Peer]]] = {
    "small experts and row": (
        Size(width=16, epochs=2, holdout=120, test=200),
        (PREDECESSOR, LIGHTNING, TIMM, ENSEMBLE),
    ),
    "wider experts, one epoch, small row": (
        Size(width=32, epochs=1, holdout=120, test=200),
        (TIMM,),
    ),
    "small experts, row of usual size": (
        Size(width=16, epochs=2, holdout=480, test=1000),
        (LIGHTNING, TIMM),
    ),
}


class FailedError(Exception):
    """A command that is compared didn't get to its end."""


@dataclass
class Side:
    """Runs one side's whole command and keeps what it took and what came out."""

    command: Callable[[Path], list[Answer]]  # with a new folder for all that it writes
    folder: Callable[[], Path]
    processor: list[float] = field(default_factory=list)  # seconds of all cores
    answers: list[Answer] = field(default_factory=list)
    problem: str = ""

    def __call__(self) -> float:
        """Seconds of wall time; nan once it has failed."""
        if self.problem:
            return math.nan
        folder, before, start = self.folder(), processor_seconds(), time.perf_counter()
        try:
            answers = self.command(folder)
        except FailedError as error:
            self.problem = str(error)
            return math.nan
        seconds = time.perf_counter() - start
        self.processor.append(processor_seconds() - before)
        self.answers += answers
        shutil.rmtree(folder)
        return seconds

    def __str__(self) -> str:
        accuracy = fmean(answer.accuracy for answer in self.answers)
        losses = [answer.loss for answer in self.answers if answer.loss is not None]
        loss = f", validation loss {fmean(losses):.2f}" if losses else ""
        return f"{median(self.processor):.0f} core seconds, accuracy {accuracy:.0f} %{loss}"


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(bench: Bench) -> list[Row]:
    """Every study with each of its peers that `bench.peers_python` has."""
    python = bench.peers_python or Path(sys.executable)
    packages = {peer.package for _, peers in STUDIES.values() for peer in peers if peer.package}
    found = {package: problem_of(python, package) for package in sorted(packages)}
    rows = []
    for name, (size, peers) in STUDIES.items():
        bench.say(f"peers: {name}")
        there = [peer for peer in peers if not found.get(peer.package)]
        measured = iter(compare(bench, python, name, size, there))
        rows += [
            next(measured)
            if peer in there
            else Row("peers", f"{name}: {peer.words}", Goal(GOAL), note=found[peer.package])
            for peer in peers
        ]
    return rows


def problem_of(python: Path, package: str) -> str:
    """Why `package` can't be imported, and what to do; "" where it can. Warms the disk's cache."""
    done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return f"{(done.stderr.splitlines() or ['it died'])[-1]}: {INSTALL}"


def compare(bench: Bench, python: Path, name: str, size: Size, peers: Sequence[Peer]) -> list[Row]:
    """One study, ours and each of `peers` in turn."""
    if not peers:
        return []
    folder = bench.folder("peers")
    workers = min(4, bench.cores // 8)  # of each process: few cores are busy with its steps
    recipe, job = make(folder, size, bench.device.type, workers)
    new = partial(bench.folder, "side")
    ours = Side(partial(train_ours, bench, recipe), new)
    theirs = [Side(partial(train_theirs, bench, python, folder, job, peer), new) for peer in peers]
    costs, *others = interleave([ours, *theirs], min(bench.rounds, ROUNDS), warm_up=False)
    if ours.problem:
        raise FailedError(ours.problem)
    rows = []
    for peer, side, cost in zip(peers, theirs, others, strict=True):
        words = f"{name}: {peer.words}"
        if side.problem:
            rows.append(Row("peers", words, Goal(GOAL), note=f"failed: {side.problem}"))
            continue
        note = f"ours: {ours}; theirs: {side}"
        rows.append(times_as_fast("peers", words, GOAL, theirs=cost, ours=costs, note=note))
    shutil.rmtree(folder)
    return rows


def train_ours(bench: Bench, recipe: Path, folder: Path) -> list[Answer]:
    """`bash launch.sh`, one rank a core, four at most, with new images, splits and experts."""
    words = [f"output_dir={folder / 'out'}", f"data.cache_dir={folder / 'cache'}"]
    more = {} if bench.on_gpu else {"RANKS": str(min(4, bench.cores))}
    launch = ["bash", str(ROOT / "launch.sh"), str(recipe), *words]
    run_at_once([launch], folder, environment(PYTHON=sys.executable, **more))
    layout = Layout(folder / "out")
    test = read_manifest(layout.row(MODEL, FUSION).manifest).test
    losses = []
    for path in sorted(layout.output_dir.glob("csv_logs/*_experts/*.csv")):
        with path.open(newline="") as file:
            losses.append(float(list(csv.DictReader(file))[-1]["val_loss"]))
    return [Answer(*each) for each in zip(test["before_experts"], losses, strict=True)]


def train_theirs(
    bench: Bench, python: Path, study: Path, job: Job, peer: Peer, folder: Path
) -> list[Answer]:
    """A process for each expert, or one for all, then one for the row."""
    program = [str(python), "-m", f"tests.bench.peers.{peer.program}", str(study / JOB)]
    numbers = range(len(job.experts)) if peer.at_once else range(1)
    threads = max(1, bench.cores // len(numbers))
    commands = [[*program, str(number), str(folder)] for number in numbers]
    run_at_once(commands, folder, environment(OMP_NUM_THREADS=str(threads)))
    if peer.trains_row:
        row = [*program, str(ROW), str(folder)]
        run_at_once([row], folder, environment(OMP_NUM_THREADS=str(bench.cores)))
    answers = (folder / str(number) / ANSWER for number in numbers)
    return [Answer(**json.loads(path.read_text())) for path in answers]


def run_at_once(commands: Sequence[Sequence[str]], folder: Path, variables: dict[str, str]) -> None:
    """Start all, wait for all; their words go to `folder`. Raises FailedError."""
    logs = [folder / f"words-{number}" for number in range(len(commands))]
    running: list[subprocess.Popen[bytes]] = []
    end = time.monotonic() + LIMIT
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as file:
                running.append(
                    subprocess.Popen(
                        command,
                        cwd=folder,
                        env=variables,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        for process, log in zip(running, logs, strict=True):
            if process.wait(max(0.0, end - time.monotonic())) != 0:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
                raise FailedError(f"exit status {process.returncode}: {last[0]}")
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"not done after {LIMIT:.0f} s") from error
    finally:
        left = [process for process in running if process.poll() is None]
        for process in left:
            process.terminate()  # launch.sh tells its ranks, which have sessions of their own
        for process in left:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
