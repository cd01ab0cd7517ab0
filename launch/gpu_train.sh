#!/usr/bin/env bash
# Trains on GPUs: on this host, with all its GPUs in one process, or on several hosts reached by ssh, one process each.
# Starts again what was told to stop and saved; when one host fails, the others are stopped.
#
#   bash launch/gpu_train.sh -- --gin_file=gin_configs/runs/crossin_60m.gin --gin.MODEL_DIR="'runs/first'" ...
#   bash launch/gpu_train.sh --hosts gpu1,gpu2 -- --gin_file=... --gin.MODEL_DIR="'/shared/runs/first'" ...
#
# What stands after -- goes to `crossin train` as it is. With --hosts the run outlives this script: the same command, given again,
# follows it; Ctrl-C only stops following. DATA_DIR and MODEL_DIR must then be seen by all hosts (gs://, NFS).
#
#   --hosts A,B,...           by ssh, without a password; the first is the coordinator. Homes may be shared
#   --coordinator_address A   HOST:PORT by which the hosts reach the first (its name, port 8476; the next port is used too)
#   --ssh_flag FLAG           more for ssh and scp, such as -oUser=me; may be repeated
#   --command COMMAND         of `crossin` (train)
#   --env NAME=VALUE          for it; may be repeated
#   --include PATH            copy this file or folder too; what git tracks and the gin files named are copied anyway
#   --extra EXTRA             of pyproject.toml, to install (cuda)
#   --repository URL          hosts install this git repository instead of the working tree
#   --ref REF                 branch, tag or commit of it
#   --max_restarts N          after exit status 75 (20)
#   --stop_on_interrupt       Ctrl-C and SIGTERM tell the run on the hosts to save and stop (on this host they always do)
#   --dry_run                 print every command, run none
# Instead of a run, with --hosts:
#   --status                  whether a run is at work
#   --stop                    tell the run to save and stop
#
# Exit status: 0 finished, 1 failed, 2 wrong usage, 75 stopped (the same command goes on).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
# shellcheck source=launch/supervise.sh
source launch/supervise.sh

units=() coordinator_address='' ssh_flags=() action=train

main() {
  read_options "$@"
  if [ "${#units[@]}" = 0 ]; then
    train_here
  else
    make_scratch
    trap leave EXIT
    trap interrupted INT TERM
    install_in_turn=true
    "$action"
  fi
}

read_options() {
  local hosts=''
  extra=cuda
  while [ $# -gt 0 ]; do
    case $1 in
      --hosts | --coordinator_address | --command | --extra | --repository | --ref | --max_restarts)
        need_value "$1" $#
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --ssh_flag | --env | --include)
        need_value "$1" $#
        case $1 in
          --ssh_flag) ssh_flags+=("$2") ;;
          --env) run_environment+=("$2") ;;
          --include) include "$2" ;;
        esac
        shift
        ;;
      --stop_on_interrupt | --dry_run) printf -v "${1#--}" true ;;
      --status) action=show_state ;;
      --stop) action=stop_run ;;
      --help | -h)
        show_help
        exit 0
        ;;
      --)
        shift
        arguments=("$@")
        break
        ;;
      *) usage_error "unknown option $1; what is for crossin $command goes after --" ;;
    esac
    shift
  done
  case $max_restarts in '' | *[!0-9]*) usage_error '--max_restarts is a number' ;; esac
  if [ -n "$hosts" ]; then IFS=, read -r -a units <<<"$hosts"; fi
  if [ "$action" != train ]; then
    [ "${#units[@]}" -gt 0 ] || usage_error 'that needs --hosts'
    return
  fi
  [ "${#arguments[@]}" -gt 0 ] || usage_error "give the flags of crossin $command after --"
  if [ "${#units[@]}" -gt 1 ]; then check_model_dir; fi
  if [ -z "$coordinator_address" ] && [ -n "$hosts" ]; then coordinator_address=${units[0]#*@}:8476; fi
}

# ---- this host -----------------------------------------------------------------------------------------------------

train_here() {
  local status restarts=0
  local line=(env ${run_environment[@]+"${run_environment[@]}"} .venv/bin/crossin "$command" "${arguments[@]}")
  if $dry_run; then
    note "install with the extra $extra in .venv, then"
    ask "${line[@]}"
    return
  fi
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  make_environment .venv "$extra"
  while true; do
    status=0
    run_forwarding "${line[@]}" || status=$?
    if $told; then exit $TOLD_TO_STOP; fi
    [ "$status" = $TOLD_TO_STOP ] || exit "$status"
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "$max_restarts" ]; then
      say "not started again: --max_restarts $max_restarts is reached. The same command goes on from the last checkpoint"
      exit $TOLD_TO_STOP
    fi
    tell "the run was told to stop and saved; starting again ($restarts of at most $max_restarts)"
  done
}

# ---- several hosts -------------------------------------------------------------------------------------------------

train() {
  local status=0
  if $dry_run; then
    show_run
  else
    attend supervise || status=$?
    exit "$status"
  fi
}

unit_ssh() {
  ask ssh -oBatchMode=yes -oConnectTimeout=30 -oServerAliveInterval=20 ${ssh_flags[@]+"${ssh_flags[@]}"} "${units[$1]}" "$2"
}

unit_copy() {
  run scp -q -oBatchMode=yes -oConnectTimeout=30 ${ssh_flags[@]+"${ssh_flags[@]}"} "$2" "${units[$1]}:crossin_jax.tar.gz"
}

unit_flags() { printf -- '--host %s' "$1"; }

process_flags() {
  if [ "${#units[@]}" = 1 ] || ! many_processes; then return; fi
  quote "--coordinator_address=$coordinator_address" "--process_count=${#units[@]}" "--process_index=$1"
}

worker_name() { printf 'host %s (process %s)' "${units[${1%/*}]}" "${1%/*}"; }

ready_machines() { :; }

# Hosts are not bought by the hour here: one that does not answer is an error that ssh explains.
machines_lost() { return 1; }

leave() {
  local status=$?
  trap '' INT TERM
  stop_following
  rm -rf "$scratch"
  exit "$status"
}

main "$@"
