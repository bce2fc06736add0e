#!/usr/bin/env bash
# Sets up what the tests need, then ruff, mypy and pytest. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

has_requirements() {
  "$1" - <<'PYTHON' 2>/dev/null
import sys
from importlib.util import find_spec
needed = ("torch", "torchvision", "numpy", "tensorboard", "yaml", "rich")
tools = ("pytest", "hypothesis", "ruff", "mypy", "wandb", "scipy", "sklearn", "torchmetrics")
sys.exit(0 if sys.version_info >= (3, 11) and all(map(find_spec, needed + tools)) else 1)
PYTHON
}

PYTHON=${PYTHON:-python3}
if ! has_requirements "$PYTHON"; then
  if ! has_requirements .venv/bin/python; then
    echo "tests/run.sh: setting up .venv from tests/requirements.txt (once; some minutes)"
    "$PYTHON" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
  fi
  PYTHON=$PWD/.venv/bin/python
fi
export PYTHON PYTHONPATH="$PWD"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest "$@"
