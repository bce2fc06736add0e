"""Parts that a user brings: `file.py:name` instead of a name of ours.

Loading one runs the file, as importing it would, once a process.
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

KEY = "fusionrun plugin "  # of their modules, with the file's path
LIBRARIES = ("timm", "torchvision")  # whose networks are named LIBRARY:NAME


def is_backbone(name: object) -> bool:
    """Whether `name` is that of another library's network, such as timm:resnet18."""
    return isinstance(name, str) and name.partition(":")[0] in LIBRARIES and ":" in name


def is_plugin(name: object) -> bool:
    return isinstance(name, str) and ":" in name and not is_backbone(name)


def where_now(source: str, plugins: Iterable[str]) -> str:
    """The one of `plugins` that has this one's name, wherever its file lies by now; or itself."""
    name = source.rpartition(":")[2]
    same = (each for each in plugins if each.rpartition(":")[2] == name)
    return next(same, source) if is_plugin(source) else source


def load_plugin(source: str) -> object:
    """What `source`, such as my_parts.py:Gated, stands for; paths are of the working directory.

    Raises ValueError when there is no such file or name, or the file's own code fails.
    """
    file, _, name = source.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{source!r}: found no file {path}, expected FILE.py:NAME")
    module = sys.modules.get(_key(path)) or _run(path, source)
    if not hasattr(module, name):
        names = sorted(found for found in vars(module) if not found.startswith("_"))
        raise ValueError(f"{source!r}: {file} has no {name!r}, only {', '.join(names)}")
    found: object = getattr(module, name)
    return found


def failure_of(error: Exception) -> str:
    """What failing code of others says, in one line, with the line of the plug-in that led there.

    Errors that are written for people stand without their kind.
    """
    files = {getattr(m, "__file__", None) for key, m in sys.modules.items() if key.startswith(KEY)}
    calls = traceback.extract_tb(error.__traceback__)
    lines = [
        f"{Path(c.filename).name} fails, line {c.lineno}: " for c in calls if c.filename in files
    ]
    said = (str(error).strip() or "no message").splitlines()[0]
    for_people = isinstance(error, (ValueError, RuntimeError)) and str(error).strip()
    return f"{lines[-1] if lines else ''}{'' if for_people else f'{type(error).__name__}: '}{said}"


def source_hash(source: str) -> str:
    """Twelve hex digits over the code of the plug-in's file; comments and blank lines don't count.

    Raises OSError when the file can't be read.
    """
    lines = Path(source.rpartition(":")[0]).expanduser().read_text(encoding="utf-8").splitlines()
    code = [line.rstrip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:12]


def _key(path: Path) -> str:
    return f"{KEY}{path}"


def _run(path: Path, source: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_key(path), path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{source!r}: {path.name} is no Python file, expected FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_key(path)] = module  # as import does: its dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever its author's code does
        problem = failure_of(error)
        del sys.modules[_key(path)]
        raise ValueError(f"{source!r}: {problem}") from None
    return module
