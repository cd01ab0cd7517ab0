"""`crossin sweep --launcher tpu|slurm`: the sweep itself, on stand-ins for gcloud and SLURM."""

import json
import pathlib
import shlex
import signal

import pytest
from stand_ins import Cloud

from crossin_jax import config
from crossin_jax.errors import Interrupted
from crossin_jax.sweep import command as sweep_command
from crossin_jax.sweep import running
from crossin_jax.sweep import table as sweep_table
from crossin_jax.sweep.points import Settings, make_points
from crossin_jax.workflow import jobs, launchers

TPU = ['--name', 'pod', '--zone', 'z', '--accelerator_type', 'v5litepod-8', '--spot']

# crossin on a worker or in a job: writes what evaluation would, where it is told to.
CROSSIN = """#!/bin/bash
printf '%s\\0' "$@" >"$CLOUD/started.$(date +%s%N)"
echo "$1 on $(cat "$HOME/name" 2>/dev/null || echo a node)"
[ ! -e "$CLOUD/broken.$1" ] || { echo "no room for it"; exit 1; }
for word; do case $word in --output_dir=*) out=${word#*=} ;; esac; done
if [ "$1" = evaluate ]; then
  out=${out/gs:\\//$CLOUD/gs}
  mkdir -p "$out" && echo '{"eval/heldout/loss": 2.5}' >"$out/figures.json"
fi
"""
# A job is run by sbatch itself, to its end; squeue says once that it is pending.
SBATCH = """#!/bin/bash
echo "sbatch $*" >>"$CLOUD/slurm.log"
number=$(($(ls "$CLOUD"/job.* 2>/dev/null | wc -l) + 1))
while [ "${1#--}" != "$1" ]; do case $1 in --output=*) log=${1#*=} ;; esac; shift; done
[ "$1" = "$PWD/launch/slurm_train.sbatch" ] || exit 1
command=$3
shift 4
echo PENDING >"$CLOUD/job.$number"
if [ ! -e "$CLOUD/stuck" ]; then
  if "$CLOUD/worker_crossin" "$command" "$@" >"$log" 2>&1; then echo COMPLETED; else echo FAILED; fi >"$CLOUD/job.$number.end"
fi
echo "$number;cluster"
"""
SQUEUE = """#!/bin/bash
echo "squeue $*" >>"$CLOUD/slurm.log"
number=$(echo "$*" | sed 's/.*--jobs=\\([0-9]*\\).*/\\1/')
[ -e "$CLOUD/job.$number" ] || { echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; }
cat "$CLOUD/job.$number"
if [ -e "$CLOUD/job.$number.end" ]; then mv "$CLOUD/job.$number.end" "$CLOUD/job.$number"; fi
"""
SACCT = """#!/bin/bash
number=$(echo "$*" | sed 's/.*--jobs=\\([0-9]*\\).*/\\1/')
cat "$CLOUD/job.$number"
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  one = Cloud(tmp_path, workers=1, states=['ACTIVE'])
  one.script('worker_crossin', CROSSIN)
  for name, text in (('sbatch', SBATCH), ('squeue', SQUEUE), ('sacct', SACCT)):
    one.script(f'bin/{name}', text)
  for name, value in one.environment().items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(launchers, 'ROOT', str(one.project))
  yield one
  one.clean()


class Prepared:
  """Mixed into a launcher: preparing is writing what a mixture leaves."""

  def run_here(self, log, arguments, values, bindings):
    flags = dict(a.split('=', 1) for a in arguments if '=' in a)
    out = pathlib.Path(flags['--output_dir'])
    (out / 'mixtures').mkdir(parents=True, exist_ok=True)
    (out / 'mixtures' / f'{flags["--mixture"]}.json').write_text('{}')
    (out / 'tasks' / 'task').mkdir(exist_ok=True)
    (out / 'tasks' / 'task' / 'part').write_text('tokens')


class Tpu(Prepared, launchers.Tpu):
  pass


class Slurm(Prepared, launchers.Slurm):
  pass


def make_sweep(out, launcher, **changes):
  values = {
    'axes': {'volume': (100, 200)},
    'mixture': 'world.tested_base_x2x.all.en_zh.every',
    'mixture_gin': 'gin_configs/mixtures/world.gin',
    'run_gin': 'gin_configs/runs/world_tune.gin',
  }
  made = Settings(**{**values, **changes})
  return running.Sweep(str(out), made, make_points(made), launcher, launcher.jobs.jobs)


def started(cloud):
  paths = sorted(cloud.folder.glob('started.*'))
  return [path.read_text().split('\0')[:-1] for path in paths]


# ---- TPUs ----


def test_points_on_one_queued_resource(cloud, tmp_path, capfd):
  out = tmp_path / 'out'
  launcher = Tpu(jobs.Jobs(str(out)), [*TPU, '--delete_when_done'], 'gs://b/s')
  one = make_sweep(out, launcher)
  one.run()
  launcher.close()
  assert not one.failures and not one.missing(), one.failures
  commands = started(cloud)
  assert [words[0] for words in commands] == ['train', 'evaluate'] * 2
  assert cloud.actions() == ['create', 'delete']  # one for all, and at the end
  flags = dict(word.split('=', 1) for word in commands[0][1:])
  folder = one.folder(one.points[0]).rpartition('/')[2]
  assert flags['--gin.MODEL_DIR'] == repr(f'gs://b/s/points/{folder}/model')
  # What is prepared here lies where the workers find it, tokens too, which are shared by links
  # here.
  data = cloud.folder / flags['--gin.DATA_DIR'].strip("'").replace('gs://', 'gs/')
  assert (data / 'tasks' / 'task' / 'part').exists() and list((data / 'mixtures').iterdir())
  summary = sweep_table.write(one)
  assert [point['figures']['heldout_loss'] for point in summary['points']] == [2.5, 2.5]
  # A second start has nothing to do; a new volume uses new machines for that point alone.
  make_sweep(out, launcher).run()
  assert len(started(cloud)) == 4
  more = make_sweep(out, Tpu(jobs.Jobs(str(out)), TPU, 'gs://b/s'), axes={'volume': (100, 300)})
  more.run()
  more.runner.close()
  assert len(started(cloud)) == 6 and cloud.actions() == ['create', 'delete', 'create']
  err = capfd.readouterr().err
  assert (
    'pod may still exist and cost money' in err
    and 'tpu_train.sh --name pod --zone z --delete' in err
  )


def test_what_fails_there_is_told_here_and_tried_again(cloud, tmp_path):
  (cloud.folder / 'broken.evaluate').touch()
  out = tmp_path / 'out'
  one = make_sweep(out, Tpu(jobs.Jobs(str(out)), TPU, 'gs://b/s'), axes={'volume': (100,)})
  one.run()
  [failure] = one.failures.values()
  assert 'no room for it' in failure and 'worker 0 ended with exit status 1' in failure
  (cloud.folder / 'broken.evaluate').unlink()
  again = make_sweep(out, Tpu(jobs.Jobs(str(out)), TPU, 'gs://b/s'), axes={'volume': (100,)})
  again.run()
  assert not again.failures and [words[0] for words in started(cloud)] == [
    'train',
    'evaluate',
    'evaluate',
  ]


def test_points_at_a_time_have_machines_of_their_own(tmp_path):
  launcher = launchers.Tpu(jobs.Jobs(str(tmp_path), 2), TPU, 'gs://b/s')
  names = {launcher._free.get_nowait() for _ in range(2)}
  assert names == {'pod-0', 'pod-1'}


def test_question_files_travel_and_folders_of_this_machine_are_refused(cloud, tmp_path):
  questions = cloud.project / 'my questions.jsonl'
  questions.write_text('{}')
  launcher = launchers.Tpu(jobs.Jobs(str(tmp_path)), TPU, 'gs://b/s')
  command = launcher.command('x', ['evaluate', f'--questions={questions}'], {}, ())
  assert (
    command[command.index('--include') + 1] == 'my questions.jsonl'
    and '--questions=my questions.jsonl' in command
  )
  with pytest.raises(config.ConfigError, match='is a folder of this machine'):
    launcher.command('x', ['train'], {}, (f"--gin.INITIAL_CHECKPOINT_PATH='{cloud.folder}'",))
  with pytest.raises(config.ConfigError, match='must be below'):
    launcher.command('x', ['evaluate', f'--questions={tmp_path}/q.jsonl'], {}, ())


@pytest.mark.parametrize('name, arguments, remote, message', [
    ('tpu', '--name a --zone b', None, 'needs --remote_dir gs://'),
    ('tpu', '--zone b', 'gs://b/s', 'needs --launcher_args'),
    ('slurm', '', 'gs://b/s', '--remote_dir is for --launcher tpu'),
    ('local', '--name a', None, '--launcher_args is for'),
])  # fmt: skip
def test_what_a_launcher_lacks_is_said(tmp_path, name, arguments, remote, message):
  with pytest.raises(config.ConfigError, match=message):
    launchers.make_launcher(name, jobs.Jobs(str(tmp_path)), arguments, remote)


# ---- SLURM ----


def test_points_as_jobs(cloud, tmp_path):
  out = tmp_path / 'out'
  launcher = Slurm(jobs.Jobs(str(out), 2), ['--nodes=4', '--gpus-per-node=8'])
  one = make_sweep(out, launcher)
  one.run()
  assert not one.failures and not one.missing(), one.failures
  lines = [
    line
    for line in (cloud.folder / 'slurm.log').read_text().splitlines()
    if line.startswith('sbatch')
  ]
  assert len(lines) == 4 and all('--nodes=4 --gpus-per-node=8' in line for line in lines)
  assert not any('--nodes=1' in line for line in lines)  # evaluation is on all of them too
  assert not list((out / 'jobs').iterdir())
  flags = dict(word.split('=', 1) for word in started(cloud)[0][1:])
  assert flags['--gin.MODEL_DIR'].startswith(f"'{out}/points/")


def test_a_job_that_fails_shows_the_end_of_its_log(cloud, tmp_path):
  (cloud.folder / 'broken.train').touch()
  out = tmp_path / 'out'
  one = make_sweep(out, Slurm(jobs.Jobs(str(out)), []), axes={'volume': (100,)})
  one.run()
  [failure] = one.failures.values()
  assert 'is FAILED' in failure and 'no room for it' in failure


def test_a_sweep_told_to_stop_finds_its_jobs_again(cloud, tmp_path):
  (cloud.folder / 'stuck').touch()
  out = tmp_path / 'out'
  launcher = Slurm(jobs.Jobs(str(out)), [])
  launcher._submit = lambda command, submit=launcher._submit: (
    submit(command),
    launcher.jobs.stop(signal.SIGTERM),
  )[0]
  with pytest.raises(Interrupted, match='continues as job 1'):
    make_sweep(out, launcher, axes={'volume': (100,)}).run()
  assert [json.loads(path.read_text()) for path in (out / 'jobs').iterdir()] == [{'job': '1'}]
  (cloud.folder / 'stuck').unlink()
  (cloud.folder / 'job.1').write_text('COMPLETED')
  again = make_sweep(out, Slurm(jobs.Jobs(str(out)), []), axes={'volume': (100,)})
  again.run()
  assert not again.failures and [words[0] for words in started(cloud)] == ['evaluate']


# ---- the command ----


def test_a_dry_run_shows_every_command(tmp_path, capsys):
  out = str(tmp_path / 'out')
  words = [
    '--gin_file=gin_configs/ablations/world_volume.gin',
    '--output_dir',
    out,
    '--dry_run',
    '--json',
  ]
  words += [
    '--gin_bindings=QUESTIONS = None',
    '--gin_bindings=sweep.questions = ()',
    '--remote_dir=gs://b/s',
  ]
  words += ['--launcher=tpu', f'--launcher_args={shlex.join(TPU)}']
  import gin

  with gin.unlock_config():
    assert sweep_command.main(words) == 0
  captured = capsys.readouterr()
  plan = json.loads(captured.out.splitlines()[-1])
  train, evaluate = plan['to_run'][0]['commands']
  assert train[1].endswith('launch/tpu_train.sh') and train[train.index('--command') + 1] == 'train'
  assert (
    evaluate[evaluate.index('--command') + 1] == 'evaluate' and shlex.join(train) in captured.err
  )
  assert not pathlib.Path(out).exists()
