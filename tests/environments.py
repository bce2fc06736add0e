"""Both ends of what pyproject.toml allows, for real: `python -m tests.environments [END ...]`.

Builds the lowest and the newest environment in temporary folders, in turn, and runs the process
tests and those of the extras in each; some minutes and 6 GB an end. The interpreter that runs this
makes them, so start it with the oldest Python for `lowest` (python3.11) and with the newest for
`newest`. The exit status is 0 when both ends passed.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENDS = ("lowest", "newest")
EXTRAS = ("onnx", "timm", "safetensors")
TESTS = [
    *(f"tests/integration/test_{name}.py" for name in ("launch", "faults", "install")),
    *(f"tests/unit/components/test_{name}.py" for name in ("export", "read_checkpoint")),
    "tests/contract/test_saved_models.py",
]


def wanted(end: str) -> list[str]:
    """What to install: the package's requirements and extras at that end, the tests' tools."""
    extras = PROJECT["optional-dependencies"]
    requirements = [*PROJECT["dependencies"], *(each for name in EXTRAS for each in extras[name])]
    if end == "lowest":
        lowest = [requirement.split(",")[0] for requirement in requirements]
        requirements = [requirement.replace(">=", "==") for requirement in lowest]
    tools = ("pytest==", "hatchling==")
    return requirements + [tool for tool in extras["dev"] if tool.startswith(tools)]


def passes(end: str) -> bool:
    """Whether the process tests pass in a new environment at that end."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin/python"
        subprocess.check_call([sys.executable, "-m", "venv", folder])
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.check_call([*pip, "install", "--quiet", *wanted(end)])
        print(f"{end}, Python {sys.version.split()[0]}:", flush=True)
        subprocess.check_call([*pip, "freeze"])
        environment = {**os.environ, "PYTHON": str(python), "PYTHONPATH": str(ROOT)}
        return subprocess.call([python, "-m", "pytest", *TESTS], cwd=ROOT, env=environment) == 0


if __name__ == "__main__":
    ends = sys.argv[1:] or ENDS
    if not set(ends) <= set(ENDS):
        sys.exit(f"tests.environments: found {' '.join(ends)}, expected one of: {', '.join(ENDS)}")
    passed = {end: passes(end) for end in ends}
    print(*(f"{end}: {'passed' if good else 'FAILED'}" for end, good in passed.items()), sep="\n")
    sys.exit(not all(passed.values()))
