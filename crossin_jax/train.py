"""`crossin train`: one loop for every model, mesh and mixture."""

from collections.abc import Callable
import contextlib
import dataclasses
import hashlib
import itertools
import os
import sys
from typing import Any
import warnings

import gin
import jax

from crossin_jax import config, progress
from crossin_jax.checkpoints import manager, run_directory, tokenizer_check
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.stream import BatchStream, Loader, check_resume, fingerprint
from crossin_jax.devices import flops
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.errors import Interrupted
from crossin_jax.models import lora
from crossin_jax.models.decoder import attention_kernel
from crossin_jax.processes import distributed, interruption
from crossin_jax.processes.exit_status import DONE, RESTART
from crossin_jax.storage import hub_names
from crossin_jax.storage.records import read_records
from crossin_jax.training import compiled, messages, nonfinite, objectives, optimizers
from crossin_jax.training import state as train_state
from crossin_jax.training.bookkeeping import Bookkeeping, RunState, TrainingError
from crossin_jax.workflow import command_line, run_flags


@gin.configurable
def train(
  model_dir: str = gin.REQUIRED,
  model: Callable = gin.REQUIRED,
  optimizer: Callable[..., optimizers.Optimizer] = optimizers.adamw,
  objective: Any = None,
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
  trackers: tuple | None = None,
  nan_policy: str = 'skip',
  spike_factor: float | None = None,
  max_skipped_steps: int = 10,
  new_stream: bool = False,
  check_tokenizer: bool = True,
  checkpoint_config: Callable = manager.CheckpointConfig,
  partitioner: Callable = Partitioner,
) -> int:
  """Trains, or resumes, in `model_dir`.

  Args:
    model_dir: for checkpoints, metrics.jsonl, tensorboard/ and config.gin; on gs:// small files are
      pushed every 30 s and before each checkpoint.
    model: a Linen module with the signature of `models.decoder.Decoder`.
    optimizer: called with total_steps; returns an `Optimizer`.
    objective: of @Likelihood(), and for preference pairs @Preference() and @DirectConsistency();
      None = the likelihood.
    data_dir: D of `crossin prepare`.
    mixture: name of a prepared mixture.
    total_steps: batches of the run; sources repeat, in a new order, as often as needed.
    epochs: how often the tasks are read, instead of total_steps.
    epochs_until: 'all' tasks have been read so often, or the 'first' one.
    batch_size: rows of the global batch.
    length: tokens in a row.
    microbatches: the batch is computed in this many parts; changes memory, not results.
    seed: of initialisation, dropout and row order.
    z_loss: factor on log(Z)^2; 0 = none.
    initial_checkpoint: parameters to start from: a checkpoint or MODEL_DIR (ours or T5X's), a
      Hugging Face directory or a PEFT adapter, also by its name on the hub; None = fresh.
    evaluators: each called with (model, params, partitioner), yields (name, value). One with a
      method `figures` returns the names of its numbers there, or raises if it cannot evaluate; it
      is called before the first step. One with `for_objective` learns the objective of the run.
    evaluation_period: steps between evaluations, and one after the last step; 0 = none, only
      without evaluators.
    early_stopping_patience: evaluations without a better `CheckpointConfig.best_metric` after which
      the run ends; None = never.
    log_period: steps per line of metrics.jsonl.
    trackers: of (@TensorBoard(), @WandB(), @Trackio()), where the lines are shown; None =
      TensorBoard. One that fails does not stop the run.
    nan_policy: 'skip' skips the update of a step with a non-finite loss or gradient, or a spike;
      'stop' ends the run. Both name the examples that cause it.
    spike_factor: a loss above this many times the median of the last 50 steps counts as a spike;
      None = none does.
    max_skipped_steps: that many in a row end the run under 'skip' too.
    new_stream: resume with other data settings than the checkpoint's, on purpose.
    check_tokenizer: refuse a mixture that was prepared with another tokenizer than that of
      `initial_checkpoint`, where that has one.
    checkpoint_config: when to save, what to keep.
    partitioner: mesh and axis rules.

  Returns:
    0 when all steps are done or early stopping ended the run, 75 when it was interrupted.

  Raises:
    TrainingError: NaN, a batch that does not fit the mesh, a vocabulary larger than the model's,
      evaluators or a `best_metric` that would never be evaluated.
    ValueError: invalid settings, or changed data on resume.
    RollCallError: processes that differ in data, model, mesh or number of steps; they are named.
    TokenizerDiffers: see `check_tokenizer`.
    RunError, CheckpointError, PreparedDataError: see there.
  """
  _check_settings(nan_policy, total_steps, epochs)
  with (
    run_directory.exclusive(model_dir) as files,
    compiled.compiled_programs(model_dir),
    interruption.StopSignal(True, 'the step that runs is finished and saved first') as stop,
  ):
    partition = partitioner()
    prepared = PreparedMixture(data_dir, mixture)
    source = SavedModel.open(initial_checkpoint) if initial_checkpoint else None
    if source and check_tokenizer:
      tokenizer_check.check_tokenizer(source, prepared)
    objective = objective or objectives.LIKELIHOOD
    objective.check(prepared, z_loss)
    stream = BatchStream(
      prepared, batch_size=batch_size, length=length, seed=seed,
      auto_pairs=_layout_of_pairs(model, length, prepared),
      reference=objective.stored_reference(model, source),
    )  # fmt: skip
    if not new_stream:
      stream = stream.as_begun(manager.saved_run(model_dir).get('stream'))
    total_steps = total_steps or stream.steps_for_epochs(epochs, epochs_until)
    mesh_choice = partition.suit(model, batch_size=batch_size // microbatches)
    if mesh_choice and jax.process_index() == 0:
      print(mesh_choice, file=sys.stderr)
    optimizer = optimizers.build(optimizer, total_steps)
    keeping = checkpoint_config()
    if evaluation_period:  # only then they need the reference of the objective
      evaluators = _for_objective(evaluators, objective, stream.reference)
    _check_fit(model, prepared, partition, batch_size, microbatches)
    _check_evaluation(evaluators, evaluation_period, keeping, early_stopping_patience)
    begun_from = source.path if source and hub_names.is_name(source.path) else None
    of_all = _must_be_equal((model, objective, begun_from), partition, stream, total_steps)
    distributed.barrier('the start', of_all)
    tasks = [task.info for task in prepared.tasks]
    with partition.activate():
      distributed.barrier('restoring')
      checkpoints = manager.Checkpoints(model_dir, keeping)
      state, run = _begin(
        model, optimizer, objective, partition, stream, source, checkpoints, new_stream
      )
      step = int(state.step)
      if jax.process_index() == 0:
        if step > total_steps:
          print(f'nothing to do: step {step} is saved, {total_steps} are wanted', file=sys.stderr)
        described = hub_names.recorded(gin.operative_config_str())
        run_directory.describe(files.path, prepared, described, initial_checkpoint)
        files.push()  # evaluators read it on all hosts
        messages.started(model_dir, model, state, stream, step, total_steps, partition)
      books = Bookkeeping(
        run, files, tasks, step, total_steps, os.path.basename(os.path.normpath(model_dir)),
        log_period, nan_policy, max_skipped_steps, spike_factor,
        learning_rate=jax.jit(optimizer.schedule),
        utilisation=lambda rate: flops.utilisation(getattr(model, 'config', None), length, rate),
        blame=lambda at, values: nonfinite.blame(
          model, state.model_params, partition, stream, at - 1, values
        ),
        trackers=trackers,
      )  # fmt: skip
      step_fn = train_state.jit_train_step(
        model, optimizer, state, tasks=len(tasks), microbatches=microbatches, z_loss=z_loss,
        seed=seed, objective=objective,
      )  # fmt: skip
      threshold_of = lambda at: jax.device_put(books.spikes.at(at), partition.replicated)
      loader = Loader(stream, partition.batch_sharding, step)

      def evaluate() -> dict:
        distributed.barrier(f'the evaluation of step {step}')
        figures = {
          name: value
          for evaluator in evaluators
          for name, value in evaluator(model, state.model_params, partition)
        }
        books.evaluated(step, figures, keeping, early_stopping_patience)
        return figures

      def measure_before() -> None:
        distributed.barrier('the evaluation before training')
        chosen = [one for one in evaluators if getattr(one, 'before_training', False)]
        books.begun(dict(
          pair for one in chosen for pair in one(model, state.model_params, partition)
        ))  # fmt: skip

      def save(figures: dict) -> None:
        distributed.barrier(f'the save of step {step}', step)
        checkpoints.save(step, state, books.state(step).as_json(), figures)

      # ---- the loop ----
      evaluation_due = lambda: (
        evaluation_period and (step % evaluation_period == 0 or step == total_steps)
      )
      pending, begun = None, step
      try:
        if step and evaluation_due() and books.run.evaluated < step:
          evaluate()  # the run was interrupted during this evaluation
        elif not step and evaluation_period:
          measure_before()
        if step < total_steps and not books.run.finished_early:
          step_fn = _compiled(step_fn, model, state, loader.peek(), threshold_of(step + 1))
        while step < total_steps and not books.run.finished_early:
          batch, threshold = next(loader), threshold_of(step + 1)
          with jax.transfer_guard('disallow'):
            state, step_metrics = step_fn(state, batch, threshold)
          if pending:
            books.finish(*pending)  # step n runs while the metrics of step n - 1 are read
            stop.at_once = False  # from now on there is something to save
          step += 1
          pending = (step, step_metrics)

          stopping, last = stop.requested(), step == total_steps
          if evaluation_due() or stopping or last or keeping.is_due(step):
            books.finish(*pending)
            pending, stop.at_once = None, False
            figures = evaluate() if evaluation_due() and not stopping else {}
            if stopping or last or books.run.finished_early or keeping.is_due(step):
              save(figures)
          if stopping and not last:
            raise Interrupted
      except Interrupted:
        kept = 'nothing was done yet'
        if step > begun:
          save({})
          kept = f'saved step {step}'
        checkpoints.close()
        print(f'interrupted: {kept}; start the same command again to continue', file=sys.stderr)
        return RESTART
      finally:
        loader.close()
      checkpoints.close()
      books.close()
      if jax.process_index() == 0:
        messages.ended(model_dir, os.path.join(files.path, 'metrics.jsonl'), step)
      if stream.dropped and jax.process_index() == 0:
        warnings.warn(
          f'{stream.dropped} examples did not fit into their window or the next and were skipped'
        )
  return DONE


def _check_settings(nan_policy: str, total_steps: int | None, epochs: float | None) -> None:
  if nan_policy not in ('skip', 'stop'):
    raise ValueError(f"train.nan_policy = {nan_policy!r} is not 'skip' or 'stop'")
  if (total_steps is None) == (epochs is None):
    raise ValueError(
      f'set one of train.total_steps (TRAIN_STEPS, now {total_steps}) and train.epochs (now '
      f'{epochs}), and the other to None'
    )


def _layout_of_pairs(model, length: int, prepared: PreparedMixture) -> str:
  """What 'auto' is of `BatchStream.pairs`; says so if it is not 'branches'."""
  kernel = attention_kernel(model, length) if prepared.has_pairs else None
  if kernel is None:
    return 'branches'
  if jax.process_index() == 0 and config.bound('BatchStream.pairs') in (None, 'auto'):
    print(
      f'preference pairs: {kernel} attention knows no branches, so the prompt of a pair is read '
      'twice (BatchStream.pairs; DecoderConfig.attention = "blockwise" reads it once)',
      file=sys.stderr,
    )
  return 'plain'


def _for_objective(evaluators: tuple, objective, reference: str | None) -> tuple:
  """The evaluators; those that report figures of an objective report those of this one."""
  return tuple(
    evaluator.for_objective(objective, reference)
    if hasattr(evaluator, 'for_objective')
    else evaluator
    for evaluator in evaluators
  )


def _begin(model, optimizer, objective, partition, stream, source, checkpoints, new_stream):
  """Restores the latest checkpoint, or initialises.

  Returns:
    (TrainState, RunState).
  """
  abstract = train_state.state_shardings(model, optimizer.transform, partition)
  adapters = lora.of_model(model)
  if adapters and not source:
    raise TrainingError(
      'LoRA adapters need a base model: set train.initial_checkpoint (INITIAL_CHECKPOINT_PATH)'
    )
  base = source.base if adapters else None
  now = {'base': base, 'optimizer': optimizer.settings, 'objective': repr(objective)}
  restored = _restored(checkpoints, abstract, optimizer, repr(objective))
  if not restored:
    params = _initial_params(source, model, abstract)
    state = train_state.init_state(model, optimizer.transform, abstract, stream.seed, params)
    return state, RunState(stream.settings, **now)
  state, run = restored[0], RunState.from_json(restored[1])
  check_resume(run.stream, stream.settings, new_stream)
  if adapters:
    source.check_base(run.base)
    frozen = SavedModel.open(base['path']).restore(abstract.frozen, model)
    state = state.replace(frozen=lora.quantised(frozen, adapters))
  if run.stream != stream.settings:  # the open sums are of other tasks
    run = dataclasses.replace(run, period=None, stream=stream.settings)
  return state, dataclasses.replace(run, **now)


def _restored(checkpoints, abstract, optimizer, objective: str):
  """The latest checkpoint, see `Checkpoints.restore_latest`; changed settings are named."""
  saved = manager.saved_run(checkpoints.model_dir)
  changed = optimizers.changes(saved.get('optimizer'), optimizer.settings)
  if saved.get('objective', objective) != objective:
    changed = [*changed, f'objective was {saved["objective"]}, now {objective}']
  try:
    restored = checkpoints.restore_latest(abstract)
  except manager.OptimizerStateError as error:
    raise error.because_of(changed) from None
  if restored and changed and jax.process_index() == 0:
    print(
      f'resuming at step {int(restored[0].step)} with other settings than before: '
      f'{"; ".join(changed)}',
      file=sys.stderr,
    )
  return restored


def _compiled(step_fn, model, state, batch, threshold):
  """The step compiled ahead of time, in a thread, so that signals are heard meanwhile."""
  if compiled.refuses_ahead(model):
    return step_fn
  distributed.barrier('compiling')
  options = compiled.compiler_options(jax.devices()[0])
  chief = jax.process_index() == 0
  if options and chief:
    told = ', '.join(f'{name}={value}' for name, value in options.items())
    print(f'compiling with {told}', file=sys.stderr)
  with progress.announced('compiling the training step') if chief else contextlib.nullcontext():
    step_fn = compiled.compile_with(step_fn.lower(state, batch, threshold), options)
  if chief:
    messages.compiled(step_fn)
  distributed.barrier('the first step')
  return step_fn


def _initial_params(source: SavedModel | None, model, abstract):
  """The parameters that training starts from, or None: with a LoRA run's adapters if it is one."""
  if not source:
    return None
  wanted = lora.merge(abstract.params, abstract.frozen)
  if lora.of_model(model) and not source.has_adapters:
    wanted = lora.without_adapters(wanted)
  return source.restore(wanted, model)


def _check_fit(model, prepared, partition, batch_size, microbatches) -> None:
  """Raises TrainingError for what would fail, or silently go wrong, after compilation."""
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
      f'{prepared.vocabulary_size}; DecoderConfig.vocab_size={prepared.vocabulary_size} adds '
      'rows for the new tokens'
    )


def _check_evaluation(evaluators, period: int, keeping, patience: int | None) -> None:
  """Raises for evaluations that would fail, or never happen, after hours of training."""
  metric = keeping.best_metric
  if period < 0 or metric is not None and evaluators and not period:
    raise TrainingError(
      f'train.evaluation_period = {period} never calls the {len(evaluators)} train.evaluators: '
      'set a period above 0'
    )
  # `crossin evaluate` calls them too, so they may stand in the configuration of such a run.
  if evaluators and not period and jax.process_index() == 0:
    print(
      f'train.evaluation_period = 0: the {len(evaluators)} train.evaluators are not called in '
      'training',
      file=sys.stderr,
    )
  if patience is not None and metric is None:
    raise TrainingError('train.early_stopping_patience needs CheckpointConfig.best_metric')
  if metric is not None and not evaluators:
    raise TrainingError(
      f'CheckpointConfig.best_metric = {metric!r} needs the evaluator that measures it in '
      'train.evaluators, and train.evaluation_period'
    )
  known = [evaluator.figures() for evaluator in evaluators if hasattr(evaluator, 'figures')]
  names = list(itertools.chain(*known))
  if metric is not None and metric not in names and len(known) == len(evaluators):
    raise TrainingError(
      f'CheckpointConfig.best_metric = {metric!r} is none of the numbers of the evaluators: '
      f'{", ".join(names)}'
    )
  if metric is not None and keeping.best_mode is None:
    raise TrainingError(
      f'the name of CheckpointConfig.best_metric = {metric!r} does not say which values are best: '
      "set CheckpointConfig.best_mode to 'min' or 'max'"
    )


def _must_be_equal(trained, partition, stream, total_steps: int) -> str:
  """What the processes of a run must have in common, short enough for an error message."""
  digest = lambda value: hashlib.sha256(repr(value).encode()).hexdigest()[:8]
  return (
    f'jax {jax.__version__}, model {digest(trained)}, data {digest(fingerprint(stream.settings))}, '
    f'mesh {tuple(partition.mesh.shape.values())}, steps {total_steps}'
  )


def main(argv: list[str]) -> int:
  """The command line of `crossin train`."""
  args = run_flags.train_parser().parse_args(argv)
  config.parse(args)
  model_dir = config.resolve(config.bound('train.model_dir'))
  if model_dir is not None:
    run_directory.keep_names(model_dir)
  distributed.initialize(args)
  status = train()
  last = {}
  if args.json:
    for _, row in read_records(os.path.join(model_dir, 'metrics.jsonl')):
      last |= row
    last |= {'model_dir': model_dir, 'status': status}
  return command_line.finish(args, last, status)
