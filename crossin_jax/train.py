"""`crossin train`: one loop for every model, mesh and mixture, read top to bottom."""

from collections.abc import Callable
import hashlib
import json
import os
import sys
import time
import warnings

import gin
import jax

from crossin_jax import config
from crossin_jax import progress as metrics_lib
from crossin_jax.checkpoints import manager, run_directory
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import BatchStream, Loader, check_resume, fingerprint
from crossin_jax.devices import flops
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.errors import CrossinError, Interrupted
from crossin_jax.models import lora
from crossin_jax.processes import distributed, interruption
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.storage import lease, remote
from crossin_jax.training import compiled, metrics, nonfinite, optimizers
from crossin_jax.training import state as train_state
from crossin_jax.workflow import command_line


class TrainingError(CrossinError, RuntimeError):
  """The run cannot go on; the message says why and what to do."""


@gin.configurable
def train(
  model_dir: str = gin.REQUIRED,
  model: Callable = gin.REQUIRED,
  optimizer: Callable[..., optimizers.Optimizer] = optimizers.adamw,
  data_dir: str = gin.REQUIRED,
  mixture: str = gin.REQUIRED,
  total_steps: int | None = None,
  epochs: float | None = None,
  epochs_until: str = 'all',
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
  spike_factor: float | None = None,
  max_skipped_steps: int = 10,
  new_stream: bool = False,
  checkpoint_config: Callable = manager.CheckpointConfig,
  partitioner: Callable = Partitioner,
) -> int:
  """Trains, or resumes, in `model_dir`.

  Args:
    model_dir: checkpoints, metrics.jsonl, tensorboard/ and config.gin are written here; on gs://
      small files every 30 s and before each checkpoint.
    model: a Linen module with the signature of `models.decoder.Decoder`.
    optimizer: called with total_steps; returns an `Optimizer`.
    data_dir: D of `crossin prepare`.
    mixture: name of a prepared mixture.
    total_steps: batches of the whole run; sources begin anew, in another order, as often as that
      takes.
    epochs: instead of total_steps: how often the tasks are read.
    epochs_until: 'all' tasks have been read so often, or the 'first' one has.
    batch_size: rows of the global batch.
    length: tokens in a row.
    microbatches: the batch is cut into this many; changes memory, not results.
    seed: of initialisation, dropout and row order.
    z_loss: factor on log(Z)^2; 0 = none.
    initial_checkpoint: parameters to start from: a checkpoint or MODEL_DIR (ours or T5X's), or a
      Hugging Face directory; None = fresh.
    evaluators: each called with (model, params, partitioner), yields (name, value).
    evaluation_period: steps between evaluations, and one after the last step; 0 = none.
    early_stopping_patience: evaluations without a better `CheckpointConfig.best_metric` after which
      the run ends; None = never.
    log_period: steps per line of metrics.jsonl.
    nan_policy: 'skip' leaves a step with a non-finite loss or gradient (or a spike) out, 'stop'
      ends the run there. Either names the examples to blame.
    spike_factor: a loss above this many times the median of the last 50 steps counts as a spike;
      None = none does.
    max_skipped_steps: that many in a row end the run also under 'skip'.
    new_stream: go on with other data settings than the checkpoint's, on purpose.
    checkpoint_config: when to save, what to keep.
    partitioner: mesh and axis rules.

  Returns:
    0 when all steps are done (or early stopping ended them), 75 when told to stop.

  Raises:
    TrainingError: NaN, a batch that does not fit the mesh, a vocabulary larger than the model's.
    ValueError: changed data on resume, and settings that are no legal choice.
    RollCallError: processes of a run that differ in data, model, mesh or number of steps; they are
      named.
    RunError, CheckpointError, PreparedDataError: see there.
  """
  if nan_policy not in ('skip', 'stop'):
    raise ValueError(f"train.nan_policy = {nan_policy!r} is not 'skip' or 'stop'")
  if (total_steps is None) == (epochs is None):
    raise ValueError('set one of train.total_steps (TRAIN_STEPS) and train.epochs')
  with (
    run_directory.exclusive(model_dir) as files,
    compiled.compiled_programs(model_dir),
    interruption.StopSignal() as stop,
  ):
    # ---- what there is ----
    partition = partitioner()
    prepared = PreparedMixture(data_dir, mixture)
    stream = BatchStream(prepared, batch_size=batch_size, length=length, seed=seed)
    total_steps = total_steps or stream.steps_for_epochs(epochs, epochs_until)
    if (
      chosen := partition.suit(model, batch_size=batch_size // microbatches)
    ) and jax.process_index() == 0:
      print(chosen, file=sys.stderr)
    optimizer = optimizer(total_steps=total_steps)
    checkpoint_settings = checkpoint_config()
    _check_fit(model, prepared, partition, batch_size, microbatches)
    distributed.barrier('the start', _what_must_be_equal(model, partition, stream, total_steps))
    if initial_checkpoint:
      source = SavedModel.open(initial_checkpoint)
    tasks = [task.info for task in prepared.tasks]
    table = metrics.TaskTable(tasks)
    chief = jax.process_index() == 0
    with partition.activate():
      abstract = train_state.state_shardings(model, optimizer.transform, partition, length)

      # ---- restore, or initialise ----
      adapters = lora.of_model(model)
      if adapters and not initial_checkpoint:
        raise TrainingError(
          'LoRA adapters need a model beneath: set train.initial_checkpoint '
          '(INITIAL_CHECKPOINT_PATH)'
        )
      base = source.base if adapters else None
      distributed.barrier('restoring')
      saved = manager.Checkpoints(model_dir, checkpoint_settings)
      restored = saved.restore_latest(abstract)
      if restored:
        state, run = restored
        check_resume(run['stream'], stream.settings, new_stream)
        if adapters:
          source.check_base(run.get('base'))
          frozen = SavedModel.open(base['path']).restore(abstract.frozen, model)
          state = state.replace(frozen=lora.quantised(frozen, adapters))
        if run['stream'] != stream.settings:
          run['period'] = None  # open sums are of other tasks
      else:
        known = _initial_params(initial_checkpoint, model, abstract)
        state = train_state.init_state(model, optimizer.transform, abstract, length, seed, known)
        run = {
          'period': None,
          'losses': [],
          'best': None,
          'evaluations_without_better': 0,
          'evaluated': 0,
        }
      step = first_step = int(state.step)
      period = metrics.Period(len(tasks), run['period'])
      spikes = nonfinite.SpikeThreshold(spike_factor, run['losses'])
      if chief:
        run_directory.describe(files.path, prepared, initial_checkpoint)
        files.push()  # evaluators read it on all hosts
        writer = metrics.MetricsWriter(files.path, first_step, evaluated=run['evaluated'])
      progress = metrics_lib.Progress(
        total_steps, f'train {os.path.basename(os.path.normpath(model_dir))}: step'
      )
      step_fn = train_state.jit_train_step(
        model,
        optimizer,
        state,
        tasks=len(tasks),
        microbatches=microbatches,
        z_loss=z_loss,
        seed=seed,
      )
      rate_at = jax.jit(optimizer.schedule)
      threshold_of = lambda at: jax.device_put(spikes.at(at), partition.replicated)
      loader = Loader(stream, partition.batch_sharding, first_step)
      skipped_in_a_row, pending = 0, None
      clock = time.monotonic()

      def finish(pending_step, pending_metrics):
        """Reads one step's metrics, logs a line at the end of a period, and minds NaN and spikes."""
        nonlocal clock, period, skipped_in_a_row
        values = jax.device_get(pending_metrics)
        period.add(values)
        spikes.add(pending_step, values)
        skipped_in_a_row = skipped_in_a_row + 1 if values.skipped else 0
        if values.skipped:
          blamed = nonfinite.blame(
            model, state.model_params, partition, stream, pending_step - 1, values
          )
          print(f'step {pending_step}: {blamed}; its update was left out', file=sys.stderr)
          if nan_policy == 'stop' or skipped_in_a_row >= max_skipped_steps:
            raise TrainingError(
              f'step {pending_step}: {blamed}; {skipped_in_a_row} such step(s) in a row. Mend or '
              'remove those rows and '
              'prepare again, or lower the learning rate (schedule.peak)'
            )
        if pending_step % log_period == 0 or pending_step == total_steps:
          now = time.monotonic()
          line = _metrics_line(period.sums, table, float(rate_at(pending_step - 1)), now - clock)
          line['mfu'] = flops.utilisation(
            getattr(model, 'config', None), length, line['tokens_per_second'] or 0.0
          )
          files.check()
          if chief:
            writer.write(pending_step, line)
            progress.show(pending_step, f'loss {line["loss"]:.4f}')
          clock, period = now, metrics.Period(len(tasks))

      def evaluate() -> dict:
        """Figures of all evaluators at this step; Interrupted if told to stop meanwhile."""
        nonlocal clock
        distributed.barrier(f'the evaluation of step {step}')
        figures = {
          name: value
          for evaluator in evaluators
          for name, value in evaluator(model, state.model_params, partition)
        }
        if chief and figures:
          writer.write(step, figures)
          shown = ' '.join(f'{k} {v:.4f}' for k, v in figures.items() if isinstance(v, float))
          progress.show(step, shown, force=True)
        run['evaluated'] = step
        clock = time.monotonic()
        return figures

      def save(figures) -> None:
        distributed.barrier(f'the save of step {step}', step)
        files.check()
        try:
          files.push()  # a checkpoint is not ahead of metrics.jsonl
        except lease.InUse:
          raise
        except remote.RemoteError as error:
          print(
            f'warning: {error}; the checkpoint of step {step} is saved all the same',
            file=sys.stderr,
          )
        now = {
          'stream': stream.settings,
          'fingerprint': fingerprint(stream.settings),
          'period': period.sums,
          'base': base,
        }
        saved.save(step, state, run | now | {'losses': spikes.losses}, figures)

      # ---- the loop ----
      # A step is due for evaluation once; a run that was stopped in the middle of one begins with
      # it.
      evaluation_due = lambda: (
        evaluation_period and (step % evaluation_period == 0 or step == total_steps)
      )
      finished_early = bool(run.get('finished_early'))
      try:
        if step and evaluation_due() and run['evaluated'] < step:
          figures = evaluate()
          finished_early = _early_stop(run, figures, checkpoint_settings, early_stopping_patience)
        # A step compiled ahead of time refuses 4-bit arguments for their layout; it then compiles
        # at its first call.
        if (
          step < total_steps
          and not finished_early
          and not (adapters and adapters.base_dtype == 'nf4')
        ):
          distributed.barrier('compiling')
          step_fn = compiled.in_thread(
            step_fn.lower(state, loader.peek(), threshold_of(step + 1)).compile
          )
          distributed.barrier('the first step')
        while step < total_steps and not finished_early:
          batch, threshold = next(loader), threshold_of(step + 1)
          with jax.transfer_guard('disallow'):
            state, step_metrics = step_fn(state, batch, threshold)
          if pending:
            finish(*pending)  # step n runs while the metrics of step n - 1 are read
          step += 1
          pending = (step, step_metrics)

          stopping = stop.requested()
          due = evaluation_due()
          if due or stopping or step == total_steps or checkpoint_settings.is_due(step):
            finish(*pending)
            pending, figures = None, {}
            if due and not stopping:
              figures = evaluate()
              finished_early = run['finished_early'] = _early_stop(
                run, figures, checkpoint_settings, early_stopping_patience
              )
            if (
              stopping or finished_early or step == total_steps or checkpoint_settings.is_due(step)
            ):
              save(figures)
          if stopping and step < total_steps:
            raise Interrupted
      except Interrupted:
        save({})
        saved.close()
        print(
          f'told to stop: saved step {step}; start the same command again to go on', file=sys.stderr
        )
        return RESTART
      finally:
        loader.close()
      saved.close()
      if chief:
        writer.close()
        if stream.dropped:
          warnings.warn(
            f'{stream.dropped} examples found no room in their window nor in the next and were '
            'left out'
          )
  return 0


def _initial_params(initial_checkpoint: str | None, model, abstract):
  """The parameters that training starts from, or None: of a LoRA run its adapters too, of anything
  else no adapters.
  """
  if not initial_checkpoint:
    return None
  source = SavedModel.open(initial_checkpoint)
  wanted = lora.merge(abstract.params, abstract.frozen)
  if lora.of_model(model) and not source.has_adapters:
    wanted = lora.without_adapters(wanted)
  return source.restore(wanted, model)


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
      f'the model has {model_size} ids, the vocabulary of mixture {prepared.name} has '
      f'{prepared.vocabulary_size}; '
      f'set DecoderConfig.vocab_size to at least that'
    )


def _what_must_be_equal(model, partition, stream, total_steps: int) -> str:
  """What the processes of a run must have in common; short, as it stands in the message if they
  have not.
  """
  digest = lambda value: hashlib.sha256(repr(value).encode()).hexdigest()[:8]
  return (
    f'jax {jax.__version__}, model {digest(model)}, data {digest(fingerprint(stream.settings))}, '
    f'mesh {tuple(partition.mesh.shape.values())}, steps {total_steps}'
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
      f"CheckpointConfig.best_metric = {settings.best_metric!r} is none of the evaluators' "
      f'figures: {", ".join(figures)}'
    )
  value, best = figures[settings.best_metric], run.get('best')
  better = best is None or (value < best if settings.best_mode == 'min' else value > best)
  run['best'] = value if better else best
  run['evaluations_without_better'] = 0 if better else run.get('evaluations_without_better', 0) + 1
  return patience is not None and run['evaluations_without_better'] >= patience


def main(argv: list[str]) -> int:
  """The command line of `crossin train`."""
  parser = command_line.Parser(
    'train',
    'Train, or resume, in MODEL_DIR.',
    'crossin train --gin_file=gin_configs/runs/world_tune.gin --gin.MODEL_DIR="\'runs/a\'"',
    gin=True,
    processes=True,
  )
  args = parser.parse_args(argv)
  config.parse(args)
  distributed.initialize(args)
  status = train()
  last = {}
  if args.json:
    model_dir = config.resolve(config.bound('train.model_dir'))
    with open(remote.fetched(os.path.join(model_dir, 'metrics.jsonl')), encoding='utf-8') as f:
      for line in f:
        last |= json.loads(line)
    last |= {'model_dir': model_dir, 'status': status}
  return command_line.finish(args, last, status)
