# shellcheck shell=bash disable=SC2034  # options are set here for the scripts that source this
# Sourced by the scripts that start runs on other machines: messages, quoting, dry runs, what a run is made of.
# Works with bash 3.2 too, which is what macOS has.

readonly TOLD_TO_STOP=75 # exit status of a run that saved and wants to be started again

# What options set.
dry_run=false stop_on_interrupt=false install_in_turn=false
max_restarts=20
command=train      # of `crossin`
arguments=()       # for it
included=()        # files and folders to copy that git does not track
run_environment=() # NAME=VALUE for it
extra=''           # of pyproject.toml, to install
repository='' ref='' # what to install; '' = this working tree

# How things stand.
scratch='' reports='' package='' # a folder for this start, and files in it
told=false                       # see run_forwarding

# ---- words ---------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*" >&2; }

# tell TEXT: with the time since the script began.
tell() { printf '[%3dm%02ds] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*" >&2; }

fail() {
  say "${0##*/}: $*"
  exit 1
}

usage_error() {
  say "${0##*/}: $*"
  say "bash launch/${0##*/} --help shows every option and an example"
  exit 2
}

# refuse TEXT: what is there is not ours to touch; exit status 2, as for wrong usage.
refuse() {
  say "${0##*/}: $*"
  exit 2
}

# quote WORD...: as any POSIX shell reads it back.
quote() {
  local word left result='' mark="'"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*)
        left=$word word=$mark
        while [ "${left#*"$mark"}" != "$left" ]; do
          word="$word${left%%"$mark"*}'\\''" left=${left#*"$mark"}
        done
        word="$word$left$mark"
        ;;
    esac
    result="$result${result:+ }$word"
  done
  printf '%s' "$result"
}

# ask COMMAND...: runs it for what it prints; in a dry run prints the command instead.
ask() {
  if $dry_run; then
    printf '%s\n' "$(quote "$@")"
  else
    "$@" </dev/null
  fi
}

# run COMMAND...: runs it for what it does, what it prints being for people; in a dry run prints the command instead.
run() { if $dry_run; then ask "$@"; else "$@" </dev/null >&2; fi; }

# run_forwarding COMMAND...: runs it, hands SIGTERM and Ctrl-C on to it as SIGTERM, and returns its exit status; `told`
# says whether that happened.
run_forwarding() {
  local child status=0
  told=false
  "$@" &
  child=$!
  trap 'told=true; kill -TERM "$child" 2>/dev/null || true' TERM INT
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  wait "$child" || status=$?
  trap - TERM INT
  return "$status"
}

# note TEXT: a line of a dry run that is no command.
note() { if $dry_run; then printf '# %s\n' "$*"; fi; }

# show_help: the comment at the top of the script.
show_help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; }

# many_processes: whether the command can be several processes.
many_processes() { case $command in train | evaluate | generate | bench) ;; *) return 1 ;; esac; }

# need_value OPTION COUNT: COUNT words are left, the option itself among them.
need_value() { [ "$2" -ge 2 ] || usage_error "$1 needs a value"; }

make_scratch() {
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/crossin.XXXXXX")
  reports=$scratch/reports
  package=$scratch/crossin_jax.tar.gz
  : >"$reports"
  : >"$scratch/ssh.log"
}

# slurm_task COORDINATOR COMMAND ARGUMENT...: one process of a SLURM job. srun returns the highest status of all tasks, so that
# errors (1, 2) become 101 and 102: above 75.
slurm_task() {
  local coordinator=$1 status=0
  shift
  local flags=()
  if [ "$SLURM_NTASKS" -gt 1 ]; then # it detects SLURM too (--multihost), but only with these is the number checked
    flags=("--coordinator_address=$coordinator" "--process_count=$SLURM_NTASKS" "--process_index=$SLURM_PROCID")
  fi
  run_forwarding .venv/bin/crossin "$@" ${flags[@]+"${flags[@]}"} || status=$?
  if $told && [ "$status" = 143 ]; then status=$TOLD_TO_STOP; fi # it had not begun to listen
  if [ "$status" -gt 0 ] && [ "$status" -lt 27 ]; then status=$((status + 100)); fi
  exit "$status"
}

# include PATH: of --include.
include() {
  case $1 in /* | ../*) usage_error "--include $1 must be a path below $PWD" ;; esac
  [ -e "$1" ] || usage_error "--include $1 is not there"
  included+=("$1")
}

# ---- what the run is made of ---------------------------------------------------------------------------------------

# given_value NAME: the value of --gin.NAME=VALUE among the arguments, without its quotes; fails if there is none.
given_value() {
  local argument found=''
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    case $argument in
      "--gin.$1="*) found=${argument#*=} ;;
      "--gin_bindings=$1 = "*) found=${argument#*" = "} ;;
    esac
  done
  found=${found#[\'\"]}
  found=${found%[\'\"]}
  [ -n "$found" ] && printf '%s' "$found"
}

# Refuses a MODEL_DIR that a preemption would take away.
check_model_dir() {
  local model_dir
  model_dir=$(given_value MODEL_DIR) || return 0
  case $model_dir in
    *://*) ;;
    /*) say "note: MODEL_DIR $model_dir must be one folder that all workers share and that outlives them" ;;
    *)
      usage_error "MODEL_DIR $model_dir would be a folder on each worker, lost with it;" \
        "give --gin.MODEL_DIR=\"'gs://BUCKET/RUN'\" or an absolute path that all workers share"
      ;;
  esac
}

# files_to_copy: what git tracks, as it is now, what --include names, and the gin files among the arguments, each ended by
# a zero byte.
files_to_copy() {
  local argument file previous=''
  {
    git ls-files -z
    for file in ${included[@]+"${included[@]}"}; do find "$file" -type f -print0; done
    for argument in ${arguments[@]+"${arguments[@]}"}; do
      file=''
      case $argument in --gin_file=*) file=${argument#*=} ;; esac
      if [ "$previous" = --gin_file ]; then file=$argument; fi
      case $file in '' | /* | ../*) ;; *) printf '%s\0' "$file" ;; esac
      previous=$argument
    done
  } | sort -zu | while IFS= read -r -d '' file; do
    if [ -f "$file" ]; then printf '%s\0' "$file"; fi
  done
}

pack_project() {
  git rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
    usage_error "$PWD is no git checkout, so it is not known what to copy; give --repository URL (and --ref)"
  files_to_copy | tar --null -T - -cf - | gzip -n >"$package"
}

# run_digest: tells this run from another one on the same machines.
run_digest() {
  quote "$command" ${run_environment[@]+"${run_environment[@]}"} ${arguments[@]+"${arguments[@]}"} | cksum | tr ' ' '-'
}
