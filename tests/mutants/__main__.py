"""Make each mistake of the table in a copy of the code, and see its tests fail.

`python -m tests.mutants [NAME ...] [--jobs N]`; all of them take most of an hour on two cores.
First the tests run on the code as it is; then each mutant in a copy of its own, with its own area's
tests alone. Prints a table, and ends with 1 where a mutant survived.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import copy2

from tests.mutants.table import MUTANTS, Mutant
from tests.tiny import ROOT, environment

MINUTES = 15  # that a mutant's tests may take
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Fate:
    """What became of a mutant."""

    mutant: Mutant
    killed_by: str  # a test; "": none
    seconds: float
    output: str  # pytest's


def copy_tree(root: Path, to: Path) -> None:
    """The files that git knows or would add: no environment, study or cache."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.check_output(listed, cwd=root, text=True).split("\0")
    for name in filter(None, names):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            copy2(root / name, to / name)


def run_tests(tree: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Of `tree`, from "tests" on; the first failure ends it."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command,
        cwd=tree,
        # no bytecode: it would be taken for the mutant's, which is as long and as old
        env=environment(
            PYTHONPATH=str(tree), PYTHON=sys.executable, PYTHONDONTWRITEBYTECODE="1", COLUMNS="200"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60 * MINUTES,
    )


def fate_of(mutant: Mutant, tree: Path) -> Fate:
    """Make the mistake in `tree`, run its tests, and put right what was.

    Only a test that fails kills: not one that can't be imported or that never ends.
    """
    path, began = tree / mutant.path, time.monotonic()
    healthy = path.read_text()
    path.write_text(mutant.applied(healthy))
    try:
        done = run_tests(tree, mutant.tests)
        found = FAILED.search(done.stdout)
        killed_by = found[1] if found and done.returncode == 1 else ""
        output = done.stdout
    except subprocess.TimeoutExpired:
        killed_by, output = "", f"not ended after {MINUTES} minutes"
    finally:
        path.write_text(healthy)
    return Fate(mutant, killed_by, time.monotonic() - began, output)


def fates(mutants: Sequence[Mutant], jobs: int, say: Callable[[str], None]) -> list[Fate]:
    """Of all, `jobs` at a time, each in a copy of the tree. Raises ValueError where it's ill."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        trees = [Path(folder) / str(job) for job in range(jobs)]
        for tree in trees:
            copy_tree(ROOT, tree)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        say(f"{len(mutants)} mutants; first their tests on the code as it is ...")
        healthy = run_tests(trees[0], tests)
        if healthy.returncode:
            raise ValueError(f"without any mutant its tests fail:\n{healthy.stdout}")
        free = list(trees)

        def one(mutant: Mutant) -> Fate:
            tree = free.pop()
            fate = fate_of(mutant, tree)
            free.append(tree)
            say(f"{mutant.name}: {fate.killed_by or 'SURVIVED'} ({fate.seconds:.0f} s)")
            return fate

        return list(pool.map(one, mutants))


def table_of(found: Sequence[Fate]) -> str:
    """In Markdown."""
    lines = ["| mutant | what goes wrong | killed by | s |", "|---|---|---|---|"]
    for fate in found:
        killer = fate.killed_by.removeprefix("tests/") or "**nobody**"
        lines.append(
            f"| {fate.mutant.name} | {fate.mutant.wrong} | {killer} | {fate.seconds:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 when all were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the table; all, if none")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    chosen = parser.parse_args(arguments)
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := [name for name in chosen.names if name not in known]:
        parser.error(f"found {', '.join(unknown)}, expected some of: {', '.join(known)}")
    mutants = [known[name] for name in chosen.names] or list(MUTANTS)
    try:
        found = fates(mutants, chosen.jobs, lambda line: print(line, file=sys.stderr, flush=True))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    survivors = [fate for fate in found if not fate.killed_by]
    for fate in survivors:
        print(f"{fate.mutant.name} survived:\n{fate.output}", file=sys.stderr)
    print(table_of(found))
    print(f"\n{len(found) - len(survivors)} of {len(found)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
