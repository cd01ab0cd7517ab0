"""`crossin train`: one loop for every model, mesh and mixture, read top to bottom."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from typing import Callable

from absl import logging
import gin
import jax
import numpy as np

from crossin_jax import checkpoints
from crossin_jax import config
from crossin_jax import metrics as metrics_lib
from crossin_jax import optimizers
from crossin_jax import train_state
from crossin_jax.data.prepared import PreparedMixture, write_json
from crossin_jax.data.stream import BatchStream, Loader, fingerprint
from crossin_jax.partitioning import Partitioner

RESTART = 75  # exit status of a run that was told to stop, saved, and wants to be started again


class TrainingError(RuntimeError):
  """The run cannot go on; the message says why and what to do."""


@gin.configurable
def train(
    model_dir: str = gin.REQUIRED,
    model: Callable = gin.REQUIRED,
    optimizer: Callable[..., optimizers.Optimizer] = optimizers.adamw,
    data_dir: str = gin.REQUIRED,
    mixture: str = gin.REQUIRED,
    total_steps: int = gin.REQUIRED,
    batch_size: int = 16,
    length: int = 2048,
    microbatches: int = 1,
    seed: int = 0,
    z_loss: float = 0.0,
    initial_checkpoint: str | None = None,
    evaluators: tuple = (),
    evaluation_period: int = 0,
    early_stopping_patience: int | None = None,
    log_period: int = 10,
    nan_policy: str = 'skip',
    max_skipped_steps: int = 10,
    new_stream: bool = False,
    checkpoint_config: Callable = checkpoints.CheckpointConfig,
    partitioner: Callable = Partitioner,
) -> int:
  """Trains, or resumes, in `model_dir`.

  Args:
    model_dir: checkpoints, metrics.jsonl, tensorboard/ and config.gin are written here.
    model: a Linen module with the signature of `models.decoder.Decoder`.
    optimizer: called with total_steps; returns an `Optimizer`.
    data_dir: D of `crossin prepare`.
    mixture: name of a prepared mixture.
    total_steps: batches of the whole run.
    batch_size: rows of the global batch.
    length: tokens in a row.
    microbatches: the batch is cut into this many; changes memory, not results.
    seed: of initialisation, dropout and row order.
    z_loss: factor on log(Z)^2; 0 = none.
    initial_checkpoint: parameters to start from (checkpoint or MODEL_DIR, ours or T5X's); None = fresh.
    evaluators: each called with (model, params, partitioner), yields (name, value).
    evaluation_period: steps between evaluations, and one after the last step; 0 = none.
    early_stopping_patience: evaluations without a better `CheckpointConfig.best_metric` after which the run
      ends; None = never.
    log_period: steps per line of metrics.jsonl.
    nan_policy: 'skip' leaves a step with a non-finite loss or gradient out, 'stop' ends the run there.
    max_skipped_steps: that many in a row end the run also under 'skip'.
    new_stream: go on with other data settings than the checkpoint's, on purpose.
    checkpoint_config: when to save, what to keep.
    partitioner: mesh and axis rules.

  Returns:
    0 when all steps are done (or early stopping ended them), 75 when told to stop.

  Raises:
    TrainingError: changed data on resume, NaN, a batch that does not fit the mesh, a vocabulary larger
      than the model's.
  """
  if nan_policy not in ('skip', 'stop'):
    raise TrainingError(f"train.nan_policy = {nan_policy!r} is not 'skip' or 'stop'")
  os.makedirs(model_dir, exist_ok=True)
  with _write_lock(model_dir), StopSignal() as stop:
    # ---- what there is -----------------------------------------------------------------------------------
    partition = partitioner()
    prepared = PreparedMixture(data_dir, mixture)
    stream = BatchStream(prepared, batch_size=batch_size, length=length, seed=seed)
    optimizer = optimizer(total_steps=total_steps)
    checkpoint_settings = checkpoint_config()
    _check_fit(model, prepared, partition, batch_size, microbatches)
    tasks = [task.info for task in prepared.tasks]
    table = metrics_lib.TaskTable(tasks)
    with partition.activate():
      abstract = train_state.state_shardings(model, optimizer.transform, partition, length)

      # ---- restore, or initialise --------------------------------------------------------------------------
      saved = checkpoints.Checkpoints(model_dir, checkpoint_settings)
      restored = saved.restore_latest(abstract)
      if restored:
        state, run = restored
        _check_stream(run['stream'], stream.settings, new_stream)
      else:
        state = train_state.init_state(model, optimizer.transform, abstract, length, seed)
        run = {'period': None, 'best': None, 'evaluations_without_better': 0}
        if initial_checkpoint:
          params = checkpoints.restore_params(initial_checkpoint, abstract.params)
          state = state.replace(params=params)
      step = first_step = int(state.step)
      period = metrics_lib.Period(len(tasks), run['period'])
      if jax.process_index() == 0:
        _save_config(model_dir, prepared)
        writer = metrics_lib.MetricsWriter(model_dir, first_step)
      if step >= total_steps:
        logging.info('%s is finished at step %d', model_dir, step)
        saved.close()
        return 0

      # ---- compile, in a thread: Python hears no signal while XLA holds the main one ---------------------------
      step_fn = jax.jit(
          train_state.make_train_step(
              model,
              optimizer,
              tasks=len(tasks),
              microbatches=microbatches,
              z_loss=z_loss,
              seed=seed,
              dropout=getattr(getattr(model, 'config', None), 'dropout_rate', 0) > 0,
          ),
          donate_argnums=0,
          out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), None),
      )
      loader = Loader(stream, partition.batch_sharding, first_step)
      progress = metrics_lib.Progress(total_steps, f'train {os.path.basename(os.path.normpath(model_dir))}: step')
      rate_at = jax.jit(optimizer.schedule)
      skipped_in_a_row, pending, finished_early = 0, None, False
      clock = time.monotonic()

      def finish(pending_step, pending_metrics):
        """Reads one step's metrics, logs a line at the end of a period, and minds NaN."""
        nonlocal clock, period, skipped_in_a_row
        values = jax.device_get(pending_metrics)
        period.add(values)
        skipped_in_a_row = skipped_in_a_row + 1 if values.skipped else 0
        if values.skipped:
          logging.warning('step %d: loss or gradient is not finite; its update was left out', pending_step)
          if nan_policy == 'stop' or skipped_in_a_row >= max_skipped_steps:
            raise TrainingError(
                f'{skipped_in_a_row} step(s) in a row with a non-finite loss or gradient, last {pending_step}. '
                'Lower the learning rate or look at the rows of that batch'
            )
        if pending_step % log_period == 0 or pending_step == total_steps:
          now = time.monotonic()
          line = _metrics_line(period.sums, table, float(rate_at(pending_step - 1)), now - clock)
          if jax.process_index() == 0:
            writer.write(pending_step, line)
            progress.show(pending_step, f'loss {line["loss"]:.4f}')
          clock, period = now, metrics_lib.Period(len(tasks))

      # ---- the loop ------------------------------------------------------------------------------------------
      try:
        while step < total_steps and not finished_early:
          batch = next(loader)
          if step == first_step:
            step_fn = _in_thread(step_fn.lower(state, batch).compile)
          with jax.transfer_guard('disallow'):
            state, step_metrics = step_fn(state, batch)
          if pending:
            finish(*pending)  # step n runs while the metrics of step n - 1 are read
          step += 1
          pending = (step, step_metrics)

          evaluate = evaluation_period and (step % evaluation_period == 0 or step == total_steps)
          save = step == total_steps or (checkpoint_settings.period and step % checkpoint_settings.period == 0)
          stopping = stop.requested()
          figures = {}
          if evaluate or save or stopping:
            finish(*pending)
            pending = None
          if evaluate and not stopping:
            figures = {name: value for evaluator in evaluators for name, value in evaluator(model, state.params, partition)}
            if jax.process_index() == 0 and figures:
              writer.write(step, figures)
              shown = ' '.join(f'{k} {v:.4f}' for k, v in figures.items() if isinstance(v, float))
              progress.show(step, shown, force=True)
            finished_early = _early_stop(run, figures, checkpoint_settings, early_stopping_patience)
            clock = time.monotonic()
          if save or stopping or finished_early:
            run |= {'stream': stream.settings, 'fingerprint': fingerprint(stream.settings), 'period': period.sums}
            saved.save(step, state, run, {k: v for k, v in figures.items() if isinstance(v, float)} or None)
          if stopping and step < total_steps:
            saved.close()
            logging.info('told to stop: saved step %d, exiting with %d', step, RESTART)
            print(f'told to stop: saved step {step}; start the same command again to go on', file=sys.stderr)
            return RESTART
      finally:
        loader.close()
        saved.wait()
      saved.close()
      if jax.process_index() == 0:
        writer.close()
        if stream.dropped:
          logging.warning('%d examples found no room in their window nor in the next and were left out', stream.dropped)
  return 0


def _check_fit(model, prepared, partition, batch_size, microbatches) -> None:
  """Refuses what would fail, or silently go wrong, after the compile."""
  rows = partition.batch_ways * microbatches
  if batch_size % rows:
    raise TrainingError(
        f'batch_size = {batch_size} does not divide into {partition.batch_ways} parts of the mesh '
        f'{dict(partition.mesh.shape)} times {microbatches} microbatches; use a multiple of {rows}'
    )
  model_size = getattr(getattr(model, 'config', None), 'vocab_size', None)
  if model_size is not None and model_size < prepared.vocabulary_size:
    raise TrainingError(
        f'the model has {model_size} ids, the vocabulary of mixture {prepared.name} has {prepared.vocabulary_size}; '
        f'set DecoderConfig.vocab_size to at least that'
    )


def _check_stream(saved: dict, now: dict, new_stream: bool) -> None:
  """A changed stream on resume is an error that names the difference."""
  if saved == now or new_stream:
    return
  flat = lambda settings: {
      **{key: value for key, value in settings.items() if key != 'tasks'},
      **{f'task {t["task"]}: {key}': t[key] for t in settings['tasks'] for key in ('fingerprint', 'rate', 'examples')},
  }
  before, after = flat(saved), flat(now)
  names = [key for key in {**before, **after} if before.get(key) != after.get(key)]
  differences = '; '.join(f'{key} was {before.get(key)}, now {after.get(key)}' for key in names[:6])
  raise TrainingError(
      f'the data of this run have changed since its checkpoint: {differences}. Undo the change, use another '
      'MODEL_DIR, or go on with a new stream on purpose: --gin.train.new_stream=True'
  )


def _metrics_line(sums: dict, table, learning_rate: float, seconds: float) -> dict:
  """One line of metrics.jsonl from the sums of a period."""
  mean = sums['loss'] / sums['weight'] if sums['weight'] else float('nan')
  by_source, by_language = table.means(sums['loss_by_task'], sums['weight_by_task'])
  return {
      'loss': mean,
      'loss_tokens': sums['weight'],
      'tokens': sums['tokens'],
      'gradient_norm': sums['gradient_norm'],
      'learning_rate': learning_rate,
      'skipped_steps': sums['skipped'],
      'seconds_per_step': seconds / max(1, sums['steps']),
      'tokens_per_second': sums['tokens'] / seconds if seconds else None,
      'loss_tokens_per_second': sums['weight'] / seconds if seconds else None,
      'mfu': None,
      'loss_by_source': by_source,
      'loss_by_language': by_language,
  }


def _early_stop(run: dict, figures: dict, settings, patience: int | None) -> bool:
  """Notes the best figure in `run`; True when it has not improved for `patience` evaluations."""
  if settings.best_metric is None:
    if patience is not None:
      raise TrainingError('train.early_stopping_patience needs CheckpointConfig.best_metric')
    return False
  if settings.best_metric not in figures:
    raise TrainingError(
        f'CheckpointConfig.best_metric = {settings.best_metric!r} is none of the evaluators\' figures: {", ".join(figures)}'
    )
  value, best = figures[settings.best_metric], run.get('best')
  better = best is None or (value < best if settings.best_mode == 'min' else value > best)
  run['best'] = value if better else best
  run['evaluations_without_better'] = 0 if better else run.get('evaluations_without_better', 0) + 1
  return patience is not None and run['evaluations_without_better'] >= patience


def _save_config(model_dir: str, prepared: PreparedMixture) -> None:
  """The operative config, and what inference needs to prompt the model as training did."""
  path = os.path.join(model_dir, 'config.gin')
  with open(f'{path}.writing', 'w', encoding='utf-8') as f:
    f.write(gin.operative_config_str())
  os.replace(f'{path}.writing', path)
  vocabulary = prepared.description['vocabulary']
  copy = os.path.basename(vocabulary['file'])
  shutil.copyfile(prepared.vocabulary_path, os.path.join(model_dir, copy))
  write_json(
      os.path.join(model_dir, 'prompts.json'),
      {'prompts': prepared.description['prompts'], 'vocabulary': {**vocabulary, 'file': copy}},
  )


def _in_thread(function):
  """Runs a function in a thread and waits in small steps, so that signals are heard meanwhile."""
  box = {}
  mesh = jax.sharding.get_mesh()

  def target():
    try:
      with jax.set_mesh(mesh) if not mesh.empty else contextlib.nullcontext():
        box['value'] = function()
    except BaseException as error:  # pylint: disable=broad-exception-caught  # raised again below
      box['error'] = error

  thread = threading.Thread(target=target, daemon=True, name='compile')
  thread.start()
  while thread.is_alive():
    thread.join(0.2)
  if 'error' in box:
    raise box['error']
  return box['value']


class StopSignal:
  """Hears SIGTERM and SIGINT between steps; a second SIGINT acts at once."""

  def __init__(self):
    self._flag, self._previous = False, {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._hear)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _hear(self, number, _):
    if self._flag and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._flag = True

  def requested(self) -> bool:
    """Whether any host was told to stop; all hosts get the same answer."""
    if jax.process_count() == 1:
      return self._flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(self._flag)).any())


@contextlib.contextmanager
def _write_lock(model_dir: str):
  """One run per MODEL_DIR: a second one refuses and names the first."""
  if jax.process_index():
    yield
    return
  import fcntl
  import socket

  path = os.path.join(model_dir, 'lock')
  with open(path, 'a+', encoding='utf-8') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      f.seek(0)
      raise TrainingError(
          f'{model_dir} is in use by {f.read().strip() or "another run"}; wait for it, stop it, or use another MODEL_DIR'
      ) from None
    f.truncate(0)
    f.write(f'process {os.getpid()} on {socket.gethostname()}')
    f.flush()
    yield


def main(argv: list[str]) -> int:
  """The command line of `crossin train`."""
  parser = argparse.ArgumentParser(
      prog='crossin train',
      description='Train, or resume, in MODEL_DIR. Exit status: 0 finished, 75 told to stop (start again), 1 failed, 2 usage.',
      epilog="example: crossin train --gin_file=gin_configs/runs/world_tune.gin --gin.MODEL_DIR=\"'runs/a'\"",
  )
  parser.add_argument('--json', action='store_true', help='one JSON object as last line on stdout')
  config.add_flags(parser)
  args = parser.parse_args(argv)
  config.parse(args)
  status = train()
  if args.json:
    model_dir = gin.query_parameter('train.model_dir')
    model_dir = config.macro('MODEL_DIR') if not isinstance(model_dir, str) else model_dir
    last = {}
    with open(os.path.join(model_dir, 'metrics.jsonl'), encoding='utf-8') as f:
      for line in f:
        last |= json.loads(line)
    print(json.dumps({'model_dir': model_dir, 'status': status, **last}))
  return status
