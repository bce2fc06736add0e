"""Kill a running study at random until it ends all the same.

    python -m tests.chaos --kills 50 --seed 1

Workers, now and then torchrun itself or the whole process tree die by SIGKILL at random moments;
whenever the launch ends unfinished, the same command is given again. The result must equal that of
a launch nobody disturbed: weights bit for bit, every CSV number.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.tiny import ROOT, csv_numbers, environment, launch_sh, row_weights, write_recipe

EPOCHS = ["experts.epochs=4", "fusion.epochs=12", "checkpoint.every_epochs=2"]
QUIET = ["logs.tensorboard=false"]  # its import takes longer than this study's training


@dataclass
class Chaos:
    """One study under fire."""

    folder: Path
    seed: int
    kills: int
    seconds: tuple[float, float] = (0.5, 6.0)  # between two kills
    words: tuple[str, ...] = (*EPOCHS, *QUIET)
    done: dict[str, int] = field(default_factory=lambda: {"worker": 0, "agent": 0, "tree": 0})
    launches: int = 0

    def run(self, patience: float) -> None:
        """Launch, kill, launch again, until it's done. Raises TimeoutError after `patience` s."""
        chance = random.Random(self.seed)
        deadline = time.monotonic() + patience
        code = None
        while code != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {patience:.0f} s and {self.done} kills")
            self.launches += 1
            launch = self._launch()
            self._disturb(launch, chance, deadline)
            code = launch.wait(timeout=max(1.0, deadline - time.monotonic()))
            if code not in (0, 4, -signal.SIGKILL):
                raise RuntimeError(f"exit status {code}:\n{self._output()}")

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                ["bash", str(ROOT / "launch.sh"), "tiny.yaml", *self.words],
                cwd=self.folder,
                env=environment(PYTHON=sys.executable, MAX_RESTARTS="100"),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _disturb(
        self, launch: subprocess.Popen[bytes], chance: random.Random, deadline: float
    ) -> None:
        while sum(self.done.values()) < self.kills and launch.poll() is None:
            wait = time.monotonic() + chance.uniform(*self.seconds)
            while time.monotonic() < min(wait, deadline) and launch.poll() is None:
                time.sleep(0.05)
            if time.monotonic() > deadline:
                return
            what = chance.choices(["worker", "agent", "tree"], weights=[8, 1, 1])[0]
            if self._kill(what, launch, chance):
                self.done[what] += 1

    def _kill(self, what: str, launch: subprocess.Popen[bytes], chance: random.Random) -> bool:
        """Whether somebody died."""
        family = descendants(launch.pid)
        lines = {pid: command_line(pid) for pid in family}
        # torchrun's own command line ends with its workers'
        agents = [pid for pid, line in lines.items() if "-m fusionrun.launch.torchrun" in line]
        workers = [
            pid for pid, line in lines.items() if "-m fusionrun" in line and pid not in agents
        ]
        victims = {
            "worker": [chance.choice(workers)] if workers else [],
            "agent": agents,
            "tree": [launch.pid, *family],
        }[what]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                victims = [other for other in victims if other != pid]
        return bool(victims)

    def _output(self) -> str:
        return "\n".join((self.folder / "output.txt").read_text().splitlines()[-40:])


def listeners(pids: Iterable[int]) -> Iterator[str]:
    """The addresses on which processes listen for TCP connections."""
    owned = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it may just have gone
            for path in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    owned.add(path.readlink().name)
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        path = Path("/proc/net") / name
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *others = line.split()
            if state == "0A" and f"socket:[{others[5]}]" in owned:
                address, port = local.split(":")
                words = struct.unpack(f"<{len(address) // 8}I", bytes.fromhex(address))
                packed = struct.pack(f">{len(words)}I", *words)
                yield f"{socket.inet_ntop(family, packed)}:{int(port, 16)}"


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, also those that began sessions of their own."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def undisturbed(folder: Path) -> tuple[dict[str, str], dict[str, list[list[str]]]]:
    """(weights, CSV numbers) of the study when nobody interferes."""
    folder.mkdir(parents=True)
    done = launch_sh(write_recipe(folder), *EPOCHS, *QUIET, cwd=folder)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return row_weights(folder), csv_numbers(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-study", type=int, default=10, help="kills of one study")
    options = parser.parse_args()
    started, killed, launches, studies = time.monotonic(), 0, 0, 0
    total = {"worker": 0, "agent": 0, "tree": 0}
    with tempfile.TemporaryDirectory() as name:
        expected = undisturbed(Path(name) / "undisturbed")
        while killed < options.kills:
            folder = Path(name) / str(studies)
            folder.mkdir()
            write_recipe(folder)
            chaos = Chaos(folder, options.seed + studies, options.per_study)
            chaos.run(patience=1800)
            if (row_weights(folder), csv_numbers(folder)) != expected:
                print(f"study {studies} (seed {chaos.seed}) ended differently")
                return 1
            studies += 1
            launches += chaos.launches
            killed += sum(chaos.done.values())
            total = {what: total[what] + chaos.done[what] for what in total}
            print(json.dumps({"studies": studies, "kills": killed, **total}), flush=True)
    seconds = time.monotonic() - started
    print(f"{studies} studies equal after {killed} kills, {launches} launches, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
