#!/usr/bin/env bash
# What the launch scripts run on a worker: installs the project, starts one run that outlives the connection, tells how it stands.
#   bash crossin_jax/launch/worker.sh --slice I | --host I  install EXTRA | start DIGEST [NAME=VALUE ...] -- COMMAND ... | state |
#     follow start|end | stop SECONDS
# Lines '@crossin WORD KEY ...' on stdout are for the script at the other end; KEY is unit/number. The run lies in ~/.crossin_run:
# log, digest (which run it is), leader (its process group), pid, status (once it has ended), lock (held while it lives).
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

main() {
  local place=$1 action=$3
  unit=$2
  shift 3
  case $place in
    --slice)
      key=$unit/$(metadata agent-worker-number)
      count=$(metadata worker-network-endpoints | tr ',' '\n' | grep -c .)
      ;;
    --host) key=$unit/0 count=1 ;;
  esac
  state=$HOME/.crossin_run/$(hostname)-$unit # homes may be shared
  mkdir -p "$state"
  "$action" "$@"
}

# metadata NAME: what Google's machines know of themselves; JAX numbers its processes by the same.
metadata() {
  curl --silent --fail --retry 5 -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

# report WORD TEXT...: one line for the other end.
report() {
  local word=$1
  shift
  printf '@crossin %s %s %s %s\n' "$word" "$key" "$count" "$*"
}

# show_end FILE: its last lines, each with the worker's name.
show_end() { tail -n 25 "$1" | tr '\r' '\n' | sed "s|^|@crossin log $key |"; }

install() {
  cd "$project"
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  if provide_python >"$state/install.log" 2>&1 && make_environment .venv "$1" >>"$state/install.log" 2>&1; then
    report installed
  else
    show_end "$state/install.log"
    report broken
    return 1
  fi
}

# at_work: whether the run has not ended, and lives.
at_work() { [ ! -e "$state/status" ] && [ -e "$state/lock" ] && ! flock --nonblock "$state/lock" true; }

state() {
  local digest
  digest=$(cat "$state/digest" 2>/dev/null || true)
  if at_work; then
    report state running "$digest"
  elif [ -e "$state/status" ]; then
    report state ended "$(cat "$state/status")" "$digest"
  else
    report state "${digest:+gone }$digest"
  fi
}

# start DIGEST [NAME=VALUE ...] -- COMMAND ...: `crossin COMMAND ...`, in a session of its own.
start() {
  local digest=$1 tries
  shift
  if at_work; then
    state
    [ "$(cat "$state/digest")" = "$digest" ]
    return
  fi
  # What the one before has left behind, should it have left anything, would keep the accelerators.
  if [ -e "$state/leader" ]; then kill -KILL -- "-$(cat "$state/leader")" 2>/dev/null || true; fi
  rm -f "$state/status" "$state/pid" "$state/leader"
  if [ -e "$state/log" ]; then mv "$state/log" "$state/log.previous"; fi
  printf '%s' "$digest" >"$state/digest"
  setsid bash "$project/launch/worker.sh" --host "$unit" run_to_end "$@" </dev/null >"$state/log" 2>&1 &
  for ((tries = 0; tries < 100; tries++)); do
    if [ -e "$state/pid" ]; then break; fi
    if [ -e "$state/leader" ] && ! at_work; then break; fi # it is over already
    sleep 0.1
  done
  report state running "$digest"
}

# run_to_end [NAME=VALUE ...] -- COMMAND ...: what `start` leaves behind; notes how it ended.
run_to_end() {
  local child status
  local environment=()
  exec 9>"$state/lock"
  flock --nonblock 9
  trap : TERM INT HUP # a machine that shuts down sends SIGTERM to all; the run's own way out is to be noted
  while [ "$1" != -- ]; do
    environment+=("$1")
    shift
  done
  shift
  cd "$project"
  echo $$ >"$state/leader"
  env ${environment[@]+"${environment[@]}"} .venv/bin/crossin "$@" &
  child=$!
  write pid "$child"
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  status=0
  wait "$child" || status=$?
  write status "$status"
}

# write NAME TEXT: whole or not at all.
write() { printf '%s\n' "$2" >"$state/$1.part" && mv "$state/$1.part" "$state/$1"; }

# follow start|end: waits for the end of the run and reports it; the first worker shows its log meanwhile.
follow() {
  local reader='' lines=+1 status
  if [ "$1" = end ]; then lines=30; fi
  if [ "$key" = 0/0 ]; then
    tail -n "$lines" -F --pid=$$ --sleep-interval=0.3 "$state/log" 2>/dev/null &
    reader=$!
  fi
  # Whoever asked may be gone: a connection that broke off leaves this behind.
  while at_work && [ -d "/proc/$PPID" ]; do sleep 0.3; done
  if [ -n "$reader" ]; then
    sleep 0.3 # for the last lines
    kill "$reader" 2>/dev/null || true
  fi
  status=$(cat "$state/status" 2>/dev/null || echo gone)
  case $status in 0 | 75) ;; *) if [ -z "$reader" ] && [ -e "$state/log" ]; then show_end "$state/log"; fi ;; esac
  report ended "$status"
}

# stop SECONDS: SIGTERM, upon which training saves; after SECONDS SIGKILL.
stop() {
  local waited
  if at_work; then
    kill -TERM "$(cat "$state/pid")" 2>/dev/null || true
    for ((waited = 0; waited < 5 * $1; waited++)); do
      if ! at_work; then break; fi
      sleep 0.2
    done
    if at_work; then
      kill -KILL -- "-$(cat "$state/leader")" 2>/dev/null || true
      write status 137
    fi
  fi
  state
}

main "$@"
