"""Trains on TPUs of a GKE cluster: `bash launch/gke_xpk.sh --help`."""

import os
import shlex
import subprocess
import sys
import tempfile

import common
from common import Options

_HELP = """\
Trains on TPUs of a GKE cluster that xpk created: builds an image of this working tree, pushes it,
and submits a workload that restarts after preemptions and after exit status 75. Needs docker,
gcloud and xpk (pip install xpk).

  bash launch/gke_xpk.sh --cluster pods --workload first --zone us-west4-a --project my-project \\
    --tpu_type v5litepod-16 --image us-west4-docker.pkg.dev/my-project/images/crossin -- \\
    FILE.gin DATA_DIR=gs://bucket/prepared MODEL_DIR=gs://bucket/first ...

To create a cluster:
  xpk cluster create --cluster pods --tpu-type v5litepod-16 --num-slices 2 --spot \\
    --zone us-west4-a --project my-project
What follows -- goes to `crossin train`.

  --cluster NAME
  --workload NAME           of the run
  --zone ZONE               of the cluster
  --project PROJECT         of the cluster
  --tpu_type TYPE           v5litepod-16, v5p-32, v6e-64, ...
  --num_slices N            slices of that type, as one run (1)
  --image IMAGE             where the image goes in Artifact Registry, without a tag
  --command COMMAND         of `crossin` (train)
  --max_restarts N          of the workload (50)
  --grace_seconds N         between the notice of a preemption and the end, for saving (300)
  --xpk_flag FLAG ...       for `xpk workload create`, such as --priority=high; may be repeated
  --dry_run                 print every command, run none
Instead of a run, with --cluster, --workload, --zone, --project:
  --status                  list the workload
  --delete                  delete the workload"""
_DOCKERFILE = """\
FROM python:3.12-slim
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir --editable '.[tpu]'
"""


def run(options: Options, *words: str) -> None:
  """Runs a command or, in a dry run, prints it."""
  if options.dry_run:
    return common.show(words)
  status = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
  if status:
    common.fail(f'{shlex.join(words[:2])} failed with exit status {status}; see above', status)


def build_image(options: Options, tagged: str) -> None:
  """Builds an image of the working tree."""
  build = ['docker', 'build', '--platform=linux/amd64', '--tag', tagged]
  if options.dry_run:
    dockerfile = _DOCKERFILE.replace('\n', ';')
    print(f'# tracked files, in a folder, and this Dockerfile: {dockerfile}', flush=True)
    return common.show([*build, 'FOLDER'])
  with tempfile.TemporaryDirectory(prefix='crossin.') as folder:
    package = os.path.join(folder, 'crossin_jax.tar.gz')
    common.pack(options, package)
    subprocess.run(['tar', '-xzf', package, '-C', folder], check=True)
    os.remove(package)
    with open(os.path.join(folder, 'Dockerfile'), 'w') as file:
      file.write(_DOCKERFILE)
    run(options, *build, folder)


def submit(options: Options, place: list[str]) -> None:
  """Builds and pushes the image, and creates the workload."""
  tagged = f'{options.image}:{options.workload}'
  build_image(options, tagged)
  run(options, 'docker', 'push', tagged)
  multihost = ['--multihost'] if common.many_processes(options) else []
  crossin = shlex.join(['crossin', options.command, *options.arguments, *multihost])
  flags = [
    f'--workload={options.workload}',
    f'--tpu-type={options.tpu_type}',
    f'--num-slices={options.num_slices}',
    f'--docker-image={tagged}',
    f'--max-restarts={options.max_restarts}',
    f'--restart-on-exit-codes={common.INTERRUPTED}',
    f'--termination-grace-period-seconds={options.grace_seconds}',
  ]
  # exec: so that the notice of a preemption reaches crossin and not a shell.
  command = f'--command=exec {crossin}'
  run(options, 'xpk', 'workload', 'create', *place, *flags, *options.xpk_flag, command)
  if not options.dry_run:
    common.say(
      f'{options.workload} is in the queue of {options.cluster}. The cluster costs money while its '
      'nodes exist; to delete the workload:\n  bash launch/gke_xpk.sh '
      f'{shlex.join(place)} --workload={options.workload} --delete'.replace('=', ' ')
    )


def main() -> None:
  options = common.parse(_HELP, num_slices=1, max_restarts=50, grace_seconds=300)
  common.require(options, 'cluster', 'workload', 'zone', 'project')
  place = [f'--{name}={getattr(options, name)}' for name in ('cluster', 'zone', 'project')]
  if options.status:
    run(options, 'xpk', 'workload', 'list', *place, f'--filter-by-job={options.workload}')
  elif options.delete:
    run(options, 'xpk', 'workload', 'delete', *place, f'--workload={options.workload}')
  else:
    common.require(options, 'tpu_type', 'image')
    common.check_arguments(options)
    if any('\n' in word for word in options.arguments):
      common.usage_error('xpk cannot pass on an argument that contains a line break')
    submit(options, place)


if __name__ == '__main__':
  common.exit_after(main)
