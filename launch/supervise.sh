# shellcheck shell=bash disable=SC2034,SC2154  # options are set and units defined by the scripts that source this
# Sourced, after common.sh, by the scripts that look after one run on workers reached by ssh.
#
#   are the machines there? -> is the run at work there? -> copy, install, start -> follow worker 0
#        ^                                                                               |
#        +----------- told to stop and saved (75), or a machine was lost ----------------+--> finished, or failed
#
# A unit is what one ssh command reaches: a TPU slice with all its workers, or a host. The script that sources this defines
#   units                 array of their names
#   unit_ssh I COMMAND    runs a shell command on every worker of unit I
#   unit_copy I FILE      copies FILE to the home of every worker of unit I, as crossin_jax.tar.gz
#   unit_flags I          prints the flags of worker.sh that say which unit it is in
#   process_flags I       prints the flags of `crossin` that say which process it is on unit I
#   worker_name KEY       prints what people call worker KEY, 'unit/number'
#   ready_machines        returns when the machines are there
#   machines_lost         whether they are gone; sets `why`. With 'thoroughly' it looks at each of them

# For tests and impatient people.
poll_seconds=${CROSSIN_POLL_SECONDS:-20}     # between two looks at the machines
settle_seconds=${CROSSIN_SETTLE_SECONDS:-90} # for the others to end too, or for a loss to be known, after one ended badly
if [ "$poll_seconds" = 0 ]; then tick=0.1; else tick=1; fi

attended='' rejoined=false stopped=false outcome='' why='' total=0 # workers

# ---- the shell commands that workers are given, for unit I ---------------------------------------------------------

# worker_command I ACTION ARGUMENT...: an action of launch/worker.sh.
worker_command() {
  local unit=$1
  shift
  printf 'bash crossin_jax/launch/worker.sh %s %s' "$(unit_flags "$unit")" "$(quote "$@")"
}

state_command() { printf '[ ! -e crossin_jax/launch/worker.sh ] || %s' "$(worker_command "$1" state)"; }

# Unpacks or clones the project, keeping its .venv, and installs it.
install_command() {
  local get='mkdir crossin_jax.new && tar -xzf crossin_jax.tar.gz -C crossin_jax.new'
  if [ -n "$repository" ]; then
    get="git clone --quiet $(quote "$repository") crossin_jax.new"
    get="$get && git -C crossin_jax.new checkout --quiet $(quote "${ref:-HEAD}")"
  fi
  printf '%s' "rm -rf crossin_jax.new && $get" \
    ' && { [ ! -d crossin_jax/.venv ] || mv crossin_jax/.venv crossin_jax.new/.venv; }' \
    " && rm -rf crossin_jax && mv crossin_jax.new crossin_jax && $(worker_command "$1" install "$extra")"
}

start_command() {
  local place
  place=$(process_flags "$1")
  printf '%s%s' "$(worker_command "$1" start "$(run_digest)" ${run_environment[@]+"${run_environment[@]}"} -- \
    "$command" ${arguments[@]+"${arguments[@]}"})" "${place:+ $place}"
}

# ---- every worker at once ------------------------------------------------------------------------------------------

# on_unit I MAKE ARGUMENT...: runs the command that `MAKE I ARGUMENT...` prints on every worker of unit I.
# What the workers report lies in $reports, what ssh says in $scratch/ssh.log.
on_unit() {
  local unit=$1 make=$2
  shift 2
  if $dry_run; then
    unit_ssh "$unit" "$("$make" "$unit" "$@")"
  else
    unit_ssh "$unit" "$("$make" "$unit" "$@")" </dev/null 2>>"$scratch/ssh.log" | read_reports
  fi
}

# on_all MAKE ARGUMENT...: on all units; fails if any fails.
on_all() {
  local i pid failed=false
  local jobs=()
  : >"$reports"
  : >"$scratch/ssh.log"
  for i in "${!units[@]}"; do
    if $dry_run; then
      on_unit "$i" "$@"
    else
      on_unit "$i" "$@" &
      jobs+=($!)
    fi
  done
  for pid in ${jobs[@]+"${jobs[@]}"}; do wait "$pid" || failed=true; done
  ! $failed
}

# read_reports: the lines of workers. '@crossin WORD KEY REST' is meant for this script; the rest is shown.
read_reports() {
  local line word key rest
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      '@crossin '*)
        read -r _ word key rest <<<"$line"
        if [ "$word" = log ]; then
          say "$(worker_name "$key") | ${line#"@crossin log $key "}"
        else
          printf '%s %s %s\n' "$word" "$key" "$rest" >>"$reports"
        fi
        ;;
      *) say "$line" ;;
    esac
  done
}

# reported WORD: how many workers have reported it, as 'WORD KEY COUNT ...'.
reported() { grep -c "^$1 " "$reports" || true; }

# workers_expected: how many there are; each says how many its unit has. 0 = none has reported.
workers_expected() {
  local each
  each=$(awk 'NR == 1 { print $3 }' "$reports")
  echo $((${each:-0} * ${#units[@]}))
}

show_ssh_log() {
  if [ -s "$scratch/ssh.log" ]; then
    say 'the last lines of ssh:'
    tail -n 12 "$scratch/ssh.log" | sed 's/^/  /' >&2
  fi
}

# ---- one run -------------------------------------------------------------------------------------------------------

# supervise: runs it to its end. Returns 0 finished, 1 failed, 75 when the restarts are used up.
supervise() {
  local restarts=0
  while true; do
    ready_machines
    outcome=again
    if start_run; then watch_run; fi
    case $outcome in
      finished)
        tell "crossin $command has finished on every worker"
        return 0
        ;;
      failed)
        explain_failure
        tell 'stopping it on the other workers'
        on_all worker_command stop 30 || true
        return 1
        ;;
    esac
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "$max_restarts" ]; then
      say "$why. Not started again: --max_restarts $max_restarts is reached." \
        'The same command goes on from the last checkpoint'
      return "$TOLD_TO_STOP"
    fi
    tell "$why; starting again ($restarts of at most $max_restarts)"
  done
}

# start_run: starts it on every worker, or finds it at work already. Fails, with the reason in `why`, if not on all.
start_run() {
  local digest expected
  digest=$(run_digest)
  why='not every worker answers'
  if ! find_workers; then return 1; fi
  expected=$(workers_expected)
  rejoined=false
  if grep -q '^state .* running ' "$reports"; then
    if grep '^state .* running ' "$reports" | grep -qv " $digest\$"; then
      refuse 'another run is at work there: stop it with --stop, or take other machines'
    fi
    if [ "$(reported state)" = "$expected" ] && ! grep '^state ' "$reports" | grep -qv ' running '; then
      tell 'the run is at work there already; following it'
      rejoined=true
      : >"$scratch/at_work"
      return 0
    fi
    tell 'the run is at work on some workers only; stopping it there, to start it on all'
    on_all worker_command stop 60 || true
  fi
  tell 'installing on every worker (some minutes the first time)'
  why='the project could not be brought to every worker'
  install_on_all || return 1
  why='the run could not be started on every worker'
  : >"$scratch/at_work"
  if ! on_all start_command; then
    if ! machines_lost; then show_ssh_log; fi
    return 1
  fi
  tell "started crossin $command on $(workers_expected) worker(s)"
}

# find_workers: asks all for their state until all answer. New machines need a while.
find_workers() {
  local attempt
  for attempt in 1 2 3 4 5; do
    if on_all state_command; then return 0; fi
    if machines_lost; then return 1; fi
    tell "not every worker answers (attempt $attempt of 5)"
    pause "$poll_seconds"
  done
  show_ssh_log
  return 1
}

install_on_all() {
  local i
  if [ -z "$repository" ]; then
    note 'what git tracks, as crossin_jax.tar.gz'
    if ! $dry_run; then pack_project || fail 'packing the working tree failed'; fi
    for i in "${!units[@]}"; do
      if ! unit_copy "$i" "$package" 2>>"$scratch/ssh.log"; then
        if ! machines_lost; then show_ssh_log; fi
        return 1
      fi
    done
  fi
  if $install_in_turn; then # hosts may share their home
    : >"$reports"
    for i in "${!units[@]}"; do on_unit "$i" install_command || break; done
  else
    on_all install_command || true
  fi
  if $dry_run; then return 0; fi
  total=$(workers_expected)
  if [ "$total" -gt 0 ] && [ "$(reported installed)" = "$total" ]; then return 0; fi
  if grep -q '^broken ' "$reports"; then fail 'installing failed on a worker; its last lines are above'; fi
  if ! machines_lost; then show_ssh_log; fi
  return 1
}

# watch_run: shows the log of worker 0 until the run has ended everywhere. Sets `outcome` to finished, failed or again,
# the last with the reason in `why`.
watch_run() {
  local looked=$SECONDS judge_at='' cuts=0 ended expected
  outcome=''
  follow_all
  while [ -z "$outcome" ]; do
    pause "$tick"
    ended=$(reported ended)
    expected=$(workers_expected)
    if [ "$ended" -gt 0 ] && [ "$ended" -ge "$expected" ]; then
      judge_ends
    elif [ -n "$judge_at" ] && [ "$SECONDS" -ge "$judge_at" ]; then
      judge_ends
    elif [ -z "$judge_at" ] && failed_worker >/dev/null; then
      judge_at=$((SECONDS + settle_seconds)) # the others end too, or a machine turns out to be lost
    elif [ -z "$judge_at" ] && grep -q "^ended .* $TOLD_TO_STOP\$" "$reports"; then
      judge_at=$((SECONDS + 4 * settle_seconds)) # they may be saving
    elif [ $((SECONDS - looked)) -ge "$poll_seconds" ]; then
      looked=$SECONDS
      if machines_lost; then outcome=again; fi
    fi
    if [ -z "$outcome" ] && ! followers_alive && [ "$(reported ended)" = "$ended" ]; then
      cuts=$((cuts + 1))
      reconnect "$cuts"
    fi
  done
  stop_following
  rm "$scratch/at_work"
}

follow_all() {
  local i from=start
  if $rejoined; then from=end; fi
  : >"$reports"
  : >"$scratch/ssh.log"
  : >"$scratch/following"
  set -m # each in a process group of its own, so that all of it can be ended
  for i in "${!units[@]}"; do
    (on_unit "$i" worker_command follow "$from") &
    echo $! >>"$scratch/following"
  done
  set +m
}

stop_following() {
  local pid
  if [ -e "$scratch/following" ]; then
    while read -r pid; do
      kill -TERM -- "-$pid" 2>/dev/null || true
      wait "$pid" 2>/dev/null || true
    done <"$scratch/following"
    rm "$scratch/following"
  fi
}

followers_alive() {
  local pid
  while read -r pid; do
    if kill -0 "$pid" 2>/dev/null; then return 0; fi
  done <"$scratch/following"
  return 1
}

# reconnect TIME: after the connections broke off for the TIMEth time.
reconnect() {
  if machines_lost; then
    outcome=again
  elif [ "$1" -gt 5 ]; then
    show_ssh_log
    outcome=again why='the connection to the workers broke off again and again'
  else
    tell 'the connection to a worker broke off; the run goes on. Connecting again'
    stop_following
    pause "$poll_seconds"
    rejoined=true
    follow_all
  fi
}

# judge_ends: what the ends of the workers mean together. A machine that went away explains every error of the others.
judge_ends() {
  local gone
  gone=$(awk '$1 == "ended" && $4 == "gone" { print $2; exit }' "$reports")
  if machines_lost thoroughly; then
    outcome=again
  elif [ -n "$gone" ]; then
    outcome=again why="$(worker_name "$gone") lost its processes: its machine was started anew"
  elif [ "$(reported ended)" -lt "$(workers_expected)" ] && ! reports=$scratch/answers on_all state_command; then
    outcome=again why='a worker no longer answers'
  elif failed_worker >/dev/null; then
    outcome=failed
  elif grep -q "^ended .* $TOLD_TO_STOP\$" "$reports"; then
    outcome=again why="the run was told to stop and saved (exit status $TOLD_TO_STOP)"
  else
    outcome=finished
  fi
}

# failed_worker: prints 'KEY STATUS' of the first worker that ended with an error; fails if none did.
failed_worker() {
  awk -v stop="$TOLD_TO_STOP" '$1 == "ended" && $4 != 0 && $4 != stop && $4 != "gone" { print $2, $4; found = 1; exit }
    END { exit !found }' "$reports"
}

explain_failure() {
  local key status hint=''
  read -r key status <<<"$(failed_worker)"
  case $status in
    2) hint=' (an option or a gin file is wrong)' ;;
    137) hint=' (killed from outside, as the kernel does when memory is used up)' ;;
    134 | 139) hint=' (it crashed)' ;;
  esac
  say "$(worker_name "$key") ended with exit status $status$hint. Its last lines are above, its whole log in ~/.crossin_run there"
}

# attend FUNCTION: runs it in a process of its own, while this one waits for nothing but its end and signals. bash 5.2 loses
# a signal that arrives while it expands two $( ) in one command.
attend() {
  local status=0
  set -m # in a process group of its own
  ("$@") &
  attended=$!
  set +m
  wait "$attended" || status=$?
  attended=''
  return "$status"
}

# pause SECONDS: and the end, if the process that attends to this one was killed: someone may start it anew.
pause() {
  sleep "$1"
  if ! kill -0 $$ 2>/dev/null; then
    stop_following
    exit "$TOLD_TO_STOP"
  fi
}

# interrupted: Ctrl-C or SIGTERM, to this script.
interrupted() {
  trap 'exit $TOLD_TO_STOP' INT TERM # a second time: leave at once
  if [ -n "$attended" ]; then kill -TERM -- "-$attended" 2>/dev/null || true; fi
  stop_following
  if [ ! -e "$scratch/at_work" ]; then
    say 'interrupted; the same command goes on'
  elif $stop_on_interrupt; then
    say 'telling the run to save and stop; Ctrl-C again leaves it to itself'
    stopped=true
    on_all worker_command stop 900 || show_ssh_log
    say 'the run was told to stop; the same command goes on from where it saved'
  else
    say 'no longer following. THE RUN GOES ON: the same command follows it again, with --stop it is told to save and stop'
  fi
  exit "$TOLD_TO_STOP"
}

# show_state, stop_run: of the run that is at work on the machines.
show_state() {
  local key rest
  on_all state_command || show_ssh_log
  while read -r _ key _ rest; do say "$(worker_name "$key"): $rest"; done <"$reports"
}

stop_run() {
  if ! on_all worker_command stop 900; then
    show_ssh_log
    fail 'not every worker was reached; their runs may go on'
  fi
  while read -r _ key _ rest; do say "$(worker_name "$key"): $rest"; done <"$reports"
}

# show_run: in a dry run, the commands of one start.
show_run() {
  note 'is a run at work there?'
  on_all state_command
  note 'if not: copy, install, start'
  install_on_all
  on_all start_command
  note "follow it until it has ended on every worker; after exit status $TOLD_TO_STOP or a loss from the beginning, at most $max_restarts times"
  on_all worker_command follow start
}
