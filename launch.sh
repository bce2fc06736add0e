#!/usr/bin/env bash
# Trains a whole study in one launch: sets up Python once, then starts one torchrun.
#
#   bash launch.sh [RECIPE] [key=value ...]        a file, or a shipped recipe's name (default: demo)
#   sbatch launch.sh RECIPE [key=value ...]        the same on a Slurm cluster
#   srun launch.sh RECIPE [key=value ...]          or with srun: one task per node
#   bash launch.sh COMMAND ...                     what `fusionrun COMMAND ...` does: train as above,
#                                                  any other (doctor, evaluate, ...) in one process
#
# Environment: RANKS         processes per node (default: the GPUs that Slurm gave, else those of
#                            this machine or their MIG slices, else 4; they share GPUs if there
#                            are fewer)
#              PYTHON        the interpreter to use (default: python3, else .venv, which is set
#                            up with the torch that this machine's GPUs and driver can use)
#              MAX_RESTARTS  how often killed processes are started again (default 20)
# Exit status: 0 all rows done, 1 could not start, 2 wrong recipe or command line,
#              3 some row failed, 4 stopped before the end (run it again to go on)
#
#SBATCH --job-name=fusionrun
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --mem=128G
#SBATCH --output=fusionrun-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

# Under sbatch this script is a copy in Slurm's spool; Slurm knows where it was submitted from.
submitted_script() {
  [[ -n ${SLURM_JOB_ID:-} ]] || return 0
  scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=\(\/.*launch\.sh\).*/\1/p'
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

# Is everything there that requirements.txt names, and new enough? (Newer than was tried is let
# through.) Looks without importing, which takes seconds.
has_requirements() {
  "$1" - "$ROOT/requirements.txt" <<'PYTHON' 2>/dev/null
import re
import sys
from importlib.metadata import version
assert sys.version_info >= (3, 11)
for requirement in open(sys.argv[1]):
    name, lowest = requirement.split(",")[0].split(">=")
    found, wanted = ([int(part) for part in re.findall(r"\d+", text)][:2]
                     for text in (version(name), lowest))
    assert found >= wanted
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
  local base=${PYTHON:-python3} version
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    version=$("$base" --version 2>/dev/null) || version="no Python"
    echo "launch.sh: $base is $version, expected Python 3.11 or newer; set PYTHON" >&2
    exit 1
  fi
  # several nodes or jobs may find it missing at once: one sets it up, the others wait
  mkdir -p "$ROOT/.venv" && : >>"$ROOT/.venv/lock" || return
  exec 9>>"$ROOT/.venv/lock"
  if ! flock 9 2>/dev/null; then
    echo "launch.sh: no file can be locked in $ROOT/.venv; start nothing else from here until" \
      "the set-up is done"
  fi
  if has_requirements "$ROOT/.venv/bin/python"; then return; fi
  if [[ -x $ROOT/.venv/bin/python ]]; then
    echo "launch.sh: $ROOT/.venv lacks some of requirements.txt, or has it too old: adding it"
  else
    echo "launch.sh: setting up $ROOT/.venv from requirements.txt (once; some minutes)"
  fi
  "$base" -m venv "$ROOT/.venv" || return
  # the checkout itself, too: it brings the command .venv/bin/fusionrun
  PYTHONPATH=$ROOT "$ROOT/.venv/bin/python" -m fusionrun.launch.set_up \
    -r "$ROOT/requirements.txt" --editable "$ROOT"
}

# One torchrun over RANKS processes; rank 0 keeps the terminal, the others' output goes to files.
start_torchrun() {
  local logs=$EXIT_DIR/torchrun others="" rank
  for ((rank = 1; rank < RANKS; rank++)); do others+="${others:+,}$rank:3"; done
  # The store must not outlive a restart of the workers (pytorch issue 135712).
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} LOGLEVEL=${LOGLEVEL:-ERROR}
  # Its own session: a Ctrl-C reaches this script alone, which forwards it once.
  # Nothing but the ranks may have the exit file's name: `ranks_left` knows them by it.
  FUSIONRUN_EXIT_FILE=$EXIT_DIR/status setsid "$PYTHON" -m fusionrun.launch.torchrun \
    --nproc-per-node="$RANKS" --max-restarts="$MAX_RESTARTS" --monitor-interval=0.5 \
    --log-dir="$logs" ${others:+--redirects="$others"} "${RENDEZVOUS[@]}" \
    -m fusionrun "$@" &
  CHILD=$!
}

# Where Slurm itself reaches a node; its name needn't mean anything to the resolver.
node_address() {
  scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
}

# One machine needs no network: torchrun's own store is a file in a folder that is this launch's,
# and nobody asks what the host's name means. (A folder that can't lock files can't have a store.)
# On several nodes every node's torchrun meets the others on the first one.
choose_rendezvous() {
  RENDEZVOUS=(--nnodes=1 --rdzv-backend=c10d --rdzv-id=study --local-addr=127.0.0.1)
  if ! command -v flock >/dev/null || flock "$EXIT_DIR" true 2>/dev/null; then
    RENDEZVOUS+=(--rdzv-endpoint="$EXIT_DIR/rendezvous"
      --rdzv-conf="store_type=file,keep_alive_interval=60")
  else
    RENDEZVOUS+=(--rdzv-endpoint=127.0.0.1:0 --rdzv-conf=is_host=true)
  fi
  if [[ ${SLURM_STEP_NUM_NODES:-1} -gt 1 ]]; then
    local first is_host=false
    first=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
    [[ $SLURM_NODEID != 0 ]] || is_host=true
    # a port below those that the system gives out; two steps of a job may share their first node
    RENDEZVOUS=(--nnodes="$SLURM_STEP_NUM_NODES" --rdzv-backend=c10d
      --rdzv-id="$SLURM_JOB_ID.$SLURM_STEP_ID" --rdzv-conf="is_host=$is_host"
      --rdzv-endpoint="$(node_address "$first"):$((20000 + (SLURM_JOB_ID + SLURM_STEP_ID) % 12000))"
      --local-addr="$(node_address "$SLURMD_NODENAME")")
  fi
}

# In a Slurm job but in none of its steps: the work belongs in a step, one task a node.
# (4294967290 and 4294967291 are the steps of a salloc shell and of the batch script.)
needs_srun() {
  [[ -n ${SLURM_JOB_ID:-} ]] || return 1
  case ${SLURM_STEP_ID:-none} in none | 4294967290 | 4294967291) ;; *) return 1 ;; esac
}

# The step gets all that the job has on its nodes, however that was asked for.
start_srun() {
  local nodes=${SLURM_JOB_NUM_NODES:-1} cpus words=()
  cpus=$(tr ',' '\n' <<<"$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | head -n 1)
  words+=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$cpus" --mem=0)
  # left alone, a step gets all GPUs; of a job that asked for some per task, those of one task
  [[ -z ${SLURM_GPUS_PER_TASK:-} || -z ${SLURM_GPUS_ON_NODE:-} ]] ||
    words+=(--gres="gpu:$SLURM_GPUS_ON_NODE")
  unset SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK SLURM_CPUS_PER_GPU \
    SLURM_NTASKS_PER_GPU SLURM_GPU_BIND SLURM_TRES_PER_TASK
  # else no live table under salloc; but rank 0, who shows it, may be on any of several nodes
  [[ $nodes -gt 1 || ! -t 0 || ! -t 1 ]] || words+=(--pty)
  # when one node gives up, the others are told to stop, which takes them KillWait at most
  FUSIONRUN_ROOT=$ROOT PYTHON=$PYTHON srun --kill-on-bad-exit=1 --disable-status \
    "${words[@]}" bash "$ROOT/launch.sh" "$@" &
  CHILD=$!
}

# torchrun starts all ranks of a node: two of them on one node would train everything twice.
require_one_task_per_node() {
  local tasks=${SLURM_STEP_NUM_TASKS:-1} nodes=${SLURM_STEP_NUM_NODES:-1}
  [[ $tasks -ne $nodes ]] || return 0
  if [[ $SLURM_PROCID == 0 ]]; then
    echo "launch.sh: found $tasks tasks on $nodes node(s), expected one task per node, which" \
      "starts RANKS processes there; use srun --ntasks-per-node=1" >&2
  fi
  exit 2
}

# The first signal is passed on to the child; all later ones only say why it ends.
# shellcheck disable=SC2317 # traps call it
forward() {
  local before=${STOPPING:-}
  STOPPING=$1
  [[ -z $before ]] || return 0
  kill -"$1" "$CHILD" 2>/dev/null || true
  [[ -z ${EXIT_DIR:-} ]] || end_torchrun >/dev/null 2>&1 &
}

# When its ranks have gone torchrun waits for those of the other nodes, for five minutes and deaf to
# signals; in a launch that was told to stop nobody needs it then.
# shellcheck disable=SC2317 # traps call it
end_torchrun() {
  while sleep 3 && kill -0 "$CHILD" 2>/dev/null; do
    ranks_left | grep -qvx "$CHILD" || kill -KILL "$CHILD" 2>/dev/null || true
  done
}

# bash returns from `wait` when a trap has run, so wait again until the child is gone. (What it says
# of a killed one is no use to a user.)
wait_for_child() {
  CODE=0
  while kill -0 "$CHILD" 2>/dev/null; do
    CODE=0
    wait "$CHILD" 2>/dev/null || CODE=$?
  done
}

# Ranks outlive a torchrun that was killed, or told twice to stop (by Slurm, and by this script):
# they save, and say how it ended. One that hangs can't, and is killed within Slurm's own grace.
wait_for_ranks() {
  local tries=100 looks=1 left
  # a rank that was only starting when torchrun was killed hasn't been told, and one that is just
  # being started has no environment for a moment
  if [[ $CODE -gt 128 ]]; then
    looks=2
    xargs -r kill -TERM <<<"$(ranks_left)" 2>/dev/null || true
  fi
  while ((tries-- > 0)); do
    left=$(ranks_left)
    [[ -n $left ]] || ((--looks > 0)) || break
    sleep 0.25
  done
  [[ -z $left ]] || xargs kill -KILL <<<"$left" 2>/dev/null || true
}

# Ctrl-Z reaches this script alone: the ranks wait as long as it does. (torchrun first, or it could
# start others meanwhile.)
# shellcheck disable=SC2317 # a trap calls it
suspend() {
  kill -STOP "$CHILD" 2>/dev/null || true
  xargs -r kill -STOP <<<"$(ranks_left)" 2>/dev/null || true
  [[ ! -t 1 ]] || printf '\033[?25h' # the table hides the cursor
  kill -STOP $$
  xargs -r kill -CONT <<<"$(ranks_left)" 2>/dev/null || true
  kill -CONT "$CHILD" 2>/dev/null || true
}

# What ranks without a terminal said before they had an output directory.
show_last_words() {
  local log
  for log in "$EXIT_DIR"/torchrun/*/attempt_*/*/stderr.log; do
    [[ ! -s $log ]] || echo "launch.sh: rank $(basename "$(dirname "$log")"): $(tail -n 1 "$log")" >&2
  done
}

# Their process ids. (grep's status says nothing: some processes can't be read, or have just gone.)
ranks_left() {
  { grep -lsz "^FUSIONRUN_EXIT_FILE=$EXIT_DIR/" /proc/[0-9]*/environ || true; } | cut -d/ -f3
}

# Slurm warned that time is up and everything is saved: the job goes back into the queue.
requeue() {
  echo "launch.sh: saved before the time limit; job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID" ||
    echo "launch.sh: Slurm doesn't take it back; submit it again to go on" >&2
}

run_under_slurm() {
  start_srun "$@"
  trap 'forward USR1' USR1 # Slurm's warning, as the #SBATCH line above wants it
  trap 'forward USR2' USR2 # or as a job's own --signal=B:USR2@300 does
  # Slurm, or Ctrl-C, tells the whole step; srun would take it for an order to kill at once. And
  # after scancel the job isn't to come back.
  trap 'STOPPING=TERM' INT TERM HUP QUIT
  wait_for_child
  [[ ${STOPPING:-} != USR? || $CODE -lt 4 ]] || requeue
  exit "$CODE"
}

# A whole number that is large enough, or exit status 2.
require_number() { # name, value, lowest
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ && $2 -ge $3 ]] && return
  echo "launch.sh: $1: found '$2', expected a whole number, $3 or more" >&2
  exit 2
}

# GPUs that a launch may use here, a line each: all, or those that CUDA_VISIBLE_DEVICES names. Of one
# that is divided, its MIG slices.
list_gpus() {
  local found
  # a sick driver can keep nvidia-smi for ever; of a GPU that is lost it complains, below the others
  found=$({ timeout -k 1 20 nvidia-smi --list-gpus 2>/dev/null || true; } | grep -E '^ *(GPU|MIG) ') ||
    found=$(compgen -G '/dev/nvidia[0-9]*' | sed 's/^/GPU /') || true # it may not be there
  awk -v named="${CUDA_VISIBLE_DEVICES-all}" '
    { id = match($0, /UUID: [^)]+/) ? substr($0, RSTART + 6, RLENGTH - 6) : $2 }
    /^GPU / { gpu[count++] = id }
    /^ *MIG / { slices[gpu[count - 1]] = slices[gpu[count - 1]] id "\n" }
    function show(id) { printf "%s", id in slices ? slices[id] : id "\n" }
    END {
      if (named == "all") for (i = 0; i < count; i++) show(gpu[i])
      gsub(/ /, "", named)
      wanted = split(named, each, ",")
      for (i = 1; count && i <= wanted; i++) {
        if (each[i] ~ /^[0-9]+$/ && each[i] + 0 < count) show(gpu[each[i] + 0])
        else if (each[i] ~ /^(GPU|MIG)-/) show(each[i])
        else break # CUDA reads no further either
      }
    }' <<<"$found"
}

# RANKS: one for each GPU, 4 where none is, unless the user says otherwise. WORDS: what that means.
choose_ranks() {
  local gpus=() count kind=GPU
  [[ " $* " == *" runtime.device=cpu "* ]] || mapfile -t gpus < <(list_gpus)
  count=${#gpus[@]}
  [[ ! ${SLURM_GPUS_ON_NODE:-} =~ ^[1-9][0-9]*$ ]] || count=$SLURM_GPUS_ON_NODE
  RANKS=${RANKS:-$((count > 0 ? count : 4))}
  if [[ ${gpus[*]-} == *MIG-* ]]; then
    kind="MIG slice"
    # a process sees only one of them: each rank takes its own of those that are named
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]}")
    export CUDA_VISIBLE_DEVICES
  fi
  WORDS="$RANKS rank$([[ $RANKS == 1 ]] || echo s) with $PYTHON"
  if [[ ${#gpus[@]} -gt 0 && $RANKS -lt $count ]]; then
    WORDS+="; $((count - RANKS)) of $count ${kind}s stay idle (RANKS=$count uses all)"
  elif [[ ${#gpus[@]} -gt 0 && $RANKS -gt $count ]]; then
    WORDS+="; they share $count $kind$([[ $count == 1 ]] || echo s)"
  fi
}

main() {
  case ${1:-} in
    -h | --help)
      sed -n '2,/^#SBATCH/ { /^#SBATCH/! s/^# \{0,1\}//p }' "${BASH_SOURCE[0]}"
      exit
      ;;
  esac
  ROOT=$(find_root)
  # how messages name the next command; under sbatch this script is a copy with another name
  [[ $0 == *launch.sh ]] && FUSIONRUN_CALLED_AS="bash $(printf %q "$0")"
  export FUSIONRUN_CALLED_AS=${FUSIONRUN_CALLED_AS:-bash launch.sh}
  if [[ ${1:-} != --version && (! ${1:-} =~ ^[a-z]+$ || ! -f $ROOT/fusionrun/commands/$1.py) ]]; then
    export FUSIONRUN_DEFAULT_RECIPE=demo
    set -- train "$@"
  fi
  if [[ $1 == train ]]; then
    require_number RANKS "${RANKS:-1}" 1
    require_number MAX_RESTARTS "${MAX_RESTARTS:=20}" 0
  fi
  PYTHON=$(find_python)
  export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  if [[ $1 != train || " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    exec "$PYTHON" -m fusionrun "$@"
  fi
  if needs_srun; then run_under_slurm "$@"; fi
  require_one_task_per_node
  choose_ranks "$@"
  EXIT_DIR=$(mktemp -d)
  trap 'rm -rf "$EXIT_DIR"' EXIT
  choose_rendezvous
  echo "launch.sh: starting $WORDS"
  start_torchrun "$@"
  trap 'forward TERM' INT TERM HUP QUIT USR1 USR2
  trap suspend TSTP
  wait_for_child
  # what is left takes seconds; srun tells a node to stop when another one has ended with 3
  trap '' INT TERM HUP QUIT USR1 USR2
  wait_for_ranks
  [[ ! -t 1 ]] || printf '\033[?25h' # a killed rank 0 leaves the cursor hidden
  if [[ -s $EXIT_DIR/status ]]; then exit "$(<"$EXIT_DIR/status")"; fi
  show_last_words
  # a rank makes that file when it starts; it writes into it when it ends
  if [[ ! -e $EXIT_DIR/status && -z ${STOPPING:-} && $CODE -le 128 ]]; then
    echo "launch.sh: torchrun ended with status $CODE before a rank could start; fix what it says" \
      "above" >&2
    exit 1
  fi
  echo "launch.sh: torchrun ended with status $CODE, and its ranks without saying how; run the same" \
    "command to go on" >&2
  exit 4
}

main "$@"
