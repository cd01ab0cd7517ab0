#!/usr/bin/env bash
# Trains on Cloud TPUs from here: makes (or finds) a queued resource, waits for it, installs this working tree on every worker,
# starts `crossin train` on all of them, shows the log of worker 0, and starts again what is told to stop or preempted.
#
#   bash launch/tpu_train.sh --name pod --zone us-west4-a --accelerator_type v5litepod-16 --spot --delete_when_done -- \
#     --gin_file=gin_configs/runs/crossin_60m.gin --gin.DATA_DIR="'gs://bucket/prepared'" --gin.MODEL_DIR="'gs://bucket/first'" \
#     --gin.MIXTURE_OR_TASK_NAME="'alpaca.base_x2x.all.en_zh_vi_es.default'"
#
# What stands after -- goes to `crossin train` as it is. The same command, given again, follows a run that is at work and resumes
# one that is not. Ctrl-C only stops following. At the end it says what still exists and costs money.
#
# The machines:
#   --name NAME               of the queued resource and of its nodes
#   --zone ZONE
#   --project PROJECT         (gcloud's own)
#   --accelerator_type TYPE   v5litepod-16, v5p-32, v6e-64, ...
#   --runtime_version V       (by the type: v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e, tpu-ubuntu2204-base)
#   --num_slices N            slices of that type, as one run (1)
#   --spot | --reserved       cheaper and preemptible | of your reservation. (on demand)
#   --create_flag FLAG        more for `gcloud compute tpus queued-resources create`, such as --network=NET; may be repeated
#   --gcloud_ssh_flag FLAG    more for gcloud's ssh and scp, such as --internal-ip or --tunnel-through-iap; may be repeated
# The run:
#   --command COMMAND         of `crossin` (train)
#   --env NAME=VALUE          for it; may be repeated
#   --include PATH            copy this file or folder too; what git tracks and the gin files named are copied anyway
#   --extra EXTRA             of pyproject.toml, to install (tpu)
#   --repository URL          install this git repository instead of the working tree
#   --ref REF                 branch, tag or commit of it
#   --max_restarts N          after preemptions and exit status 75 (20)
#   --delete_when_done        delete the queued resource when the run has ended, in whatever way, and after it was stopped by
#                             --stop_on_interrupt
#   --stop_on_interrupt       Ctrl-C and SIGTERM tell the run to save and stop
#   --dry_run                 print every command, run none
# Instead of a run, with --name and --zone:
#   --status                  what there is, and whether a run is at work
#   --stop                    tell the run to save and stop
#   --delete                  delete the queued resource and its nodes
#
# Exit status: 0 finished, 1 failed, 2 wrong usage, 75 stopped (the same command goes on).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
# shellcheck source=launch/supervise.sh
source launch/supervise.sh

name='' zone='' project='' accelerator_type='' runtime_version='' num_slices=1 tier='' action=train delete_when_done=false
create_flags=() ssh_flags=() place=() units=() gcloud_track=()
state='' initiator='' reason='' found_type='' asked=false made=false

main() {
  read_options "$@"
  make_scratch
  trap leave EXIT
  trap interrupted INT TERM
  "$action"
}

read_options() {
  local slice
  extra=tpu
  while [ $# -gt 0 ]; do
    case $1 in
      --name | --zone | --project | --accelerator_type | --runtime_version | --num_slices | --command | --extra | --repository | --ref | \
        --max_restarts)
        need_value "$1" $#
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --create_flag | --gcloud_ssh_flag | --env | --include)
        need_value "$1" $#
        case $1 in
          --create_flag) create_flags+=("$2") ;;
          --gcloud_ssh_flag) ssh_flags+=("$2") ;;
          --env) run_environment+=("$2") ;;
          --include) include "$2" ;;
        esac
        shift
        ;;
      --spot | --reserved)
        if [ -n "$tier" ] && [ "$tier" != "$1" ]; then usage_error '--spot and --reserved exclude each other'; fi
        tier=$1
        ;;
      --delete_when_done | --stop_on_interrupt | --dry_run) printf -v "${1#--}" true ;;
      --status | --stop | --delete) action=${1#--}_resource ;;
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
  [ -n "$name" ] || usage_error '--name is missing'
  [ -n "$zone" ] || usage_error '--zone is missing'
  case $num_slices$max_restarts in *[!0-9]*) usage_error '--num_slices and --max_restarts are numbers' ;; esac
  [ "$num_slices" -ge 1 ] || usage_error '--num_slices must be at least 1'
  place=("--zone=$zone")
  if [ -n "$project" ]; then place+=("--project=$project"); fi
  units=("$name")
  if [ "$num_slices" -gt 1 ]; then
    for ((slice = 0; slice < num_slices; slice++)); do units[slice]=$name-$slice; done # so the TPU service names them
  fi
  case " ${ssh_flags[*]-} " in *--tunnel-through-iap*) gcloud_track=(alpha) ;; esac # only there
  if [ "$action" = train ]; then
    [ -n "$accelerator_type" ] || usage_error '--accelerator_type is missing'
    [ "${#arguments[@]}" -gt 0 ] || usage_error "give the flags of crossin $command after --"
    if [ -z "$runtime_version" ]; then runtime_version=$(runtime_version_of "$accelerator_type"); fi
    check_model_dir
  fi
  $dry_run || command -v gcloud >/dev/null ||
    fail 'gcloud is not on PATH; https://cloud.google.com/sdk/docs/install, then: gcloud auth login'
}

# The software with which Google wants each generation to be made; JAX itself is installed by pip.
runtime_version_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) usage_error "the software version for $1 is not known here; give --runtime_version" ;;
  esac
}

# ---- the actions ---------------------------------------------------------------------------------------------------

train() {
  if $dry_run; then
    note 'make the queued resource, unless it is there'
    create_resource
    note 'until its state is ACTIVE'
    ask_state
    show_run
    if $delete_when_done; then delete_resource; fi
    return
  fi
  local status=0
  asked=true
  share_ssh_key # here, where it may ask for a passphrase
  attend supervise || status=$?
  # 2: there is something that this run has no part in.
  if $delete_when_done && [ "$status" != 2 ]; then delete_resource || status=1; fi
  exit "$status"
}

status_resource() {
  asked=true
  ask_state
  if $dry_run || [ "$state" = ACTIVE ]; then show_state; fi
}

stop_resource() {
  asked=true
  stop_run
}

delete_resource() {
  asked=true
  if ! $dry_run; then tell "deleting $name and its nodes"; fi
  # --force: the nodes too.
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet || {
    ask_state
    if [ "$state" != NOT_FOUND ]; then
      say "$name could not be deleted; see above"
      return 1
    fi
  }
}

# ---- the queued resource -------------------------------------------------------------------------------------------

create_resource() {
  local nodes="--node-id=$name"
  if [ "$num_slices" -gt 1 ]; then nodes="--node-count=$num_slices"; fi # named NAME-0, NAME-1, ...
  made=true
  run gcloud compute tpus queued-resources create "$name" "${place[@]}" --quiet "$nodes" "--accelerator-type=$accelerator_type" \
    "--runtime-version=$runtime_version" ${tier:+"$tier"} ${create_flags[@]+"${create_flags[@]}"}
}

# ask_state: sets state (NOT_FOUND = there is none, UNKNOWN = no answer), initiator, reason, found_type.
ask_state() {
  local format="value[separator='|'](state.state,state.stateInitiator,state.failedData.error.message,tpu.nodeSpec[0].node.acceleratorType)"
  local question=(gcloud compute tpus queued-resources describe "$name" "${place[@]}" "--format=$format") answer
  if $dry_run; then
    ask "${question[@]}"
  elif answer=$("${question[@]}" </dev/null 2>"$scratch/describe.log"); then
    IFS='|' read -r state initiator reason found_type <<<"$answer"
  elif grep -q NOT_FOUND "$scratch/describe.log"; then
    state=NOT_FOUND initiator='' reason='' found_type=''
  else
    state=UNKNOWN initiator='' found_type='' reason=$(tail -n 3 "$scratch/describe.log" | tr '\n' ' ')
  fi
}

# ready_machines: makes the queued resource, or makes it anew after a preemption, and waits until it is ACTIVE.
ready_machines() {
  local shown='' unanswered=0 shown_at=$SECONDS
  made=false
  while true; do
    ask_state
    if [ "$state" != "$shown" ] || [ $((SECONDS - shown_at)) -ge 900 ]; then
      tell "$name: $state$(explain_state)"
      shown=$state shown_at=$SECONDS
    fi
    case $state in
      ACTIVE)
        [ -z "$found_type" ] || [ "${found_type##*/}" = "$accelerator_type" ] ||
          refuse "$name is a $found_type, not a $accelerator_type: give another --name, or delete it with --delete"
        share_ssh_key
        return
        ;;
      NOT_FOUND) create_resource || fail "$name could not be made; see above" ;;
      SUSPENDED) delete_resource || exit 1 ;;
      FAILED)
        if $made; then fail "$name could not be had: $reason"; fi
        delete_resource || exit 1
        ;;
      UNKNOWN)
        unanswered=$((unanswered + 1))
        [ "$unanswered" -lt 10 ] || fail "no answer about $name: $reason"
        ;;
    esac
    pause "$poll_seconds"
  done
}

explain_state() {
  case $state in
    NOT_FOUND) printf ' (not there; making it)' ;;
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES) printf ' (in the queue; Ctrl-C leaves it there)' ;;
    PROVISIONING) printf ' (its machines are being started)' ;;
    SUSPENDING | SUSPENDED) printf ' (preempted or taken away%s; it will be made anew)' "${initiator:+ by $initiator}" ;;
    FAILED | UNKNOWN) printf ' (%s)' "$reason" ;;
  esac
}

# machines_lost [thoroughly]: a resource that is not ACTIVE any more, or (thoroughly) a node that is not there any more.
machines_lost() {
  local node
  ask_state
  case $state in
    ACTIVE | UNKNOWN) ;;
    *)
      why="$name was preempted or taken away: it is $state"
      return 0
      ;;
  esac
  if [ "${1-}" != thoroughly ]; then return 1; fi
  for node in "${units[@]}"; do
    case $(gcloud compute tpus tpu-vm describe "$node" "${place[@]}" '--format=value(state)' 2>&1 </dev/null) in
      *PREEMPTED* | *TERMINATED* | *STOPPED* | *STOPPING* | *DELETING* | *NOT_FOUND*)
        why="node $node was preempted or stopped"
        if [ "$state" = ACTIVE ]; then wait_for_state_change; fi
        return 0
        ;;
    esac
  done
  return 1
}

# wait_for_state_change: the queued resource learns of the loss of a node a little later.
wait_for_state_change() {
  local waited=0
  while [ "$state" = ACTIVE ] && [ "$waited" -lt 30 ]; do
    pause "$poll_seconds"
    waited=$((waited + 1))
    ask_state
  done
  if [ "$state" = ACTIVE ]; then
    tell "$name still says ACTIVE without its nodes; deleting it"
    delete_resource || exit 1
  fi
}

# ---- its workers ---------------------------------------------------------------------------------------------------

unit_ssh() {
  ask gcloud ${gcloud_track[@]+"${gcloud_track[@]}"} compute tpus tpu-vm ssh "${units[$1]}" "${place[@]}" --worker=all --quiet \
    --strict-host-key-checking=no --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=20 \
    ${ssh_flags[@]+"${ssh_flags[@]}"} "--command=$2"
}

unit_copy() {
  if ! $dry_run; then share_ssh_key; fi
  run gcloud ${gcloud_track[@]+"${gcloud_track[@]}"} compute tpus tpu-vm scp "$2" "${units[$1]}:crossin_jax.tar.gz" "${place[@]}" \
    --worker=all --quiet --strict-host-key-checking=no --scp-flag=-oConnectTimeout=30 ${ssh_flags[@]+"${ssh_flags[@]}"}
}

unit_flags() { printf -- '--slice %s' "$1"; }

# Each process finds its number and the others by itself, and refuses to begin if they are not as many as there are workers.
process_flags() {
  if many_processes && [ "$total" != 1 ]; then
    printf -- '--multihost'
    if [ "$total" -gt 1 ]; then printf -- ' --process_count=%s' "$total"; fi # 0 in a dry run
  fi
}

worker_name() {
  if [ "$num_slices" = 1 ]; then printf 'worker %s' "${1#*/}"; else printf 'slice %s worker %s' "${1%/*}" "${1#*/}"; fi
}

# share_ssh_key: gcloud reaches several workers at once only if an ssh agent holds its key.
share_ssh_key() {
  local key=$HOME/.ssh/google_compute_engine known=0
  if [ ! -e "$key" ]; then return; fi # gcloud makes it when it first connects
  ssh-add -l >"$scratch/keys" 2>&1 || known=$?
  if [ "$known" = 2 ]; then # no agent runs
    eval "$(ssh-agent -s)" >/dev/null
    printf '%s' "$SSH_AGENT_PID" >"$scratch/agent"
  fi
  if ! grep -qF "$(ssh-keygen -lf "$key" | awk '{ print $2 }')" "$scratch/keys"; then
    ssh-add -q "$key" || fail "ssh-add $key failed, and without it gcloud cannot reach several workers at once"
  fi
}

# ---- the end -------------------------------------------------------------------------------------------------------

# leave: at every end. Says what exists and what it costs to forget it.
leave() {
  local status=$?
  trap '' INT TERM
  stop_following
  if $stopped && $delete_when_done; then delete_resource || true; fi
  if $asked && ! $dry_run; then
    ask_state
    case $state in
      NOT_FOUND) tell "nothing is left: $name does not exist" ;;
      UNKNOWN)
        say "UNKNOWN whether $name still exists ($reason). See, and delete:"
        say "  gcloud compute tpus queued-resources list $(quote "${place[@]}")"
        say "  $(delete_command)"
        ;;
      FAILED | SUSPENDED) say "$name is $state: it costs nothing, but its name stays taken until: $(delete_command)" ;;
      *)
        say "$name ($num_slices x ${found_type:-TPU}) is $state and COSTS MONEY, or will when it is granted, until it is deleted:"
        say "  $(delete_command)"
        ;;
    esac
  fi
  if [ -e "$scratch/agent" ]; then SSH_AGENT_PID=$(cat "$scratch/agent") ssh-agent -k >/dev/null 2>&1 || true; fi
  rm -rf "$scratch"
  exit "$status"
}

delete_command() { quote gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet; }

main "$@"
