#!/usr/bin/env bash
# A private SLURM for tests: one host, several nodes that are daemons of it, everything in one folder, no systemd.
#
#     slurm_lab.sh with COMMAND ...             a lab of two nodes while the command runs; no lab possible: says why, exit 0
#     slurm_lab.sh up FOLDER [NODES [CPUS]]     start one, print the line that points clients to it
#     slurm_lab.sh down FOLDER                  end it
#
# Missing packages are installed where this runs as root beside apt-get (Debian, Ubuntu).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where distributions put daemons

missing() {
  for command in slurmctld slurmd sbatch srun scontrol munged; do command -v "$command" || echo "$command" >&3; done 3>&1 >/dev/null
}

install_packages() {
  [ -n "$(missing)" ] || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
  echo "installing slurmctld, slurmd, slurm-client and munge" >&2
  (
    # At this runlevel packages do not start their services: the lab has daemons of its own.
    export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge
  ) >/dev/null || true
}

# As many free ports as asked for, held together so that they differ.
free_ports() {
  python3 - "$1" <<'PYTHON'
import socket
import sys

held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PYTHON
}

write_config() {
  local folder=$1 nodes=$2 cpus=$3 host user ports node
  host=$(uname -n) host=${host%%.*} user=$(id -un)
  read -ra ports <<<"$(free_ports $((nodes + 1)))"
  # on a loaded host a daemon may not answer for a while: the default of 10 seconds would end its steps
  # cred_expire is also how long a requeued job waits, 120 seconds unless told otherwise; linuxproc needs no cgroups.
  cat <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
MessageTimeout=60
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=200000
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  for node in $(seq "$nodes"); do
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[node]} CPUs=$cpus RealMemory=2000"
  done
}

up() {
  local folder nodes=${2:-2} cpus=${3:-4} node idle
  mkdir -p "$1"
  folder=$(cd "$1" && pwd)
  mkdir -p "$folder/state"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --seed-file="$folder/munge.seed" --log-file="$folder/munged.log" 2>>"$folder/munged.err"
  write_config "$folder" "$nodes" "$cpus" >"$folder/slurm.conf"
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -c -f "$SLURM_CONF"
  for node in $(seq "$nodes"); do
    mkdir -p "$folder/spool-n$node"
    slurmd -N "n$node" -f "$SLURM_CONF"
  done
  for _ in $(seq 100); do
    idle=$(sinfo --noheader --Node --format=%T 2>/dev/null | grep -c '^idle$' || true)
    [ "$idle" = "$nodes" ] && { echo "export SLURM_CONF=$SLURM_CONF"; return; }
    sleep 0.2
  done
  echo "the nodes did not come up:" >&2
  tail -n 5 "$folder"/*.log >&2
  return 1
}

# Jobs first: a daemon that ends leaves what it started.
down() {
  local folder=$1 file pid
  export SLURM_CONF=$folder/slurm.conf
  if scontrol ping 2>/dev/null | grep -q UP; then
    scancel --quiet --user="$(id -un)" || true
    # a job script that lives on after SIGTERM is killed half a minute later
    for _ in $(seq 200); do [ -n "$(squeue --noheader 2>/dev/null)" ] || break; sleep 0.2; done
  fi
  for file in "$folder"/*.pid; do
    pid=$(cat "$file" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || continue 2; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

with() {
  local lacking status=0
  install_packages
  lacking=$(missing | tr '\n' ' ')
  if [ -n "$lacking" ]; then
    echo "skipped: this machine has no ${lacking% }; only root can install them here, with apt-get and a network"
    return 0
  fi
  lab=$(mktemp -d)
  chmod 755 "$lab" # munged wants its socket within reach
  trap 'down "$lab"; rm -rf "$lab"' EXIT
  trap 'exit 130' INT TERM
  up "$lab" >/dev/null
  SLURM_CONF=$lab/slurm.conf FEDCMP_SLURM=1 "$@" || status=$?
  return "$status"
}

case ${1:-} in
  with | up | down) "$@" ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
