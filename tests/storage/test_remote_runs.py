"""Runs whose data, checkpoints and results are in remote storage: what they leave, killed, damaged,
held by another, in two processes.
"""

import json
import os
import shutil
import signal
import time

from checkpoints import test_checkpoints as small
from conftest import REPOSITORY, init_params, tiny_config
import fake_gcs
from fake_gcs import put_folder
import jax
from many_processes import Processes, said
import numpy as np
import pytest

from crossin_jax import cli
from crossin_jax.checkpoints import digests as digests_lib
from crossin_jax.checkpoints import parameters, places, run_directory
from crossin_jax.checkpoints.manager import CheckpointConfig, Checkpoints
from crossin_jax.checkpoints.places import CheckpointError
from crossin_jax.decoding import journal
from crossin_jax.models.decoder import Decoder
from crossin_jax.storage import lease, remote

pytestmark = pytest.mark.usefixtures('gcs')

STEPS = 8


def wait_for(true, running, seconds=200):
  until = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < until and all(process.poll() is None for process in running)
    time.sleep(0.02)


# ---- checkpoints ----


@pytest.fixture(scope='module')
def adamw():
  from crossin_jax.training import optimizers

  return optimizers.adamw(100).transform


def save(url, adamw, steps, keep=100):
  saved = Checkpoints(url, CheckpointConfig(keep=keep))
  for step in steps:
    saved.save(step, small.state_on(adamw, step), small.RUN | {'step': step})
  saved.close()


def restore(url, adamw):
  saved = Checkpoints(url, CheckpointConfig(keep=100))
  found = saved.restore_latest(small.abstract_on(adamw))
  saved.close()
  return found


def largest(gcs, prefix):
  return max(gcs.names(prefix), key=lambda name: len(gcs.read(name)))


def flip(gcs, name):
  data = bytearray(gcs.read(name))
  data[len(data) // 2] ^= 1
  gcs.put(name, data)


def truncate(gcs, name):
  gcs.put(name, gcs.read(name)[: len(gcs.read(name)) // 2])


def lose(gcs, name):
  del gcs.buckets['bucket'][name]


def test_checkpoints_in_the_store(gcs, adamw):
  save('gs://bucket/run', adamw, (3, 5, 7), keep=2)
  assert places.steps_in('gs://bucket/run') == [5, 7]
  assert places.latest_checkpoint('gs://bucket/run/') == 'gs://bucket/run/checkpoint_7'
  state, run = restore('gs://bucket/run', adamw)
  small.equal(state, small.state_on(adamw, 7))
  assert run['step'] == 7 and not gcs.names('run/checkpoint_3')
  digests = json.loads(gcs.read('run/digests/checkpoint_7.json'))
  assert gcs.names('run/digests/') == [
    'run/digests/checkpoint_5.json',
    'run/digests/checkpoint_7.json',
  ]
  for name, digest in digests.items():
    data = gcs.read(f'run/checkpoint_7/{name}')
    assert digest == f'crc32c:{fake_gcs.crc32c(data)}:{len(data)}'
  assert set(digests) == {
    name.removeprefix('run/checkpoint_7/') for name in gcs.names('run/checkpoint_7/')
  }
  # A digest reads nothing back.
  assert not gcs.seen('checkpoint_5.*alt=media.*ocdbt.process')


@pytest.mark.parametrize('damage', [flip, truncate, lose])
def test_damage_is_noticed_and_the_earlier_checkpoint_used(gcs, adamw, damage):
  save('gs://bucket/run', adamw, (10, 20))
  name = largest(gcs, 'run/checkpoint_20/state')
  damage(gcs, name)
  with pytest.warns(UserWarning) as told:
    state, run = restore('gs://bucket/run', adamw)
  message = next(str(w.message) for w in told if 'damaged' in str(w.message))
  assert os.path.basename(name) in message and 'using gs://bucket/run/checkpoint_10' in message
  small.equal(state, small.state_on(adamw, 10))
  assert run['step'] == 10


def test_an_unfinished_checkpoint_is_none(gcs, adamw):
  """Killed before the last object was written, and in the middle of removing an old one."""
  save('gs://bucket/run', adamw, (10, 20))
  gcs.put('run/eval/results.json', b'{}')
  lose(gcs, 'run/checkpoint_20/commit_success.txt')
  assert places.latest_checkpoint('gs://bucket/run') == 'gs://bucket/run/checkpoint_10'
  with pytest.raises(
    CheckpointError, match='checkpoint_20 is incomplete: it has no commit_success.txt'
  ):
    places.latest_checkpoint('gs://bucket/run/checkpoint_20')
  state, run = restore('gs://bucket/run', adamw)
  assert run['step'] == 10
  assert not gcs.names('run/checkpoint_20'), 'it is removed'
  assert gcs.names('run/eval') and gcs.names('run/digests'), 'and nothing else is'
  with pytest.raises(CheckpointError, match='neither a checkpoint_<step> directory'):
    places.latest_checkpoint('gs://bucket/other')


def test_what_no_run_of_ours_began_is_left_alone(gcs, adamw, capsys):
  """T5X's older layout, a copy on its way here, and its digest."""
  save('gs://bucket/run', adamw, (10, 20))
  gcs.put('run/checkpoint_7/checkpoint', b'T5X')
  gcs.put('run/checkpoint_7/target.decoder/0', b'T5X')
  for name in ('state/manifest.ocdbt', 'run/metadata'):
    gcs.put(f'run/checkpoint_30/{name}', b'on its way')
  gcs.put('run/digests/checkpoint_30.json', b'{}')
  for name in ('_CHECKPOINT_METADATA', 'state/d/1'):
    gcs.put(f'run/checkpoint_40/{name}', b'begun')
  before = set(gcs.names('run'))
  saved = Checkpoints('gs://bucket/run', CheckpointConfig(keep=100))
  said_of = capsys.readouterr().err.splitlines()
  assert (
    len(said_of) == 3
    and 'gs://bucket/run/checkpoint_40 was not finished by the previous run: it is removed'
    in said_of
  )
  assert all(f'checkpoint_{step} has no commit_success.txt' in ''.join(said_of) for step in (7, 30))
  assert before - set(gcs.names('run')) == {
    f'run/checkpoint_40/{name}' for name in ('_CHECKPOINT_METADATA', 'state/d/1')
  }
  before = set(gcs.names('run'))
  with pytest.raises(
    CheckpointError, match='checkpoint_30 exists already, without commit_success.txt.* remove it'
  ):
    saved.save(30, small.state_on(adamw, 30), small.RUN | {'step': 30})
  saved.save(40, small.state_on(adamw, 40), small.RUN | {'step': 40})
  saved.save(40, small.state_on(adamw, 40), small.RUN | {'step': 40})  # while it is being saved
  saved.close()
  assert before < set(gcs.names('run')) and places.steps_in('gs://bucket/run') == [10, 20, 40]


def test_parameters_are_not_written_into_what_is_there(gcs, tmp_path):
  from crossin_jax.checkpoints import conversion

  for name in ('checkpoint_0/_CHECKPOINT_METADATA', 'checkpoint_8/_CHECKPOINT_METADATA'):
    gcs.put(f'run/{name}', b'being saved by another run')
  before = gcs.names()
  with pytest.raises(
    CheckpointError,
    match='gs://bucket/run/checkpoint_0 exists already, without .*gcloud storage rm',
  ):
    parameters.save_params('gs://bucket/run', {'w': np.ones(3)})
  with pytest.raises(CheckpointError, match='gs://bucket/run/checkpoint_0 exists already'):
    conversion.import_hf(str(tmp_path / 'not read'), 'gs://bucket/run')
  assert gcs.names() == before
  parameters.save_params('gs://bucket/run', {'w': np.ones(3)}, 4)
  assert set(before) < set(gcs.names())
  (tmp_path / 'checkpoint_0' / 'state').mkdir(parents=True)
  with pytest.raises(CheckpointError, match='checkpoint_0 exists already. .*rm -r'):
    parameters.save_params(str(tmp_path), {'w': np.ones(3)})


def test_a_save_that_fails_in_the_store_is_said_in_its_words(gcs, adamw):
  saved = Checkpoints('gs://bucket/run', CheckpointConfig())
  saved.save(4, small.state_on(adamw, 4), small.RUN)
  gcs.fail('.*digests', status=403, times=9)
  with pytest.raises(remote.RemoteError, match='no permission for gs://bucket/run/digests'):
    saved.wait()
  gcs.faults.clear()
  saved.close()


def test_faults_while_saving_and_restoring_change_nothing(gcs, adamw):
  for pattern in ('POST .*checkpoint_4.*ocdbt', 'POST .*checkpoint_4', 'GET .*checkpoint_4'):
    gcs.fail(pattern)
  gcs.fail('POST .*checkpoint_4.*/d/', status=0)
  save('gs://bucket/run', adamw, (4,))
  gcs.fail('GET .*checkpoint_4.*alt=media')
  gcs.fail('GET .*checkpoint_4.*/d/.*alt=media', status=0)
  state, _ = restore('gs://bucket/run', adamw)
  small.equal(state, small.state_on(adamw, 4))
  assert all(fault.times == 0 for fault in gcs.faults)


def test_copies_between_disk_and_store_are_verified(gcs, adamw, tmp_path):
  save('gs://bucket/run', adamw, (4,))
  for name in gcs.names('run/'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gcs.read(name))
  assert digests_lib.damage(str(tmp_path / 'run' / 'checkpoint_4')) is None
  small.flip(small.some_file(tmp_path / 'run', 4))
  assert 'has changed' in digests_lib.damage(str(tmp_path / 'run' / 'checkpoint_4'))
  small.save(tmp_path / 'local', small_optimizer(), [6])
  put_folder(gcs, tmp_path / 'local', 'copied')
  assert digests_lib.damage('gs://bucket/copied/checkpoint_6') is None
  state, _ = restore('gs://bucket/copied', adamw)
  small.equal(state, small.state_on(adamw, 6))
  lose(gcs, largest(gcs, 'copied/checkpoint_6'))
  assert 'is missing' in digests_lib.damage('gs://bucket/copied/checkpoint_6')


def small_optimizer():
  from crossin_jax.training import optimizers

  return optimizers.adamw(100).transform


def test_a_bucket_that_refuses_is_named(gcs, adamw):
  with pytest.raises(OSError, match='no permission for gs://secret/run'):
    save('gs://secret/run', adamw, (1,))
  with (
    pytest.raises(OSError, match='no permission for gs://secret/run'),
    run_directory.exclusive('gs://secret/run'),
  ):
    pass
  with (
    pytest.raises(OSError, match='no bucket nowhere'),
    run_directory.exclusive('gs://nowhere/run'),
  ):
    pass


@pytest.fixture
def impatient(monkeypatch):
  """Locks are renewed and go stale within a second."""
  monkeypatch.setattr(lease, 'PERIOD', 0.15)
  monkeypatch.setattr(lease, 'STALE', 1.0)


def test_compiled_programs_are_kept_in_the_store(gcs):
  """By JAX itself, through etils."""
  from training import test_compiled

  from crossin_jax.training.compiled import compiled_programs

  jax.config.update('jax_enable_compilation_cache', True)
  try:
    with compiled_programs('gs://bucket/run', least_seconds=0):
      assert test_compiled.compile_once() == 0
    assert [name for name in gcs.names('run/compiled/') if name.endswith('-cache')]
    with compiled_programs('gs://bucket/run', least_seconds=0):
      assert test_compiled.compile_once() > 0
  finally:
    jax.config.update('jax_enable_compilation_cache', False)


def test_model_dir_is_held_by_one_run(gcs, impatient):
  with run_directory.exclusive('gs://bucket/run'):
    with pytest.raises(
      run_directory.RunError,
      match=f'gs://bucket/run is in use by process {os.getpid()} on .*stop it',
    ):
      with run_directory.exclusive('gs://bucket/run'):
        pass
  assert gcs.names('run') == []


def test_answers_end_where_the_lock_is_lost_and_are_called_by_their_url(gcs, impatient):
  from crossin_jax.decoding import generate
  from crossin_jax.decoding import journal as journals
  from crossin_jax.decoding.journal import JournalError

  url = 'gs://bucket/out.jsonl'
  with (
    generate._local_output(url) as (path, check),
    journals.on_chief(path, url, lambda: {'a': 1}) as journal,
  ):
    journal.append({'index': 0})
    check()
  with pytest.raises(
    JournalError, match=f'^{url} was started .*delete {url} and {url}.run.json to restart$'
  ):
    with generate._local_output(url) as (path, _), journals.on_chief(path, url, lambda: {'a': 2}):
      pass
  with (
    pytest.raises(lease.InUse, match='was taken over'),
    generate._local_output(url) as (path, check),
  ):
    gcs.put('out.jsonl.lock', json.dumps({'token': 'x', 'holder': 'process 7 on far'}).encode())
    until = time.monotonic() + 20
    while time.monotonic() < until:
      time.sleep(0.05)
      check()


def test_a_run_whose_lock_was_taken_over_ends(gcs, impatient):
  with pytest.raises(run_directory.RunError, match='was taken over by another run'):
    with run_directory.exclusive('gs://bucket/run') as files:
      gcs.put('run/lock', json.dumps({'token': 'x', 'holder': 'process 7 on far'}).encode())
      until = time.monotonic() + 20
      try:
        while time.monotonic() < until:
          time.sleep(0.05)
          files.check()
      finally:
        with open(os.path.join(files.path, 'config.gin'), 'w', encoding='utf-8') as f:
          f.write('x = 1')
  assert gcs.names('run') == ['run/lock'], 'it writes nothing any more'


# ---- runs ----


@pytest.fixture(scope='module')
def undisturbed(tiny_prepared, tmp_path_factory):
  """Losses of a run on local disk, and the starter of runs."""
  compiled = str(tmp_path_factory.mktemp('compiled'))
  local = Processes(*tiny_prepared, compiled)
  values = {'TRAIN_STEPS': STEPS, 'CheckpointConfig.period': 4}
  return local.run(tmp_path_factory.mktemp('local') / 'run', 1, values), Processes(
    'gs://bucket/prepared', tiny_prepared[1], compiled
  )


def start(processes, tmp_path, count=1, **more):
  """A run in gs://bucket/run that breaks where it imports TensorFlow; its log in tmp_path."""
  (tmp_path / 'without').mkdir()
  (tmp_path / 'without' / 'tensorflow.py').write_text('raise SystemExit("TensorFlow was imported")')
  values = {
    'TRAIN_STEPS': STEPS,
    'CheckpointConfig.period': 4,
    'MODEL_DIR': 'gs://bucket/run',
    **more,
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', f'{tmp_path / "without"}{os.pathsep}{REPOSITORY}')
    return processes.start(tmp_path / 'run', count, values)


def losses_there(gcs):
  return {
    row['step']: row['loss']
    for row in map(json.loads, gcs.read('run/metrics.jsonl').splitlines())
    if 'loss' in row
  }


@pytest.fixture(scope='module')
def killed(undisturbed, tiny_prepared, tmp_path_factory):
  """The objects that a run left, killed while its second checkpoint had all but its last object."""
  import pathlib

  gcs, folder = fake_gcs.running(), tmp_path_factory.mktemp('killed')
  gcs.reset()
  put_folder(gcs, pathlib.Path(tiny_prepared[0]), 'prepared')
  fault = gcs.fail('POST .*checkpoint_8/commit_success', status=None, delay=60)
  gcs.fail('POST .*upload.*', times=2)
  gcs.fail('GET .*/o/run/metrics.jsonl', status=403)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('CROSSIN_CACHE', str(folder / 'cache'))
    (running,) = start(undisturbed[1], folder)
    wait_for(lambda: fault.times == 0, [running])
    running.send_signal(signal.SIGKILL)
    running.wait()
  told = said(folder / 'run', 0)
  assert 'no permission for gs://bucket/run/metrics.jsonl' in told and 'is saved anyway' in told
  objects = dict(gcs.buckets['bucket'])
  names = set(objects)
  assert {
    'run/lock',
    'run/checkpoint_4/commit_success.txt',
    'run/checkpoint_8/state/commit_success.txt',
  } <= names
  assert 'run/checkpoint_8/commit_success.txt' not in names and losses_there(gcs).keys() == set(
    range(1, STEPS + 1)
  )
  return objects


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_saved_goes_on_as_if_nothing_had_been(
  gcs, undisturbed, killed, tmp_path
):
  """On a machine that has nothing of it, with requests that fail and connections that are cut."""
  gcs.buckets['bucket'].update(killed)
  gcs.fail('GET .*alt=media', times=2)
  gcs.fail('GET .*alt=media', status=0)
  gcs.fail('POST .*upload.*', status=0)
  (running,) = start(undisturbed[1], tmp_path)
  assert running.wait(200) == 0, said(tmp_path / 'run', 0)
  assert losses_there(gcs) == undisturbed[0], 'to the bit'
  assert len(gcs.read('run/metrics.jsonl').splitlines()) == STEPS
  assert places.steps_in('gs://bucket/run') == [4, 8] and all(
    fault.times == 0 for fault in gcs.faults
  )
  assert {'run/config.gin', 'run/prompts.json', 'run/digests/checkpoint_8.json'} <= set(
    gcs.names('run')
  )
  assert gcs.names('run/tensorboard') and 'run/lock' not in gcs.names('run')
  assert digests_lib.damage('gs://bucket/run/checkpoint_8') is None
  assert not os.path.exists(REPOSITORY / 'gs:')


@pytest.mark.slow
def test_two_processes_in_one_remote_model_dir(gcs, undisturbed, killed, tmp_path):
  gcs.buckets['bucket'].update(killed)
  running = start(undisturbed[1], tmp_path, 2)
  assert [process.wait(200) for process in running] == [0, 0], said(tmp_path / 'run', 0)
  found = losses_there(gcs)
  assert list(found) == list(undisturbed[0])
  np.testing.assert_allclose(list(found.values()), list(undisturbed[0].values()), rtol=1e-5)
  assert places.steps_in('gs://bucket/run') == [4, 8]
  assert gcs.names('run/checkpoint_8/state/ocdbt.process_1/'), 'each wrote its part'
  assert digests_lib.damage('gs://bucket/run/checkpoint_8') is None


# ---- commands ----

GIN = """
import crossin_jax.models.decoder
import crossin_jax.train
MODEL = @Decoder()
Decoder.config = @DecoderConfig()
DecoderConfig.vocab_size = 1216
DecoderConfig.embed_dim = 16
DecoderConfig.num_layers = 1
DecoderConfig.num_heads = 4
DecoderConfig.num_kv_heads = 2
DecoderConfig.mlp_dim = 24
train.model = %MODEL
"""


@pytest.fixture
def model_dir(gcs, tmp_path, tiny_vocabulary):
  """The same untrained model on disk and in gs://bucket/model."""
  folder = tmp_path / 'model'
  params = init_params(Decoder(tiny_config(vocab_size=1216, num_layers=1)), 2)
  parameters.save_params(str(folder), params)
  parameters.save_params('gs://bucket/model', params)
  (folder / 'config.gin').write_text(GIN)
  shutil.copyfile(tiny_vocabulary.path, folder / 'words.model')
  words = {'file': 'words.model', 'bos_token': None, 'eos_token': None}
  (folder / 'prompts.json').write_text(
    json.dumps({'prompts': {'template': 'gemma', 'tags': True}, 'vocabulary': words})
  )
  for name in ('config.gin', 'words.model', 'prompts.json'):
    gcs.put(f'model/{name}', (folder / name).read_bytes())
  return folder


def run(*argv):
  assert cli.main(list(argv)) == 0


@pytest.mark.slow
def test_evaluate_in_the_store_is_evaluate_on_disk(gcs, model_dir, tmp_path, tiny_world, capsys):
  from crossin_jax.world import sources as world_sources

  world_sources.write_questions(tiny_world, str(tmp_path / 'world'))
  file = tmp_path / 'world' / 'questions.untagged.jsonl'
  gcs.put('questions.untagged.jsonl', file.read_bytes())
  flags = ('--limit=2', '--methods=likelihood', '--variant=a')
  run(
    'evaluate',
    f'--checkpoint={model_dir}',
    f'--questions={file}',
    f'--output_dir={tmp_path}/out',
    *flags,
  )
  run('evaluate', '--checkpoint=gs://bucket/model', '--questions=gs://bucket/questions.untagged.jsonl',
      '--output_dir=gs://bucket/out', *flags)  # fmt: skip
  wanted = {
    str(p.relative_to(tmp_path / 'out')): p for p in (tmp_path / 'out').rglob('*') if p.is_file()
  }
  assert {name.removeprefix('out/') for name in gcs.names('out/')} == set(wanted)
  for name, path in wanted.items():
    if not name.endswith('.html'):  # the command stands in the page
      assert gcs.read(f'out/{name}') == path.read_bytes(), name
  order = sorted(gcs.names('out/'), key=lambda name: gcs.buckets['bucket'][name].generation)
  assert order[-2:] == ['out/results.json', 'out/figures.json']
  capsys.readouterr()
  predictions = next(name for name in gcs.names('out/predictions'))
  run(
    'score',
    '--task=world/untagged',
    f'--predictions=gs://bucket/{predictions}',
    '--protocol=strict',
  )
  run(
    'compare',
    'gs://bucket/out',
    f'{tmp_path}/out',
    '--output_dir=gs://bucket/compared',
    '--resamples=20',
  )
  assert gcs.names('compared') == ['compared/compare.html', 'compared/compare.json']


def taken_over(self):
  raise lease.InUse('taken over')


@pytest.mark.slow
def test_generate_in_the_store_goes_on_where_it_was(gcs, model_dir, tmp_path, capsys):
  rows = [{'instruction': f'What is number {i}?'} for i in range(6)]
  (tmp_path / 'in.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  gcs.put('in.jsonl', (tmp_path / 'in.jsonl').read_bytes())
  flags = ('--gin.Sampling.max_new_tokens=8', '--gin.Sampling.temperature=1.0')
  run(
    'generate',
    f'--checkpoint={model_dir}',
    f'--input={tmp_path}/in.jsonl',
    f'--output={tmp_path}/out.jsonl',
    *flags,
  )
  remotely = (
    'generate',
    '--checkpoint=gs://bucket/model',
    '--input=gs://bucket/in.jsonl',
    '--output=gs://bucket/a/out.jsonl',
  )
  run(*remotely, '--json', *flags)
  assert gcs.read('a/out.jsonl') == (tmp_path / 'out.jsonl').read_bytes()
  assert gcs.names('a') == ['a/out.jsonl', 'a/out.jsonl.run.json']
  assert json.loads(capsys.readouterr().out.splitlines()[-1])['output'] == 'gs://bucket/a/out.jsonl'
  # As a kill elsewhere left it: two answers, and half of the third.
  lines = gcs.read('a/out.jsonl').splitlines(keepends=True)
  gcs.put('a/out.jsonl', b''.join(lines[:2]) + lines[2][:9])
  shutil.rmtree(remote.cache())
  run(*remotely, *flags)
  assert gcs.read('a/out.jsonl') == (tmp_path / 'out.jsonl').read_bytes()
  gcs.put('a/out.jsonl', b''.join(lines[:2]))
  appended = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lease.Lock, 'check', taken_over)
    patch.setattr(journal.Journal, 'append', lambda self, row: appended.append(row))
    assert cli.main([*remotely, *flags]) == 1
  assert not appended
  assert capsys.readouterr().err.count('taken over') == 1 and gcs.read('a/out.jsonl') == b''.join(
    lines[:2]
  )
  assert cli.main([*remotely, '--gin.Sampling.max_new_tokens=9']) == 1
  assert 'was started with other settings' in capsys.readouterr().err


@pytest.mark.slow
def test_weights_both_ways(gcs, model_dir, tmp_path, capsys):
  run('export-hf', f'{model_dir}', f'--output_dir={tmp_path}/exported')
  run('export-hf', 'gs://bucket/model', '--output_dir=gs://bucket/exported')
  local = {p.name: p.read_bytes() for p in (tmp_path / 'exported').iterdir()}
  assert {
    name.removeprefix('exported/'): gcs.read(name) for name in gcs.names('exported/')
  } == local
  assert (
    max(gcs.names('exported'), key=lambda n: gcs.buckets['bucket'][n].generation)
    == 'exported/config.json'
  )
  assert cli.main(['export-hf', 'gs://bucket/model', '--output_dir=gs://bucket/exported']) == 1
  assert 'gs://bucket/exported is not empty' in capsys.readouterr().err
  gcs.requests.clear()
  run('import-hf', 'gs://bucket/exported', '--output_dir=gs://bucket/imported')
  assert cli.main(['import-hf', 'gs://bucket/exported', '--output_dir=gs://bucket/imported']) == 1
  assert 'holds a checkpoint already' in capsys.readouterr().err
  assert 'imported/config.gin' in gcs.names(
    'imported'
  ) and "'gs://bucket/imported/huggingface'" in str(gcs.read('imported/config.gin'))
  run('export-hf', 'gs://bucket/imported', f'--output_dir={tmp_path}/again')
  assert (tmp_path / 'again' / 'model.safetensors').read_bytes() == local['model.safetensors']
