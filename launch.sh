#!/usr/bin/env bash
# Trains a whole study in one launch: sets up Python once, then starts one torchrun.
#
#   bash launch.sh [RECIPE] [key=value ...]        default recipe: configs/demo.yaml
#   sbatch launch.sh RECIPE [key=value ...]        the same on a Slurm cluster
#
# Environment: RANKS  processes per node (default 4; they share GPUs when there are fewer)
#              PYTHON the interpreter to use (default python3, then .venv)
# Exit status: 0 all rows done, 1 could not start, 2 wrong recipe or command line,
#              3 some row failed, 4 stopped before the end (run it again to go on)
#
#SBATCH --job-name=fusionrun
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --output=fusionrun-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

# Under sbatch this script is a copy in Slurm's spool, so its own folder isn't the project's.
find_root() {
  local candidate
  for candidate in "${FUSIONRUN_ROOT:-}" "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" \
    "${SLURM_SUBMIT_DIR:-}" "$PWD"; do
    if [[ -n $candidate && -f $candidate/fusionrun/__main__.py ]]; then
      readlink -f "$candidate"
      return
    fi
  done
  echo "launch.sh: can't find fusionrun; submit from its folder or set FUSIONRUN_ROOT" >&2
  exit 1
}

# Is everything there that requirements.txt names? Looks without importing, which takes seconds.
has_requirements() {
  "$1" - <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import version
from importlib.util import find_spec
needed = ("torch", "torchvision", "numpy", "tensorboard", "yaml", "rich")
enough = sys.version_info >= (3, 11) and all(find_spec(name) for name in needed)
torch = tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2])
sys.exit(0 if enough and torch >= (2, 11) else 1)
PYTHON
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" "$ROOT/.venv/bin/python"; do
    if has_requirements "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  set_up_venv >&2
  echo "$ROOT/.venv/bin/python"
}

set_up_venv() {
  local base=${PYTHON:-python3}
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "launch.sh: $base is $("$base" --version 2>&1), expected Python 3.11 or newer; set PYTHON" >&2
    exit 1
  fi
  echo "launch.sh: setting up $ROOT/.venv from requirements.txt (once; some minutes, about 6 GB)"
  "$base" -m venv "$ROOT/.venv" &&
    "$ROOT/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      -r "$ROOT/requirements.txt" ||
    { echo "launch.sh: the set-up failed; see the lines above" >&2; exit 1; }
}

# One torchrun over RANKS processes; rank 0 keeps the terminal, the others' output goes to files.
start_torchrun() {
  local logs=$EXIT_DIR/torchrun others="" rank
  for ((rank = 1; rank < RANKS; rank++)); do others+="${others:+,}$rank:3"; done
  # The store must not outlive a restart of the workers (pytorch issue 135712).
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  export FUSIONRUN_EXIT_FILE=$EXIT_DIR/status OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} LOGLEVEL=${LOGLEVEL:-ERROR}
  # Its own session: a Ctrl-C reaches this script alone, which forwards it once.
  setsid "$PYTHON" -m torch.distributed.run \
    --nproc-per-node="$RANKS" --max-restarts="${MAX_RESTARTS:-20}" --monitor-interval=0.5 \
    --shutdown-timeout=25 --log-dir="$logs" ${others:+--redirects="$others"} \
    "${RENDEZVOUS[@]}" -m fusionrun train "$@" 2> >(quieten >&2) &
  CHILD=$!
}

# torchrun reports a forwarded stop signal as a traceback of its own; nobody needs that.
quieten() {
  sed -u '/^Traceback (most recent call last):$/,/SignalException/{/SignalException/!d;d}'
}

forward() {
  [[ -n ${STOPPING:-} ]] && return
  STOPPING=1
  kill -TERM "$CHILD" 2>/dev/null || true
}

wait_for_child() {
  # bash returns from `wait` when a trap has run, so wait again until the child is gone
  while kill -0 "$CHILD" 2>/dev/null; do wait "$CHILD" || true; done
}

main() {
  ROOT=$(find_root)
  PYTHON=$(find_python)
  RANKS=${RANKS:-4}
  RENDEZVOUS=(--standalone)
  EXIT_DIR=$(mktemp -d)
  trap 'rm -rf "$EXIT_DIR"' EXIT
  [[ $# -gt 0 && $1 != *=* && $1 != -* ]] || set -- "$ROOT/configs/demo.yaml" "$@"
  start_torchrun "$@"
  trap forward INT TERM HUP USR1
  wait_for_child
  [[ ! -t 1 ]] || printf '\033[?25h' # a killed rank 0 leaves the cursor hidden
  [[ -s $EXIT_DIR/status ]] && exit "$(<"$EXIT_DIR/status")"
  echo "launch.sh: the processes ended without saying how; run the same command to go on" >&2
  exit 4
}

main "$@"
