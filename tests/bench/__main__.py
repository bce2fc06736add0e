"""`python -m tests.bench`: the command line of the benchmark."""

import argparse
import os
from pathlib import Path

from rich.console import Console

from fusionrun.common.distributed import choose_device, read_rank_info
from tests.bench import GROUPS, ON_REQUEST
from tests.bench.run import run


def parser() -> argparse.ArgumentParser:
    """What the benchmark can be asked."""
    groups = "\n".join(f"  {name:10} {what}" for name, what in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Every figure is a ratio of two sides that take turns in one run: the median\n"
        "of pairs, with their spread. Takes minutes; nothing else should run meanwhile.\n\n"
        f"groups of measurements (default: all but {' and '.join(sorted(ON_REQUEST))}):\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", action="append", choices=list(GROUPS), help="a group; can be repeated"
    )
    parser.add_argument("--rounds", type=int, default=7, help="pairs to measure (default 7)")
    parser.add_argument(
        "--peers-python",
        type=Path,
        metavar="FILE",
        help="an interpreter with tests/bench/peers/requirements.txt (default: this one)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the figures there, too")
    return parser


def main() -> None:
    """Measure what the command line asks for."""
    options = parser().parse_args()
    if options.rounds < 1:
        parser().error(f"--rounds: found {options.rounds}, expected 1 or more")
    python = options.peers_python
    if python is not None and not os.access(python, os.X_OK):
        parser().error(f"--peers-python: found {python}, expected an interpreter that can be run")
    device = choose_device(read_rank_info(os.environ), "auto")
    run(
        options.only or [],
        Console(),
        rounds=options.rounds,
        json=options.json,
        device=device,
        peers_python=python and python.absolute(),
    )


if __name__ == "__main__":
    main()
