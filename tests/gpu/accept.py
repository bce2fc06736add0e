"""Accept a GPU: `python -m tests.gpu.accept --budget 560 --json FILE`.

Correctness first, several parts at a time; then figures, one by one. Each part has a process of
its own, so that none can spoil the next, and is begun only while the budget lasts; the file is
written after each. Exit status: 0 all is right and every goal met; 1 something is wrong; 2 command
line; 3 nothing is wrong, but a goal was missed or a part not run (no GPU, no time left).
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from fusionrun.common.atomic_files import write_json
from fusionrun.common.distributed import usable_cpus
from fusionrun.common.text import one_line, plural, problem_of
from tests.bench.measure import Bench
from tests.bench.report import about
from tests.chaos import descendants
from tests.gpu.part import Part, Verdict
from tests.gpu.parts import PARTS

ROUNDS = 3  # of each figure
CORES, GIB = 4, 16  # that each of several parts at a time should have, the memory on the GPU
PATIENCE = 3  # times what a part should take, before it's given up
NO_GPU = Verdict("skipped", "torch uses no GPU here")
NO_TIME = Verdict("skipped", "no time left")


class Running:
    """A part in a process of its own."""

    def __init__(self, part: Part, on_gpu: bool, folder: Path, limit: float) -> None:
        self.part, self.limit, self.began = part, limit, time.monotonic()
        self._output = folder / "output.txt"
        # a server that has imported torch, but never touched the GPU, forks the parts
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.answer, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(theirs, part, on_gpu, folder))
        self._process.start()
        theirs.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def verdict(self) -> Verdict | None:
        """What it found, or how it died; None while it may go on. It has ended thereafter."""
        if self.answer.poll():
            try:
                found: Verdict = self.answer.recv()
            except EOFError:
                self._process.join(5)
                found = Verdict("fail", f"its process died: {self._process.exitcode}")
        elif self.seconds > self.limit:
            found = Verdict("fail", f"not done after {self.limit:.0f} s")
        else:
            return None
        self.end()
        if found.state != "fail":
            return found
        lines = (
            self._output.read_text(errors="replace").splitlines() if self._output.exists() else []
        )
        return replace(found, output="\n".join(lines[-60:]))

    def end(self) -> None:
        """Kill it and all that it began."""
        pid = self._process.pid
        for each in (*descendants(pid), pid) if pid else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self._process.join(10)  # one that waits in a sick driver can't be killed


def _work(answer: Connection, part: Part, on_gpu: bool, folder: Path) -> None:
    folder.mkdir()
    with (folder / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    cores = usable_cpus()
    torch.set_num_threads(cores if on_gpu else 1)  # tiny networks, there
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    try:
        verdict = part.check(Bench(device, cores, folder, print, ROUNDS))
    except Exception as error:
        traceback.print_exc()
        verdict = Verdict("fail", f"{type(error).__name__}: {one_line(error)}")
    sys.stdout.flush()
    answer.send(verdict)
    os._exit(0)  # a broken GPU can hold up an orderly end


class Acceptance:
    """What is done and what isn't yet, the file that says it, and the exit status."""

    def __init__(self, parts: Sequence[Part], budget: float, file: Path | None) -> None:
        self._waiting, self._running = list(parts), list[Running]()
        self._file = file
        self._began, self._budget = time.monotonic(), budget
        self._on_gpu, self._at_once = False, 1
        self._done: list[dict[str, Any]] = []
        machine = about(Bench(torch.device("cpu"), usable_cpus(), Path(), print))
        command = shlex.join(["python", "-m", "tests.gpu.accept", *sys.argv[1:]])
        self._about: dict[str, Any] = {"command": command, **machine}

    def run(self) -> int:
        """The exit status. Raises OSError where the file can't be written."""
        self._write()
        with tempfile.TemporaryDirectory(prefix="fusionrun-accept-") as scratch:
            try:
                while self._waiting or self._running:
                    self._begin(Path(scratch))
                    wait([each.answer for each in self._running], timeout=0.5)
                    for each in tuple(self._running):
                        if verdict := each.verdict():
                            self._running.remove(each)
                            self._note(each.part, verdict, each.seconds)
            finally:
                for each in self._running:
                    each.end()
        states = [part["state"] for part in self._done]
        counts = {state: states.count(state) for state in ("pass", "missed", "fail", "skipped")}
        words = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        print(f"{plural(len(states), 'part')}: {words} ({self._elapsed:.0f} s)", flush=True)
        return 1 if counts["fail"] else 3 if counts["missed"] or counts["skipped"] else 0

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _begin(self, scratch: Path) -> None:
        """Start what may run now; what can't at all is noted."""
        while self._waiting:
            part, left = self._waiting[0], self._budget - self._elapsed
            if self._running and (
                part.alone
                or len(self._running) >= self._at_once
                or any(each.part.alone for each in self._running)
            ):
                return
            self._waiting.pop(0)
            if part.needs_gpu and not self._on_gpu:
                self._note(part, NO_GPU, 0.0)
            elif left < part.seconds:
                self._note(part, NO_TIME, 0.0)
            else:
                folder = scratch / str(len(self._waiting))
                limit = min(left, PATIENCE * part.seconds)
                self._running.append(Running(part, self._on_gpu, folder, limit))

    def _note(self, part: Part, verdict: Verdict, seconds: float) -> None:
        if "cuda" in verdict.figures:  # the first part has looked
            self._on_gpu, memory = True, verdict.figures["memory_bytes"]
            self._about["machine"] |= {"gpu": verdict.figures["name"]}
            self._at_once = max(1, int(min(usable_cpus() // CORES, memory / 2**30 // GIB)))
        self._done.append({"name": part.name, "seconds": round(seconds, 1), **verdict.to_json()})
        line = f"{verdict.state:8} {part.name:26} {seconds:5.0f} s  {verdict.text}"
        print(line, flush=True)
        self._write()

    def _write(self) -> None:
        if self._file is not None:
            left = [part.name for part in self._waiting] + [r.part.name for r in self._running]
            tree = {**self._about, "seconds": round(self._elapsed, 1), "not_done": left}
            write_json(self._file, {**tree, "parts": self._done})


def parser() -> argparse.ArgumentParser:
    """What the acceptance can be asked."""
    names = "\n".join(f"  {part.name:26} {part.seconds:4} s" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.accept",
        description=f"{__doc__}\nparts, and the seconds that must be left for each:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=float, default=560, help="seconds in all (default 560)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store what was found there, too")
    parser.add_argument(
        "--only",
        action="append",
        metavar="PART",
        choices=[part.name for part in PARTS[1:]],
        help="this part after the first, which looks at the GPU; can be repeated",
    )
    return parser


def main() -> int:
    """Accept what the command line asks for."""
    options = parser().parse_args()
    first, *others = PARTS
    wanted = [part for part in others if options.only is None or part.name in options.only]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception: it ends the parts
    acceptance = Acceptance([first, *wanted], options.budget, options.json)
    try:
        return acceptance.run()
    except OSError as error:
        print(f"python -m tests.gpu.accept: {problem_of(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # not waiting for such a one
