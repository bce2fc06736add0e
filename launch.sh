#!/usr/bin/env bash
# Trains a whole study in one launch: sets up Python once, then starts one torchrun.
#
#   bash launch.sh [RECIPE] [key=value ...]        default recipe: configs/demo.yaml
#   sbatch launch.sh RECIPE [key=value ...]        the same on a Slurm cluster
#
# Environment: RANKS         processes per node (default 4; they share GPUs if there are fewer)
#              PYTHON        the interpreter to use (default: python3, else .venv)
#              MAX_RESTARTS  how often killed processes are started again (default 20)
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

# Under sbatch this script is a copy in Slurm's spool; Slurm knows where it was submitted from.
submitted_script() {
  [[ -n ${SLURM_JOB_ID:-} ]] || return 0
  scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=\(\/[^ ]*\).*/\1/p'
}

find_root() {
  local candidate
  for candidate in "${FUSIONRUN_ROOT:-}" "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" \
    "$(dirname "$(submitted_script)")" "${SLURM_SUBMIT_DIR:-}" "$PWD"; do
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
  if ! set_up_venv >&2; then
    echo "launch.sh: the set-up of .venv failed; see the lines above" >&2
    exit 1
  fi
  echo "$ROOT/.venv/bin/python"
}

set_up_venv() {
  local base=${PYTHON:-python3}
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "launch.sh: $base is $("$base" --version 2>&1), expected Python 3.11 or newer; set PYTHON" >&2
    exit 1
  fi
  echo "launch.sh: setting up $ROOT/.venv from requirements.txt (once; some minutes, about 6 GB)"
  "$base" -m venv "$ROOT/.venv"
  "$ROOT/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r "$ROOT/requirements.txt"
}

# torchrun, but for its warnings and traceback when it was told to stop.
TORCHRUN='
import logging
import sys
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main
logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
try:
    main(sys.argv[1:])
except SignalException:
    sys.exit(1)
'

# One torchrun over RANKS processes; rank 0 keeps the terminal, the others' output goes to files.
start_torchrun() {
  local logs=$EXIT_DIR/torchrun others="" rank
  for ((rank = 1; rank < RANKS; rank++)); do others+="${others:+,}$rank:3"; done
  # The store must not outlive a restart of the workers (pytorch issue 135712).
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  export FUSIONRUN_EXIT_FILE=$EXIT_DIR/status OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} LOGLEVEL=${LOGLEVEL:-ERROR}
  # Its own session: a Ctrl-C reaches this script alone, which forwards it once.
  setsid "$PYTHON" -c "$TORCHRUN" \
    --nproc-per-node="$RANKS" --max-restarts="${MAX_RESTARTS:-20}" --monitor-interval=0.5 \
    --shutdown-timeout=25 --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    --log-dir="$logs" ${others:+--redirects="$others"} "${RENDEZVOUS[@]}" \
    -m fusionrun train "$@" &
  CHILD=$!
}

# On several nodes every node's torchrun meets the others on the first one.
choose_rendezvous() {
  RENDEZVOUS=(--standalone)
  if [[ ${SLURM_JOB_NUM_NODES:-1} -gt 1 ]]; then
    local first is_host=false
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    [[ $SLURM_NODEID != 0 ]] || is_host=true
    RENDEZVOUS=(--nnodes="$SLURM_JOB_NUM_NODES" --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID"
      --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))" --rdzv-conf="is_host=$is_host")
  fi
}

# In a Slurm job but in none of its steps: the work belongs in a step, one task a node.
# (4294967290 and 4294967291 are the steps of a salloc shell and of the batch script.)
needs_srun() {
  [[ -n ${SLURM_JOB_ID:-} ]] || return 1
  case ${SLURM_STEP_ID:-none} in none | 4294967290 | 4294967291) ;; *) return 1 ;; esac
}

start_srun() {
  local nodes=${SLURM_JOB_NUM_NODES:-1} words=()
  words+=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1)
  # srun doesn't take these from the job by itself
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || words+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
  [[ -z ${SLURM_GPUS_ON_NODE:-} ]] || words+=(--gres="gpu:$SLURM_GPUS_ON_NODE")
  [[ ! -t 0 || ! -t 1 ]] || words+=(--pty) # else no live table under salloc
  FUSIONRUN_ROOT=$ROOT PYTHON=$PYTHON RANKS=$RANKS \
    srun --kill-on-bad-exit=0 "${words[@]}" bash "$ROOT/launch.sh" "$@" &
  CHILD=$!
}

# One signal, once. Slurm signals every process of a step itself; there is nobody left to tell.
forward() {
  [[ -z ${STOPPING:-} ]] || return 0
  STOPPING=$1
  [[ -n ${IN_STEP:-} ]] || kill -"$2" "$CHILD" 2>/dev/null || true
}

# bash returns from `wait` when a trap has run, so wait again until the child is gone.
wait_for_child() {
  CODE=0
  while kill -0 "$CHILD" 2>/dev/null; do
    CODE=0
    wait "$CHILD" || CODE=$?
  done
}

# Slurm warned that time is up and everything is saved: the job goes back into the queue.
requeue() {
  echo "launch.sh: saved before the time limit; job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
}

run_under_slurm() {
  start_srun "$@"
  trap 'forward USR1 USR1' USR1 # Slurm's warning, as the #SBATCH line above wants it
  trap 'forward USR2 USR2' USR2 # or as a job's own --signal=B:USR2@300 does
  trap 'forward TERM TERM' INT TERM HUP
  wait_for_child
  [[ ${STOPPING:-} != USR? || $CODE -ne 4 ]] || requeue
  exit "$CODE"
}

main() {
  [[ $# -gt 0 && $1 != *=* && $1 != -* ]] || set -- "" "$@"
  ROOT=$(find_root)
  PYTHON=$(find_python)
  RANKS=${RANKS:-4}
  [[ -n $1 ]] || set -- "$ROOT/configs/demo.yaml" "${@:2}"
  if needs_srun; then run_under_slurm "$@"; fi
  IN_STEP=${SLURM_STEP_ID:-}
  choose_rendezvous
  EXIT_DIR=$(mktemp -d)
  trap 'rm -rf "$EXIT_DIR"' EXIT
  start_torchrun "$@"
  trap 'forward TERM TERM' INT TERM HUP USR1 USR2
  wait_for_child
  [[ ! -t 1 ]] || printf '\033[?25h' # a killed rank 0 leaves the cursor hidden
  if [[ -s $EXIT_DIR/status ]]; then exit "$(<"$EXIT_DIR/status")"; fi
  echo "launch.sh: the processes ended without saying how; run the same command to go on" >&2
  exit 4
}

main "$@"
