#!/usr/bin/env bash
# Sets up what the tests need, then ruff, mypy and pytest. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

# Is everything there that pyproject.toml names for development? Looks without importing.
has_tools() {
  "$1" - <<'PYTHON' 2>/dev/null
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
    name = re.split("[=>]", requirement)[0]
    if name != "hatchling":  # where it is missing, pip fetches it to build the package
        version(name)
PYTHON
}

PYTHON=${PYTHON:-python3}
if ! has_tools "$PYTHON"; then
  if ! has_tools .venv/bin/python; then
    echo "tests/run.sh: setting up .venv from pyproject.toml (once; some minutes)"
    "$PYTHON" -m venv .venv
    PYTHONPATH=$PWD .venv/bin/python -m fusionrun.launch.set_up --quiet --editable ".[dev]"
  fi
  PYTHON=$PWD/.venv/bin/python
fi
export PYTHON PYTHONPATH="$PWD"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest "$@"
