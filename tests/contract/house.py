"""The house in numbers: `python -m tests.contract.house` prints them.

Read from the package's own code, but for the frames from `__main__` to a model's forward, which a
tiny row is trained for.
"""

import ast
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.tiny import ROOT, TINY, environment

PACKAGE = ROOT / "fusionrun"
PLAIN_ROW = "rows=[{model: resnet, fusion: concatenation}]"

FRAMES = """
import sys
from fusionrun.fusions.model import FusionModel
import fusionrun.cli

def depth(frame):
    own = 0
    while frame is not None:
        own += "/fusionrun/" in frame.f_code.co_filename
        frame = frame.f_back
    return own + 1  # `__main__`, in whose place this program stands

healthy = FusionModel.forward
def forward(self, images):
    if self.training:
        print("frames", depth(sys._getframe()) + 1, flush=True)
        FusionModel.forward = healthy
    return healthy(self, images)
FusionModel.forward = forward
fusionrun.cli.main(sys.argv[1:])
"""


@dataclass(frozen=True)
class House:
    """What is measured; functions are all `def`s, methods and inner ones too."""

    lines: int
    files: int
    longest_file: tuple[int, str]
    longest_function: tuple[int, str]
    functions: int
    private: int  # whose name begins with one underscore
    private_used_once: int  # of those, called or named once in their own file
    most_own_names: tuple[int, str]  # names of the package that one file imports
    rooms: int  # folders and files directly below the package
    arrows: int  # between two rooms, in either direction


def measure() -> House:
    """Of the package as it stands."""
    files = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in files.items()}
    functions = [
        (path, node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    private = [(path, node) for path, node in functions if is_private(node.name)]
    uses = {path: Counter(names_used(tree)) for path, tree in trees.items()}
    return House(
        lines=sum(text.count("\n") for text in files.values()),
        files=len(files),
        longest_file=max((text.count("\n"), short(path)) for path, text in files.items()),
        longest_function=max((length(node), f"{short(p)}:{node.name}") for p, node in functions),
        functions=len(functions),
        private=len(private),
        private_used_once=sum(uses[path][node.name] == 1 for path, node in private),
        most_own_names=max((own_names(tree), short(path)) for path, tree in trees.items()),
        rooms=len({room(path) for path in files}),
        arrows=len({arrow for path, tree in trees.items() for arrow in arrows(path, tree)}),
    )


def frames() -> int:
    """Of the package's own code, from `__main__` to a fusion model's forward, both counted."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tiny.yaml").write_text(TINY)
        done = subprocess.run(
            [sys.executable, "-c", FRAMES, "train", "tiny.yaml", PLAIN_ROW],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=100,
        )
    (found,) = [line for line in done.stdout.splitlines() if line.startswith("frames ")]
    return int(found.split()[1])


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def short(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def names_used(tree: ast.Module) -> list[str]:
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)] + [
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    ]


def own_names(tree: ast.Module) -> int:
    """Names of the package that a file imports, in functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_own(node):
            found |= {(node.module, alias.name) for alias in node.names}
    return len(found)


def is_own(node: ast.ImportFrom) -> bool:
    return node.level > 0 or (node.module or "").split(".")[0] == "fusionrun"


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def arrows(path: Path, tree: ast.Module) -> set[tuple[str, str]]:
    """(this file's room, the room it imports from)."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and is_own(node):
            parts = (node.module or "").split(".")[1:]
            below = [parts[0]] if parts else [alias.name for alias in node.names]
            found |= {(room(path), other) for other in below if (PACKAGE / other).is_dir()}
            found |= {(room(path), o) for o in below if (PACKAGE / f"{o}.py").is_file()}
    return {(here, there) for here, there in found if here != there}


def table(house: House, depth: int) -> str:
    """The figures as lines."""
    part = 100 / house.functions
    lines = {
        "lines / files": f"{house.lines} / {house.files}",
        "longest file": "{} ({})".format(*house.longest_file),
        "longest function": "{} ({})".format(*house.longest_function),
        "private functions": f"{house.private * part:.1f} % of {house.functions}",
        "private and used once": f"{house.private_used_once * part:.1f} %",
        "own names imported by one file": "{} ({})".format(*house.most_own_names),
        "rooms / arrows": f"{house.rooms} / {house.arrows}",
        "frames from __main__ to the model": str(depth),
    }
    return "\n".join(f"{name:36}{value}" for name, value in lines.items())


if __name__ == "__main__":
    print(table(measure(), frames()))
