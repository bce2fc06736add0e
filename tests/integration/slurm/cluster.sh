#!/usr/bin/env bash
# A real Slurm on this machine alone, for the tests: munge, controller, emulated nodes, fake GPUs.
#
#   bash tests/integration/slurm/cluster.sh install              slurm-wlm, munge and iproute2 by apt-get
#   bash tests/integration/slurm/cluster.sh start FOLDER NODES   everything it writes is below FOLDER
#   bash tests/integration/slurm/cluster.sh stop FOLDER          cancels its jobs and ends its daemons
#
# After the start, SLURM_CONF=FOLDER/slurm.conf makes Slurm's commands talk to it. Needs root.
set -euo pipefail

install_packages() {
  type slurmctld slurmd munged ip &>/dev/null && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurm-wlm munge iproute2 >/dev/null
}

# Nodes n1, n2, ... are daemons of this machine. 16 cores and 130 GB a node are only said to be
# there, so that the directives of launch.sh fit.
write_configuration() {
  local host node
  host=$(hostname -s)
  cat >"$FOLDER/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits until its credential has expired: 2 minutes by default
AuthInfo=socket=$FOLDER/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
ReturnToService=2
MinJobAge=3600
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool/%n
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.%n.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.%n.log
PartitionName=main Nodes=n[1-$NODES] Default=YES MaxTime=INFINITE State=UP
CONF
  for ((node = 1; node <= NODES; node++)); do
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((26817 + node))" \
      "CPUs=16 Sockets=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=133120 Gres=gpu:4" \
      >>"$FOLDER/slurm.conf"
  done
  printf 'AutoDetect=off\nName=gpu File=%s/gpu[0-3]\n' "$FOLDER" >"$FOLDER/gres.conf"
}

start_daemons() {
  local node gpu
  # only for a device file does Slurm set CUDA_VISIBLE_DEVICES: each is another /dev/null
  for gpu in 0 1 2 3; do mknod -m 666 "$FOLDER/gpu$gpu" c 1 3; done
  (umask 077 && head -c 128 /dev/urandom >"$FOLDER/munge.key")
  munged --key-file="$FOLDER/munge.key" --socket="$FOLDER/munge.socket" \
    --pid-file="$FOLDER/munged.pid" --log-file="$FOLDER/munged.log" \
    --seed-file="$FOLDER/munge.seed"
  slurmctld
  for ((node = 1; node <= NODES; node++)); do
    mkdir -p "$FOLDER/spool/n$node"
    slurmd -N "n$node"
  done
}

wait_until_idle() {
  for _ in {1..100}; do
    [[ $(sinfo --noheader --format=%T 2>/dev/null | sort -u) != idle ]] || return 0
    sleep 0.2
  done
  echo "cluster.sh: the nodes did not become idle:" >&2
  tail -n 20 "$FOLDER"/*.log >&2
  return 1
}

stop_daemons() {
  local file pid
  if scancel --user="$(id -un)" 2>/dev/null; then
    for _ in {1..200}; do # longer than the 30 s after which Slurm kills what ignores SIGTERM
      [[ -n $(squeue --noheader 2>/dev/null) ]] || break
      sleep 0.2
    done
  fi
  for file in "$FOLDER"/slurmd.*.pid "$FOLDER/slurmctld.pid" "$FOLDER/munged.pid"; do
    [[ -s $file ]] || continue
    pid=$(<"$file")
    kill "$pid" 2>/dev/null || continue
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
  done
}

case ${1:-} in
  install) install_packages ;;
  start | stop)
    FOLDER=$(readlink -f "${2:?FOLDER is missing}")
    export SLURM_CONF=$FOLDER/slurm.conf
    if [[ $1 == stop ]]; then
      stop_daemons
    else
      NODES=${3:?NODES is missing}
      mkdir -p "$FOLDER/state"
      chmod 755 "$FOLDER" # munge wants its socket within everybody's reach
      write_configuration
      start_daemons
      wait_until_idle
    fi
    ;;
  *)
    echo "usage: cluster.sh install | start FOLDER NODES | stop FOLDER" >&2
    exit 2
    ;;
esac
