"""What people and scripts rely on, written down: `python -m tests.contract.golden` does it again.

Every verb's --help, and of a tiny study, from training to report: the tree of its files, the
columns of its tables and the keys of its JSON files. Names, not numbers; and the live table as it
is drawn. A change here is a change for users and belongs into CHANGELOG.md.
"""

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.tiny import ROOT, environment
from tests.unit.monitor.test_table import drawn, launches

GOLDEN = Path(__file__).with_name("golden")
VERBS = sorted(
    p.stem for p in (ROOT / "fusionrun/commands").glob("[a-z]*.py") if p.stem != "options"
)

RECIPE = """
output_dir: out
rows:
  - {model: resnet, fusion: multiplicativeAddition}
  - {model: resnet, fusion: concatenation}
controls: [frozen]
data:
  {name: synthetic, num_classes: 4, train_images: 160, test_images: 32, image_size: 16,
   val_fraction: 0.25}
models:
  resnet: {width: 2, blocks: [1]}
experts: {count: 2, epochs: 2, batch_size: 16}
fusion: {epochs: 3, batch_size: 8}
runtime: {device: cpu, threads: 1}
checkpoint: {every_epochs: 1}
status: {every_seconds: 0.2}
logs: {tensorboard: false}
"""
COMMANDS = (
    "train tiny.yaml",
    "evaluate out",
    "robustness out --images 16",
    "report out",
    "preview out --seeds 1 --epochs 2",
)
RUN = """
import shlex, sys
from fusionrun.cli import main
for command in sys.argv[1:]:
    assert main(shlex.split(command)) == 0, command
"""
HELP = """
import sys
from fusionrun.cli import main
for verb in sys.argv[1:]:
    print(f"== {verb}")
    main([*([] if verb == "all" else [verb]), "--help"])
"""


def helps() -> dict[str, str]:
    """{golden file: what --help says}, on a terminal of 100 columns."""
    text = python(HELP, "all", *VERBS, cwd=ROOT)
    parts = [part.split("\n", 1) for part in text.split("== ")[1:]]
    return {f"help-{verb}.txt": said for verb, said in parts}


def pictures() -> dict[str, str]:
    """{golden file: the live table of launches in every state}, by width."""
    shown = launches()
    return {
        f"screen-{width}.txt": text(
            line for name in shown for line in ("", f"== {name}", *drawn(shown[name], width))
        )
        for width in (80, 120, 160)
    }


def outputs(folder: Path) -> dict[str, str]:
    """{golden file: its lines} of the tiny study, which is made in `folder`."""
    (folder / "tiny.yaml").write_text(RECIPE)
    python(RUN, *COMMANDS, cwd=folder)
    return described(folder / "out")


def described(out: Path) -> dict[str, str]:
    """{golden file: its lines} of a finished study at `out`."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    names = [str(path.relative_to(out)) for path in files]
    # what begins with a dot is fusionrun's own bookkeeping
    lines = {"tree.txt": [name for name in names if not f"/{name}".count("/.")]}
    tables = [path for path in files if path.suffix == ".csv"]
    lines["columns.txt"] = [
        f"{path.relative_to(out)}: {','.join(next(csv.reader(path.open(newline=''))))}"
        for path in tables
    ]
    for name in ("evaluation", "robustness", "preview", "status", "splits/split_meta"):
        tree = json.loads((out / f"{name}.json").read_text())
        lines[f"{Path(name).name}.json.txt"] = sorted(set(keys(tree)))
    for row in ("concatenation", "concatenation-frozen"):
        manifest = json.loads((out / f"resnet_fusions/{row}/manifest.json").read_text())
        lines[f"manifest-{row}.json.txt"] = sorted(set(keys(manifest)))
    return {name: text(found) for name, found in lines.items()}


def text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def keys(tree: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of all values; [] stands for every item of a list."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from keys(value, f"{path}.{key}" if path else key)
    elif isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree):
        for item in tree:
            yield from keys(item, f"{path}[]")
    else:
        yield path


def python(program: str, *arguments: str, cwd: Path) -> str:
    """What a program says on a terminal of 100 columns without colours."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env=environment(COLUMNS="100", NO_COLOR="1"),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = helps() | pictures() | outputs(Path(folder))
    for path in GOLDEN.glob("*.txt"):
        path.unlink()
    for name, content in made.items():
        (GOLDEN / name).write_text(content)


if __name__ == "__main__":
    main()
