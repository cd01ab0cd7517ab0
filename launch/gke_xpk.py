"""Trains on TPUs of a GKE cluster: `bash launch/gke_xpk.sh --help`."""

import argparse
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

import common

_DESCRIPTION = """\
Trains on TPUs of a GKE cluster that xpk created: builds an image of this working tree, pushes it, and
submits an xpk workload that restarts after preemptions and after exit status 75. Needs docker, gcloud
and xpk (pip install xpk).

  bash launch/gke_xpk.sh --cluster pods --workload first --zone us-west4-a --project my-project \\
    --tpu_type v5litepod-16 --image us-west4-docker.pkg.dev/my-project/images/crossin -- \\
    --gin_file=gin_configs/runs/crossin_60m.gin --gin.DATA_DIR="'gs://bucket/prepared'" \\
    --gin.MODEL_DIR="'gs://bucket/first'" ...

To create a cluster: xpk cluster create --cluster pods --tpu-type v5litepod-16 --num-slices 2 --spot \\
  --zone us-west4-a --project my-project
What follows -- goes to `crossin train` unchanged."""
_DOCKERFILE = """\
FROM python:3.12-slim
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir --editable '.[tpu]'
"""


def read_options(words: list[str]) -> argparse.Namespace:
  """The options, checked."""
  parser = common.Parser(_DESCRIPTION)
  parser.add('cluster', 'NAME')
  parser.add('workload', 'NAME', 'of the run')
  parser.add('zone', 'ZONE', 'of the cluster')
  parser.add('project', 'PROJECT', 'of the cluster')
  parser.add('tpu_type', 'TYPE', 'v5litepod-16, v5p-32, v6e-64, ...')
  parser.add('num_slices', 'N', 'slices of that type, as one run (1)', default='1')
  parser.add('image', 'IMAGE', 'its address in Artifact Registry, without a tag')
  text = 'between the notice of a preemption and the end, for saving (300)'
  parser.add('grace_seconds', 'N', text, default='300')
  text = 'more for `xpk workload create`, such as --priority=high; may be repeated'
  parser.add('xpk_flag', 'FLAG', text, action='append')
  parser.add_shared('command', 'max_restarts', 'dry_run', max_restarts=50)
  parser.add_actions(status='list the workload', delete='delete the workload')
  options = parser.parse(words)
  options.env = []
  parser.require(options, 'cluster', 'workload', 'zone', 'project')
  if not options.action:
    parser.require(options, 'tpu_type', 'image', 'arguments')
    if any('\n' in word for word in options.arguments):
      parser.error('xpk cannot pass on an argument that contains a line break')
    parser.check_model_dir(options)
  return options


def run(options: argparse.Namespace, *words: str) -> None:
  """Runs a command or, in a dry run, prints it."""
  if options.dry_run:
    return common.show(words)
  status = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
  if status:
    common.fail(f'{shlex.join(words[:3])} failed with exit status {status}; see above', status)


def build_image(options: argparse.Namespace, tagged: str) -> None:
  """Builds an image of the working tree."""
  if options.dry_run:
    dockerfile = _DOCKERFILE.replace('\n', ';')
    common.note(f'tracked files, in a folder, and this Dockerfile: {dockerfile}')
    return common.show(['docker', 'build', '--platform=linux/amd64', '--tag', tagged, 'FOLDER'])
  with tempfile.TemporaryDirectory(prefix='crossin.') as scratch:
    folder, package = os.path.join(scratch, 'image'), os.path.join(scratch, 'package.tar.gz')
    common.pack(options, package)
    os.mkdir(folder)
    subprocess.run(['tar', '-xzf', package, '-C', folder], check=True)
    pathlib.Path(folder, 'Dockerfile').write_text(_DOCKERFILE)
    run(options, 'docker', 'build', '--platform=linux/amd64', '--tag', tagged, folder)


def submit(options: argparse.Namespace, place: list[str]) -> None:
  """Builds and pushes the image and creates the workload."""
  tagged = f'{options.image}:{options.workload}'
  multihost = ['--multihost'] if common.many_processes(options.command) else []
  build_image(options, tagged)
  run(options, 'docker', 'push', tagged)
  crossin = shlex.join(['crossin', options.command, *options.arguments, *multihost])
  flags = [
    f'--workload={options.workload}',
    f'--tpu-type={options.tpu_type}',
    f'--num-slices={options.num_slices}',
    f'--docker-image={tagged}',
    f'--max-restarts={options.max_restarts}',
    f'--restart-on-exit-codes={common.INTERRUPTED}',
    f'--termination-grace-period-seconds={options.grace_seconds}',
    *options.xpk_flag,
    f'--command=exec {crossin}',  # exec: so that the notice of a preemption reaches crossin
  ]
  run(options, 'xpk', 'workload', 'create', *place, *flags)
  if not options.dry_run:
    flags = [
      f'--{name} {getattr(options, name)}' for name in ('cluster', 'workload', 'zone', 'project')
    ]
    common.say(
      f'{options.workload} is in the queue of {options.cluster}. The cluster costs money while its '
      f'nodes exist; to delete the workload:\n  bash launch/gke_xpk.sh {" ".join(flags)} --delete'
    )


def main() -> None:
  options = read_options(sys.argv[1:])
  place = [f'--{name}={getattr(options, name)}' for name in ('cluster', 'zone', 'project')]
  if not options.action:
    submit(options, place)
  elif options.action == 'status':
    run(options, 'xpk', 'workload', 'list', *place, f'--filter-by-job={options.workload}')
  else:
    run(options, 'xpk', 'workload', 'delete', *place, f'--workload={options.workload}')


if __name__ == '__main__':
  main()
