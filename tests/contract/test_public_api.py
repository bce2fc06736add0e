"""The names that people import, and that a release may not lose."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import fusionrun
from tests.tiny import environment

NAMES = {
    "Arrays",
    "CheckpointError",
    "DataError",
    "Expert",
    "FusionModel",
    "FusionModule",
    "FusionOutput",
    "LaunchError",
    "OpenStudy",
    "RecipeError",
    "Request",
    "TaskError",
    "__version__",
    "as_arrays",
    "build_expert",
    "build_fusion",
    "evaluate",
    "load_dataset",
    "load_expert",
    "load_model",
    "open_study",
    "train",
}


def test_the_public_names() -> None:
    assert set(fusionrun.__all__) == NAMES == set(dir(fusionrun))
    assert len(fusionrun.__all__) == len(NAMES)
    everything: dict[str, object] = {}
    exec("from fusionrun import *", everything)  # as a notebook may
    assert set(everything) >= NAMES
    assert not hasattr(fusionrun, "no_such_name")


def test_each_says_what_it_is_and_is_what_its_home_has() -> None:
    for module, names in fusionrun.HOMES.items():
        for name in names:
            found = getattr(fusionrun, name)
            assert found is getattr(import_module(module), name)
            assert inspect.getdoc(found), name
    for name in dir(fusionrun.OpenStudy):
        if not name.startswith("_"):
            assert inspect.getdoc(getattr(fusionrun.OpenStudy, name)), name
    assert inspect.getdoc(fusionrun.FusionModel.predict)


def test_only_what_is_named_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys, fusionrun; print(fusionrun.__version__, 'torch' in sys.modules, "
        "'numpy' in sys.modules); from fusionrun import load_model; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == f"{fusionrun.__version__} False False\nTrue\n", done.stderr


def test_type_checkers_see_the_same_names() -> None:
    """`if TYPE_CHECKING` repeats the table: it must not differ."""
    tree = ast.parse(Path(fusionrun.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    found = {
        node.module: {alias.name for alias in node.names}
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert found == {module: set(names) for module, names in fusionrun.HOMES.items()}
