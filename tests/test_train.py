"""The loop: it runs, stops and resumes to the bit, and refuses what would go wrong."""

import json
import os
import shutil
import signal

from conftest import tiny_config
import gin
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from crossin_jax.checkpoints import manager, run_directory
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation.heldout import HeldoutLoss
from crossin_jax.models.decoder import Decoder
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.train import TrainingError, train
from crossin_jax.training import metrics, optimizers
from crossin_jax.training.bookkeeping import RunState

STEPS = 12
TIMING = {'seconds_per_step', 'tokens_per_second', 'loss_tokens_per_second', 'mfu'}


def one_device():
  return Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])


def arguments(prepared, model_dir, **changes):
  directory, mixture = prepared
  return {
    'model_dir': str(model_dir),
    'model': Decoder(
      tiny_config(vocab_size=1216, num_layers=1, scan_layers=False, tie_embeddings=True)
    ),
    'optimizer': optimizers.adamw,
    'data_dir': directory,
    'mixture': mixture,
    'total_steps': STEPS,
    'batch_size': 4,
    'length': 64,
    'log_period': 3,
    'checkpoint_config': manager.CheckpointConfig,
    'partitioner': one_device,
    **changes,
  }


def bindings(extra=''):
  gin.clear_config()
  gin.parse_config(
    'schedule.peak = 3e-3\nschedule.warmup_steps = 2\nBatchStream.window = '
    '256\nCheckpointConfig.period = 4\n'
    f'CheckpointConfig.keep = 10\n{extra}'
  )


def heldout(prepared):
  return HeldoutLoss(
    data_dir=prepared[0], mixture=prepared[1], length=64, rows=4, examples_per_task=2
  )


def lines(model_dir):
  """metrics.jsonl without what depends on the clock."""
  with open(os.path.join(model_dir, 'metrics.jsonl'), encoding='utf-8') as f:
    return [
      {key: value for key, value in json.loads(line).items() if key not in TIMING} for line in f
    ]


def params(model_dir, step):
  return ocp.PyTreeCheckpointer().restore(os.path.join(model_dir, f'checkpoint_{step}', 'state'))


def steps_in(directory):
  return sorted(
    int(name.split('_')[1]) for name in os.listdir(directory) if name.startswith('checkpoint_')
  )


def stop_at(monkeypatch, step):
  """Sends this process SIGTERM when the metrics of a step are logged."""
  write = metrics.MetricsWriter.write

  def stopping(self, at, values):
    write(self, at, values)
    if at == step:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(metrics.MetricsWriter, 'write', stopping)


@pytest.fixture(scope='module')
def undisturbed(tiny_prepared, tmp_path_factory):
  """A run of 12 steps, evaluated at 6 and 12."""
  model_dir = tmp_path_factory.mktemp('undisturbed')
  bindings()
  run = arguments(
    tiny_prepared, model_dir, evaluators=(heldout(tiny_prepared),), evaluation_period=6
  )
  assert train(**run) == 0
  return model_dir


@pytest.fixture(scope='module')
def stopped(tiny_prepared, tmp_path_factory):
  """The same run, told to stop at its step 6, before the evaluation there."""
  model_dir = tmp_path_factory.mktemp('stopped')
  bindings()
  run = arguments(
    tiny_prepared, model_dir, evaluators=(heldout(tiny_prepared),), evaluation_period=6
  )
  with pytest.MonkeyPatch.context() as monkeypatch:
    stop_at(monkeypatch, 6)
    before = signal.getsignal(signal.SIGTERM)
    assert train(**run) == RESTART == 75
    assert signal.getsignal(signal.SIGTERM) is before, 'the handlers are put back'
  return model_dir


@pytest.mark.slow
def test_a_run_leaves_what_it_should(undisturbed, tiny_prepared, tiny_vocabulary):
  assert steps_in(undisturbed) == [4, 8, 12]
  assert {'metrics.jsonl', 'config.gin', 'prompts.json', 'tensorboard', 'digests'} <= set(
    os.listdir(undisturbed)
  )
  found = lines(undisturbed)
  logged = [line for line in found if 'loss' in line]
  assert [line['step'] for line in logged] == [3, 6, 9, 12]
  assert [line['step'] for line in found if 'loss' not in line] == [0, 6, 12]
  assert logged[-1]['loss'] < logged[0]['loss'] < np.log(1216) + 3
  rate = [float(optimizers_rate(step)) for step in (2, 5, 8, 11)]
  np.testing.assert_allclose([line['learning_rate'] for line in logged], rate, rtol=1e-5)
  for line in logged:
    assert set(line['loss_by_language']) == {'en', 'zh', 'vi', 'es'} and set(
      line['loss_by_source']
    ) == {'world'}
    assert 0 < line['loss_tokens'] <= line['tokens'] <= 3 * 4 * 64
    np.testing.assert_allclose(line['loss_by_source']['world'], line['loss'], rtol=1e-5)
  with open(undisturbed / 'prompts.json', encoding='utf-8') as f:
    described = json.load(f)
  said = {
    'template': 'plain',
    'tags': True,
    'chat_template': None,
    'chat_options': {},
    'special_tokens_in_text': False,
    'system_role': 'first_user',
    'stop_id': tiny_vocabulary.eos_id,
  }
  assert described['prompts'] == said
  copy = undisturbed / described['vocabulary']['file']
  with open(tiny_vocabulary.path, 'rb') as f:
    assert copy.read_bytes() == f.read()
  # A finished run does nothing more.
  bindings()
  before = {str(p): p.stat().st_mtime_ns for p in undisturbed.rglob('checkpoint_*/**/*')}
  assert train(**arguments(tiny_prepared, undisturbed)) == 0
  assert {str(p): p.stat().st_mtime_ns for p in undisturbed.rglob('checkpoint_*/**/*')} == before
  assert lines(undisturbed) == found


def optimizers_rate(step):
  bindings()
  return optimizers.schedule(STEPS)(step)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_bit(undisturbed, stopped, tiny_prepared, tmp_path):
  saved = steps_in(stopped)
  assert saved[0] == 4 and saved[-1] == 6 and len(saved) == 2
  model_dir = tmp_path / 'resumed'
  shutil.copytree(stopped, model_dir)
  # What a kill may leave behind: lines after the checkpoint, and half a line.
  with open(model_dir / 'metrics.jsonl', 'a', encoding='utf-8') as f:
    f.write('{"step": 9, "loss": 1.0}\n{"step": 9, "lo')
  bindings()
  run = arguments(
    tiny_prepared, model_dir, evaluators=(heldout(tiny_prepared),), evaluation_period=6
  )
  # Interrupted once more, this time within a logging period.
  with pytest.MonkeyPatch.context() as monkeypatch:
    stop_at(monkeypatch, 9)
    assert train(**run) == RESTART
  assert steps_in(model_dir)[-1] == 10
  assert train(**run) == 0
  assert lines(model_dir) == lines(undisturbed)
  for step in (8, 12):
    jax.tree.map(np.testing.assert_array_equal, params(model_dir, step), params(undisturbed, step))


@pytest.mark.slow
def test_changed_data_on_resume_are_refused_unless_on_purpose(stopped, tiny_prepared, tmp_path):
  data, model_dir = tmp_path / 'data', tmp_path / 'run'
  shutil.copytree(tiny_prepared[0], data)
  shutil.copytree(stopped, model_dir)
  path = data / 'mixtures' / f'{tiny_prepared[1]}.json'
  description = json.loads(path.read_text(encoding='utf-8'))
  description['tasks'][0]['rate'] *= 1.5
  name = description['tasks'][0]['task']
  path.write_text(json.dumps(description), encoding='utf-8')
  changed = arguments((str(data), tiny_prepared[1]), model_dir)
  bindings()
  with pytest.raises((ValueError, TrainingError), match=f'(?s){name}.*rate|rate.*{name}') as error:
    train(**changed)
  assert 'new_stream=True' in str(error.value)
  for change, what in (
    ({'seed': 1}, 'seed was 0, now 1'),
    ({'batch_size': 8}, 'batch_size was 4, now 8'),
  ):
    with pytest.raises((ValueError, TrainingError), match=what):
      train(**arguments(tiny_prepared, model_dir, **change))
  before = steps_in(model_dir)
  # Microbatches may change.
  assert train(**{**changed, 'new_stream': True, 'microbatches': 2, 'total_steps': 9}) == 0
  assert steps_in(model_dir) == sorted({*before, 8, 9})


def clipped_later(total_steps):
  return optimizers.adamw(total_steps, clip_norm=0.5)


def unclipped(total_steps):
  return optimizers.adamw(total_steps, clip_norm=None)


def forgetful(total_steps):
  # An optimizer of a user: without settings.
  made = optimizers.adamw(total_steps)
  return optimizers.Optimizer(made.transform, made.schedule)


@pytest.mark.slow
@pytest.mark.parametrize(
  'change, parts',
  [
    ({'optimizer': optimizers.adafactor}, ("optimizer was 'adamw', now 'adafactor'", '0/v_row')),
    ({'optimizer': unclipped}, ('adamw.clip_norm was 1.0, now None', 'in this run 0/count')),
    (
      {'optimizer': unclipped, 'total_steps': 20},
      ('adamw.clip_norm was 1.0, now None; train.total_steps was 12, now 20',),
    ),
  ],
)
def test_an_optimizer_with_another_state_is_named(stopped, tiny_prepared, tmp_path, change, parts):
  model_dir = tmp_path / 'run'
  shutil.copytree(stopped, model_dir)
  bindings()
  with pytest.raises(manager.OptimizerStateError) as error:
    train(**arguments(tiny_prepared, model_dir, **change))
  said = str(error.value)
  assert all(part in said for part in (*parts, 'Undo the change', 'INITIAL_CHECKPOINT_PATH'))
  assert 'damaged' not in said and 'elete' not in said
  bindings()
  assert train(**arguments(tiny_prepared, model_dir)) == 0, 'nothing was lost'


@pytest.mark.slow
@pytest.mark.parametrize(
  'change, extra, said',
  [
    ({'total_steps': 8}, '', 'train.total_steps was 12, now 8\n'),
    ({'optimizer': clipped_later}, '', 'adamw.clip_norm was 1.0, now 0.5\n'),
    ({}, 'schedule.peak = 1e-3', 'schedule.peak was 0.003, now 0.001\n'),
    ({}, "schedule.decay = 'constant'", "schedule.decay was 'cosine', now 'constant'\n"),
    ({}, 'adamw.weight_decay = 0.0', 'adamw.weight_decay was 0.01, now 0.0\n'),
    ({'optimizer': forgetful}, '', "optimizer was 'adamw', now 'forgetful'\n"),
    ({'total_steps': 4}, '', 'nothing to do: step 6 is saved, 4 are wanted\n'),
    ({}, '', ''),
  ],
)
def test_other_changes_of_the_optimizer_are_told(
  stopped, tiny_prepared, tmp_path, capsys, change, extra, said
):
  model_dir = tmp_path / 'run'
  shutil.copytree(stopped, model_dir)
  bindings(extra)
  assert train(**{**arguments(tiny_prepared, model_dir), 'log_period': 20, **change}) == 0
  found = capsys.readouterr().err
  assert said in found and ('other settings' in found) == bool(said)
  # The next run knows the new settings.
  bindings(extra)
  assert train(**{**arguments(tiny_prepared, model_dir), **change}) == 0
  assert ('other settings' in capsys.readouterr().err) == ('nothing to do' in said)


@pytest.mark.slow
def test_checkpoints_without_a_record_of_the_optimizer_resume(
  tiny_prepared, tmp_path, monkeypatch, capsys
):
  as_json = RunState.as_json
  forget = lambda self: {k: v for k, v in as_json(self).items() if k != 'optimizer'}
  with monkeypatch.context() as patch:
    patch.setattr(RunState, 'as_json', forget)
    bindings()
    assert train(**arguments(tiny_prepared, tmp_path, total_steps=3)) == 0
  bindings()
  with pytest.raises(manager.OptimizerStateError, match='has another optimizer than') as error:
    train(**arguments(tiny_prepared, tmp_path, optimizer=unclipped))
  assert '1/0/mu' in str(error.value) and 'damaged' not in str(error.value)
  bindings()
  assert train(**arguments(tiny_prepared, tmp_path, total_steps=5)) == 0
  assert 'other settings' not in capsys.readouterr().err and steps_in(tmp_path)[-1] == 5


class Measured:
  # An evaluator that knows its numbers.
  def figures(self):
    return ['eval/mine/score']

  def __call__(self, model, params, partition):
    yield 'eval/mine/score', 1.0


@pytest.mark.parametrize(
  'changes, extra, message',
  [
    (
      {'evaluators': (Measured(),)},
      "CheckpointConfig.best_metric = 'eval/mine/score'",
      'evaluation_period = 0 never calls the 1 train.evaluators',
    ),
    (
      {'evaluators': (Measured(),), 'evaluation_period': 2},
      "CheckpointConfig.best_metric = 'eval/mine/scores'",
      "'eval/mine/scores' is none of the numbers of the evaluators: eval/mine/score",
    ),
    (
      {},
      "CheckpointConfig.best_metric = 'eval/mine/score'",
      'needs the evaluator that measures it',
    ),
    (
      {'evaluation_period': 2},
      "CheckpointConfig.best_metric = 'eval/heldout/loss'",
      "'eval/heldout/loss' needs the evaluator",
    ),
    ({'early_stopping_patience': 1}, '', 'needs CheckpointConfig.best_metric'),
    (
      {'evaluators': (Measured(),), 'evaluation_period': -5},
      '',
      'evaluation_period = -5 never calls',
    ),
  ],
)
def test_an_evaluation_that_would_never_happen_is_refused(
  tiny_prepared, tmp_path, changes, extra, message
):
  bindings(extra)
  with pytest.raises(TrainingError, match=message):
    train(**arguments(tiny_prepared, tmp_path, **changes))
  assert steps_in(tmp_path) == [] and not (tmp_path / 'metrics.jsonl').exists()


def test_evaluators_that_are_not_called_in_training_are_mentioned(tiny_prepared, tmp_path, capsys):
  assert train(**arguments(tiny_prepared, tmp_path, evaluators=(Measured(),))) == 0
  assert 'the 1 train.evaluators are not called in training' in capsys.readouterr().err


@pytest.mark.parametrize(
  'evaluator, metric, message',
  [
    (dict(), 'eval/heldout/losses', 'none of the numbers of the evaluators: eval/heldout/loss'),
    (dict(), 'eval/heldout/loss_by_language', 'none of the numbers'),
    (dict(name='mine'), 'eval/heldout/loss', 'eval/mine/loss'),
    (dict(length=8), None, 'HeldoutLoss.length = 8 is too short for the validation rows of task'),
    (dict(mixture='nothing'), None, 'crossin prepare FILE.gin --mixture nothing'),
  ],
)
def test_held_out_loss_is_checked_before_the_first_step(
  tiny_prepared, tmp_path, evaluator, metric, message
):
  bindings(f'CheckpointConfig.best_metric = {metric!r}')
  given = {'data_dir': tiny_prepared[0], 'mixture': tiny_prepared[1], 'length': 64, **evaluator}
  with pytest.raises((TrainingError, ValueError), match=message):
    train(
      **arguments(tiny_prepared, tmp_path, evaluators=(HeldoutLoss(**given),), evaluation_period=2)
    )
  assert steps_in(tmp_path) == []


@pytest.mark.slow
def test_an_evaluator_that_names_no_numbers_is_called_as_before(tiny_prepared, tmp_path):
  bindings("CheckpointConfig.best_metric = 'fake/typo'\nCheckpointConfig.best_mode = 'min'")
  evaluator = lambda model, params, partition: [('fake/x', 1.0)]
  with pytest.raises(TrainingError, match="'fake/typo' is none of the evaluators' figures"):
    train(
      **arguments(tiny_prepared, tmp_path, evaluators=(evaluator, Measured()), evaluation_period=1)
    )


@pytest.mark.slow
def test_early_stopping_and_the_best_checkpoint(tiny_prepared, tmp_path):
  figures = iter([3.0, 1.0, 2.0, 1.5, 0.1, 0.1])
  seen = []

  def evaluator(model, params, partition):
    seen.append(next(figures))
    yield 'fake/x', seen[-1]
    yield 'fake/by_language', {'en': 1.0}

  bindings("CheckpointConfig.best_metric = 'fake/x'\nCheckpointConfig.best_mode = 'min'")
  gin.bind_parameter('CheckpointConfig.period', 2)
  gin.bind_parameter('CheckpointConfig.keep', 1)
  run = arguments(
    tiny_prepared, tmp_path, evaluators=(evaluator,), evaluation_period=2, early_stopping_patience=2
  )
  assert train(**run) == 0
  assert seen == [3.0, 1.0, 2.0, 1.5] and steps_in(tmp_path) == [4, 8]
  assert [line['fake/x'] for line in lines(tmp_path) if 'fake/x' in line] == seen
  # Started again, it knows that it is finished.
  assert train(**run) == 0
  assert len(seen) == 4 and steps_in(tmp_path) == [4, 8]


@pytest.mark.slow
def test_initial_checkpoint_is_where_it_begins(undisturbed, tiny_prepared, tmp_path):
  bindings()
  gin.bind_parameter('schedule.peak', 0.0)
  assert (
    train(**arguments(tiny_prepared, tmp_path, total_steps=2, initial_checkpoint=str(undisturbed)))
    == 0
  )
  found, wanted = params(tmp_path, 2), params(undisturbed, 12)
  jax.tree.map(np.testing.assert_array_equal, found['target'], wanted['target'])
  assert int(found['state']['step']) == 2


def test_what_would_go_wrong_is_refused_before_anything_is_compiled(tiny_prepared, tmp_path):
  bindings()
  small = Decoder(tiny_config(vocab_size=1000, num_layers=1))
  with pytest.raises(
    TrainingError,
    match=r'the model has 1000 ids, the vocabulary .* has 1200; DecoderConfig.vocab_size=1200',
  ):
    train(**arguments(tiny_prepared, tmp_path, model=small))
  four = lambda: Partitioner(mesh_shape=(1, -1, 1))
  for changes, multiple in (
    ({'partitioner': four, 'batch_size': 6}, 4),
    ({'microbatches': 3}, 3),
    ({'partitioner': four, 'microbatches': 2, 'batch_size': 4}, 8),
  ):
    with pytest.raises(TrainingError, match=f'use a multiple of {multiple}'):
      train(**arguments(tiny_prepared, tmp_path, **changes))
  with pytest.raises(ValueError, match="nan_policy = 'ignore'"):
    train(**arguments(tiny_prepared, tmp_path, nan_policy='ignore'))
  with pytest.raises(ValueError, match='crossin prepare FILE.gin --mixture nothing'):
    train(**arguments(tiny_prepared, tmp_path, mixture='nothing'))
  for changes in ({'total_steps': None}, {'epochs': 2.0}):
    with pytest.raises(ValueError, match='total_steps'):
      train(**arguments(tiny_prepared, tmp_path, **changes))
  assert steps_in(tmp_path) == []


def test_a_second_run_in_the_same_directory_is_refused(tiny_prepared, tmp_path):
  bindings()
  with run_directory.exclusive(str(tmp_path)):
    with pytest.raises(run_directory.RunError, match=f'is in use by process {os.getpid()}'):
      train(**arguments(tiny_prepared, tmp_path))
  # And may begin when the first has ended.
  with run_directory.exclusive(str(tmp_path)):
    pass
