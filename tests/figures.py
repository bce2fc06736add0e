"""Makes the figures of README, docs and recipe headers again: `python -m tests.figures`.

    python -m tests.figures demo                          some minutes
    python -m tests.figures cifar10_images --data FOLDER  the same; train/<class>/*, test/...
    python -m tests.figures fusion_types --study FOLDER   ten; trained as docs/evaluation.md says
    python -m tests.figures chaos bench                   five and ten minutes
    python -m tests.figures --check demo                  trains, compares, writes nothing
    python -m tests.figures --data FOLDER --study FOLDER  all of them

Each trains or measures as a user would and keeps what came out in tests/measured/NAME.json
(benchmarks in tests/bench), from which `python -m tests.generated_docs` writes the documents. Time
is measured, so nothing else should run meanwhile.

--check fails where the recorded accuracies are not what this code gives. On another kind of CPU
sums differ in their last bits, and training makes of them what another seed would. Over four seeds
a row's fused accuracy has a standard deviation of 3.7 points and their mean over the rows one of
2.0, so two runs may differ by 15 and 8 points (three standard deviations of a difference). With
--exact, for the kind of machine and the torch that the record names, not at all.
"""

import argparse
import csv
import dataclasses
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group

from fusionrun.common.atomic_files import write_json
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.evaluation.preview_results import ModelPreview, Preview
from fusionrun.evaluation.schema import Evaluation
from fusionrun.monitor.snapshot import Snapshot
from fusionrun.monitor.table import table
from fusionrun.study.recipe_yaml import load_recipe
from tests import generated_docs
from tests.measured import (
    COLUMNS,
    CONTROLS,
    FOLDER,
    Accuracies,
    Control,
    FusionTypes,
    Record,
    read,
    results,
)
from tests.tiny import ROOT, environment

RANKS = 4
ONE_THREAD = ("runtime.device=cpu", "runtime.threads=1")
TEXT = ("model", "fusion_type")
WIDTH = 120  # columns of the live table's picture
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ROW_TOLERANCE = 15.0
MEAN_TOLERANCE = 8.0


# -- measuring ---------------------------------------------------------------------------------


def measure(recipe: Path, words: Sequence[str], folder: Path) -> tuple[Record, Snapshot | None]:
    """Train a recipe as its header says, below `folder`; also the live table on its way."""
    seconds, snapshot = launch(recipe, words, folder)
    record = Record(
        recipe=f"configs/{recipe.name}",
        **machine(),
        seconds=round(seconds, 1),
        rows=accuracies(output_dir(recipe, folder)),
        test_images=load_recipe(recipe).data.test_images or 0,
    )
    return record, snapshot


def launch(recipe: Path, words: Sequence[str], folder: Path) -> tuple[float, Snapshot | None]:
    """(seconds of `bash launch.sh`, its most telling table). Raises RuntimeError if it fails."""
    (folder / "configs").mkdir(exist_ok=True)
    shutil.copy(recipe, folder / "configs")
    command = ["bash", str(ROOT / "launch.sh"), f"configs/{recipe.name}", *ONE_THREAD, *words]
    snapshot: Snapshot | None = None
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(PYTHON=sys.executable, RANKS=str(RANKS)),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            time.sleep(0.5)
            snapshot = more_telling(snapshot, output_dir(recipe, folder) / "status.json")
        seconds = time.monotonic() - start
        output.seek(0)
        if process.returncode != 0:
            raise RuntimeError(output.read().decode()[-4000:])
    return seconds, snapshot


def output_dir(recipe: Path, folder: Path) -> Path:
    return folder / load_recipe(recipe).output_dir


def more_telling(best: Snapshot | None, path: Path) -> Snapshot | None:
    """The earlier of two that show rows in as many states: a launch on its way."""

    def variety(snapshot: Snapshot) -> int:
        return len({t.state for t in snapshot.tasks if t.kind == "row"} & {"running", "done"})

    try:
        now = read_json(path, Snapshot)
    except (OSError, ValueError):
        return best
    return now if best is None or variety(now) > variety(best) else best


def accuracies(out: Path) -> tuple[Accuracies, ...]:
    """Of the rows that are no controls."""
    names = [field.name for field in dataclasses.fields(Accuracies)]
    with (out / "results.csv").open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if not row["fusion_type"].endswith(tuple(CONTROLS))
        ]
    return tuple(
        Accuracies(**{n: row[n] if n in TEXT else float(row[n]) for n in names})  # type: ignore[arg-type]
        for row in rows
    )


def controls(evaluation: Evaluation) -> tuple[Control, ...]:
    """Of every row that has any."""
    return tuple(
        Control(
            model=row.model,
            fusion_type=row.fusion,
            seed=row.seed,
            control=method.key,
            fused=row.fused.top1,
            accuracy=method.top1,
            low=method.difference.low,
            high=method.difference.high,
        )
        for row in evaluation.in_question
        for method in row.methods
        if method.key in CONTROLS and method.difference is not None
    )


def machine() -> dict[str, Any]:
    """On what a figure was measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    return {
        "processor": next(names, platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "torch": version("torch").partition("+")[0],
    }


def fusionrun(*words: str | Path, cwd: Path) -> None:
    """A verb as a user types it; raises CalledProcessError."""
    command = [sys.executable, "-m", "fusionrun", *map(str, words)]
    subprocess.run(command, cwd=cwd, env=environment(), check=True, stdout=subprocess.DEVNULL)


# -- what is made ------------------------------------------------------------------------------


def make_demo(options: argparse.Namespace) -> None:
    """configs/demo.yaml, and the picture of the live table."""
    recipe = ROOT / "configs/demo.yaml"
    with tempfile.TemporaryDirectory() as name:
        record, snapshot = measure(recipe, (), Path(name))
    write_json(FOLDER / "demo.json", plain(record))
    if snapshot is not None:
        (ROOT / "docs/live.svg").write_text(picture(snapshot))


def make_cifar10_images(options: argparse.Namespace) -> None:
    """configs/cifar10_images.yaml."""
    with tempfile.TemporaryDirectory() as name:
        words = [f"data.root={options.data.resolve()}", f"data.cache_dir={name}/cache"]
        record, _ = measure(ROOT / "configs/cifar10_images.yaml", words, Path(name))
    write_json(FOLDER / "cifar10_images.json", plain(record))


def make_fusion_types(options: argparse.Namespace) -> None:
    """What a study of all fusion types says, and the picture of its report's first page."""
    study = options.study.resolve()
    for verb in ("evaluate", "preview", "report"):
        fusionrun(verb, study, cwd=ROOT)
    evaluation = read_json(study / "evaluation.json", Evaluation)
    preview = read_json(study / "preview.json", Preview)
    record = FusionTypes(
        **machine(),
        test_images=evaluation.data.test_images,
        val_images=evaluation.data.val_images,
        types=evaluation.fusion_types,
        controls=controls(evaluation),
        frozen=tuple(model for model in preview.models if isinstance(model, ModelPreview)),
    )
    write_json(FOLDER / "fusion_types.json", plain(record))
    photograph(study / "report.html", ROOT / "docs/report.png")


def make_chaos(options: argparse.Namespace) -> None:
    """How many kills a study survives."""
    command = [sys.executable, "-m", "tests.chaos", "--kills", "50", "--seed", "100"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True
    )
    *_, counted, _ = done.stdout.splitlines()
    found = re.search(r"(\d+) launches, (\d+) s$", done.stdout.strip())
    assert found is not None, done.stdout
    counts = {**json.loads(counted), "launches": int(found[1]), "seconds": int(found[2])}
    write_json(FOLDER / "chaos.json", {**machine(), **counts})


def make_bench(options: argparse.Namespace) -> None:
    """The speeds, and what another run of the same makes of them."""
    runs = [
        ("cpu.json",),
        ("cpu_again.json",),
        ("cpu_layout.json", "--only", "layout", "--rounds", "5"),
    ]
    if options.peers_python:
        python = str(options.peers_python.absolute())
        runs.append(("cpu_peers.json", "--only", "peers", "--peers-python", python))
    for file, *words in runs:
        command = [sys.executable, "-m", "tests.bench", "--json", f"tests/bench/{file}"]
        subprocess.run([*command, *words], cwd=ROOT, check=True)  # with all of torch's threads


def picture(snapshot: Snapshot) -> str:
    """The live table as SVG."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Group(*table(snapshot, WIDTH)))
    return console.export_svg(title="bash launch.sh", unique_id="live")


def photograph(page: Path, target: Path) -> None:
    """The top of a page as a browser shows it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"{target.name} is as it was: found none of {', '.join(BROWSERS)}")
        return
    flags = ("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,1250")
    command = [browser, *flags, f"--screenshot={target}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=100)


# -- comparing ---------------------------------------------------------------------------------


def differences(recorded: Record, found: Record, *, exact: bool = False) -> list[str]:
    """What of the recorded accuracies this code doesn't give, beyond the tolerances."""
    told = [(row.model, row.fusion_type) for row in recorded.rows]
    now = [(row.model, row.fusion_type) for row in found.rows]
    if told != now:
        return [f"rows: recorded {told}, found {now}"]
    row_tolerance, mean_tolerance = (0.0, 0.0) if exact else (ROW_TOLERANCE, MEAN_TOLERANCE)
    problems = []
    for column in ("fused", "mean_logits", "before_mean_logits"):
        pairs = [
            (getattr(old, column), getattr(new, column))
            for old, new in zip(recorded.rows, found.rows, strict=True)
        ]
        means = fmean(old for old, _ in pairs), fmean(new for _, new in pairs)
        names = [f"{model} {fusion}" for model, fusion in told]
        allowed = [row_tolerance] * len(names) + [mean_tolerance]
        for name, (old, new), most in zip([*names, "mean"], [*pairs, means], allowed, strict=True):
            if abs(round(new, 2) - round(old, 2)) > most:
                problems.append(
                    f"{name}, {COLUMNS[column]}: recorded {old:.2f}, found {new:.2f}, expected "
                    f"within {most:g} points"
                )
    return problems


def check(names: Sequence[str], data: Path | None, *, exact: bool = False) -> int:
    """Train again and compare; the exit status."""
    failed = False
    for name in names:
        recorded = read(name)
        if recorded is None:
            raise SystemExit(f"{name}: nothing is recorded; measure it first, without --check")
        words = [] if data is None else [f"data.root={data.resolve()}"]
        with tempfile.TemporaryDirectory() as folder:
            if data is not None:
                words.append(f"data.cache_dir={folder}/cache")
            found, _ = measure(ROOT / recorded.recipe, words, Path(folder))
        problems = differences(recorded, found, exact=exact)
        print(results(found))
        print("\n".join(problems) or f"{name}: as recorded on {recorded.processor}")
        failed |= bool(problems)
    return int(failed)


RECIPES = ("demo", "cifar10_images")
MAKERS = {
    "demo": make_demo,
    "cifar10_images": make_cifar10_images,
    "fusion_types": make_fusion_types,
    "chaos": make_chaos,
    "bench": make_bench,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(MAKERS)}")
    parser.add_argument("--check", action="store_true", help="compare; write nothing")
    parser.add_argument("--exact", action="store_true", help="with --check: to the last digit")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="images for cifar10_images")
    parser.add_argument(
        "--study", type=Path, metavar="FOLDER", help="for fusion_types: the study, trained"
    )
    parser.add_argument(
        "--peers-python", type=Path, metavar="FILE", help="for bench to measure its peers, too"
    )
    options = parser.parse_args()
    names = options.names or list(MAKERS)
    known = RECIPES if options.check else MAKERS
    if unknown := [name for name in names if name not in known]:
        parser.error(f"found {', '.join(unknown)}, expected some of: {', '.join(known)}")
    if "cifar10_images" in names and options.data is None:
        parser.error("cifar10_images needs --data FOLDER with train/<class>/* and test/<class>/*")
    if "fusion_types" in names and options.study is None:
        parser.error("fusion_types needs --study FOLDER, trained as docs/evaluation.md says")
    if options.check:
        return check(names, options.data, exact=options.exact)
    for name in names:
        MAKERS[name](options)

    generated_docs.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
