#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that xpk made: builds an image of this working tree, pushes it, and hands xpk a workload that is
# started again after preemptions and after exit status 75. Needs docker, gcloud and xpk (pip install xpk).
#
#   bash launch/gke_xpk.sh --cluster pods --workload first --zone us-west4-a --project my-project --tpu_type v5litepod-16 \
#     --image us-west4-docker.pkg.dev/my-project/images/crossin -- \
#     --gin_file=gin_configs/runs/crossin_60m.gin --gin.DATA_DIR="'gs://bucket/prepared'" --gin.MODEL_DIR="'gs://bucket/first'" ...
#
# A cluster for it: xpk cluster create --cluster pods --tpu-type v5litepod-16 --num-slices 2 --spot --zone us-west4-a --project my-project
# What stands after -- goes to `crossin train` as it is.
#
#   --cluster, --workload     names; --workload is the run's
#   --zone, --project         of the cluster
#   --tpu_type TYPE           v5litepod-16, v5p-32, v6e-64, ...
#   --num_slices N            slices of that type, as one run (1)
#   --image IMAGE             where the image goes in Artifact Registry, without a tag
#   --command COMMAND         of `crossin` (train)
#   --max_restarts N          of the workload (50)
#   --grace_seconds N         between the notice of a preemption and the end, for saving (300)
#   --xpk_flag FLAG           more for `xpk workload create`, such as --priority=high; may be repeated
#   --dry_run                 print every command, run none
# Instead of a run, with --cluster, --workload, --zone, --project:
#   --status | --delete       list the workload | delete it
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

cluster='' workload='' zone='' project='' tpu_type='' num_slices=1 image='' grace_seconds=300 xpk_flags=() action=submit

main() {
  read_options "$@"
  make_scratch
  trap 'rm -rf "$scratch"' EXIT
  "$action"
}

read_options() {
  local option
  max_restarts=50
  while [ $# -gt 0 ]; do
    case $1 in
      --cluster | --workload | --zone | --project | --tpu_type | --num_slices | --image | --command | --max_restarts | --grace_seconds)
        need_value "$1" $#
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --xpk_flag)
        need_value "$1" $#
        xpk_flags+=("$2")
        shift
        ;;
      --dry_run) dry_run=true ;;
      --status | --delete) action=${1#--}_workload ;;
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
  for option in cluster workload zone project; do [ -n "${!option}" ] || usage_error "--$option is missing"; done
  if [ "$action" = submit ]; then
    for option in tpu_type image; do [ -n "${!option}" ] || usage_error "--$option is missing"; done
    [ "${#arguments[@]}" -gt 0 ] || usage_error "give the flags of crossin $command after --"
    case "${arguments[*]}" in *$'\n'*) usage_error 'xpk cannot pass on an argument that holds a line break' ;; esac
    check_model_dir
  fi
}

submit() {
  local tagged=$image:$workload
  if many_processes; then arguments+=(--multihost); fi
  build_image "$tagged"
  run docker push "$tagged"
  # exec: so that the notice of a preemption reaches crossin and not a shell before it.
  run xpk workload create "--cluster=$cluster" "--workload=$workload" "--zone=$zone" "--project=$project" \
    "--tpu-type=$tpu_type" "--num-slices=$num_slices" "--docker-image=$tagged" "--max-restarts=$max_restarts" \
    "--restart-on-exit-codes=$TOLD_TO_STOP" "--termination-grace-period-seconds=$grace_seconds" \
    ${xpk_flags[@]+"${xpk_flags[@]}"} "--command=exec crossin $(quote "$command" "${arguments[@]}")"
  if ! $dry_run; then
    say "$workload is in the queue of $cluster. The cluster costs money while its nodes exist; the workload ends with:"
    say "  bash launch/gke_xpk.sh --cluster $cluster --workload $workload --zone $zone --project $project --delete"
  fi
}

build_image() {
  local folder=$scratch/image
  if $dry_run; then
    note "what git tracks, in a folder, and this Dockerfile: $(dockerfile | tr '\n' ';')"
    ask docker build --tag "$1" FOLDER
    return
  fi
  pack_project
  mkdir "$folder"
  tar -xzf "$package" -C "$folder"
  dockerfile >"$folder/Dockerfile"
  run docker build --platform=linux/amd64 --tag "$1" "$folder"
}

dockerfile() {
  printf '%s\n' 'FROM python:3.12-slim' 'WORKDIR /app' 'COPY . .' "RUN pip install --no-cache-dir --editable '.[tpu]'"
}

status_workload() { run xpk workload list "--cluster=$cluster" "--zone=$zone" "--project=$project" "--filter-by-job=$workload"; }

delete_workload() { run xpk workload delete "--cluster=$cluster" "--zone=$zone" "--project=$project" "--workload=$workload"; }

main "$@"
