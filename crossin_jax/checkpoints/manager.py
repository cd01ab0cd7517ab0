"""Orbax checkpoints in T5X's layout, verified by digests.

MODEL_DIR/checkpoint_<step>/state: {'target': params, 'state': {'step', 'param_states'}}
MODEL_DIR/checkpoint_<step>/run: the `RunState` of training as JSON
MODEL_DIR/digests/checkpoint_<step>.json: see `digests`

On gs:// Orbax cannot rename: it writes `_CHECKPOINT_METADATA` first, `commit_success.txt` last. A
checkpoint_<step> without the latter is incomplete. If it has the former, a killed run left it and
the next run removes it. Anything else (a copy in progress, T5X's older layout) is never touched.

With LoRA, `target` holds the trained parameters and `run` refers to the base.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import warnings

from flax import serialization, traverse_util
import gin
import jax
import numpy as np
import orbax.checkpoint as ocp

from crossin_jax.checkpoints import digests
from crossin_jax.checkpoints.parameters import check_shapes, state_shapes
from crossin_jax.checkpoints.places import (
  PREFIX,
  CheckpointError,
  check_room,
  folders_in,
  latest_checkpoint,
  remove_unfinished,
  steps_in,
)
from crossin_jax.storage import remote
from crossin_jax.storage.files import write_json
from crossin_jax.training.state import TrainState

# Words in the names of figures.
_BETTER = {
  'min': r'loss|perplexity|error|unparsed',
  'max': r'accuracy|f1|consistency|ac3|^c_\d|margin|reward|right|rankc|exact|score',
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep.

  Attributes:
    period: steps between checkpoints; the last step is always saved. 0 = only the last.
    keep: how many of the latest are kept.
    keep_period: checkpoints at multiples of it are kept for ever; None = none.
    best_metric: evaluation figure ('eval/heldout/loss', 'eval/questions/ac3_3' ...) whose best
      checkpoint is kept too, among the steps that are both evaluated and saved.
    best_mode: 'min' or 'max'; None = by the name of the metric: 'min' of losses, 'max' of
      accuracies, F1, consistency, AC3, margins and rewards.
  """

  period: int = 1000
  keep: int = 2
  keep_period: int | None = None
  best_metric: str | None = None
  best_mode: str | None = None

  def __post_init__(self):
    if self.best_mode not in ('min', 'max', None):
      raise ValueError(
        f"CheckpointConfig.best_mode = {self.best_mode!r} is not 'min', 'max' or None"
      )
    if self.best_metric and self.best_mode is None:
      object.__setattr__(self, 'best_mode', mode_of(self.best_metric))
    if self.period < 0 or self.keep < 1:
      raise ValueError(
        f'CheckpointConfig.period = {self.period} must not be negative, keep = {self.keep} at '
        'least 1'
      )

  def is_due(self, step: int) -> bool:
    """Whether the checkpoint period ends at this step."""
    return bool(self.period) and step % self.period == 0


def mode_of(metric: str) -> str | None:
  """'min' or 'max', whichever is better of an evaluation figure; None = its name does not say.

  mode_of('eval/heldout/loss') == 'min' and mode_of('eval/questions/ac3_3') == 'max'
  """
  name = metric.rsplit('/', 1)[-1].lower()
  return next((mode for mode, words in _BETTER.items() if re.search(words, name)), None)


def to_tree(state: TrainState) -> dict:
  """T5X's tree of a TrainState, without optimizer nodes that hold no array."""
  return {
    'target': state.params,
    'state': {
      'step': state.step,
      'param_states': _without_empty(serialization.to_state_dict(state.opt_state)),
    },
  }


def from_tree(tree: dict, like: TrainState) -> TrainState:
  """The inverse of `to_tree`; `like` gives the optimizer's structure and the frozen parameters."""
  full = serialization.to_state_dict(like.opt_state)
  flat = traverse_util.flatten_dict(full, keep_empty_nodes=True)
  flat.update(traverse_util.flatten_dict(tree['state']['param_states']))
  opt_state = serialization.from_state_dict(like.opt_state, traverse_util.unflatten_dict(flat))
  return TrainState(tree['state']['step'], tree['target'], opt_state, like.frozen)


def _without_empty(node):
  if not isinstance(node, dict):
    return node
  kept = {key: _without_empty(value) for key, value in node.items()}
  return {key: value for key, value in kept.items() if not (isinstance(value, dict) and not value)}


class OptimizerStateError(CheckpointError):
  """The optimizer state of a complete checkpoint has another structure than that of the run."""

  def __init__(self, path: str, structure: str, changes=()):
    self._path, self._structure = path, structure
    cause = (
      f'the optimizer of this run has changed since {path} was saved: {"; ".join(changes)}. '
      'Undo the change'
      if changes
      else f'this run has another optimizer than {path}. Give the optimizer and the settings that '
      f'it was trained with (OPTIMIZER, clip_norm ...: {os.path.dirname(path)}/config.gin)'
    )
    super().__init__(
      f'{cause}, or start another MODEL_DIR from the parameters of the checkpoint: '
      f'INITIAL_CHECKPOINT_PATH={path}. The checkpoint is complete, but the states of '
      f'the optimizers differ: {structure}'
    )

  def because_of(self, changes: list[str]) -> 'OptimizerStateError':
    """The same error with the names of changed settings."""
    return OptimizerStateError(self._path, self._structure, changes)


class Checkpoints:
  """The checkpoints of a MODEL_DIR, for the run that holds it (`run_directory.exclusive`).

  Incomplete checkpoints of a killed run on gs:// are removed at the start.
  """

  def __init__(self, model_dir: str, config: CheckpointConfig):
    self.model_dir, self._config = remote.absolute(model_dir), config
    self._damaged = set()  # steps that `restore_latest` could not use
    is_remote = remote.prepare(model_dir)
    if is_remote and jax.process_index() == 0:
      remove_unfinished(self.model_dir)
    policies = ocp.checkpoint_managers
    keep = [policies.LatestN(config.keep)]
    if config.keep_period:
      keep.append(policies.EveryNSteps(config.keep_period))
    if config.best_metric:
      # BestN keeps the highest values.
      sign = 1.0 if config.best_mode == 'max' else -1.0
      figure = lambda metrics: sign * metrics[config.best_metric]
      keep.append(policies.BestN(get_metric_fn=figure, n=1, keep_checkpoints_without_metrics=False))
    with remote.explaining(self.model_dir):
      self._manager = ocp.CheckpointManager(
        self.model_dir,
        item_handlers={
          'state': ocp.PyTreeCheckpointHandler(use_ocdbt=True),
          'run': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          step_prefix=PREFIX,
          preservation_policy=policies.AnyPreservationPolicy(keep),
          # Makes Orbax store `metrics=`; the policy above decides what is kept.
          best_fn=(lambda metrics: figure(metrics)) if config.best_metric else None,
          # On gs:// Orbax takes folders without a marker, such as digests/, for interrupted saves.
          cleanup_tmp_directories=not is_remote,
        ),
      )

  def save(self, step: int, state: TrainState, run: dict, figures: dict | None = None) -> None:
    """Saves in the background; returns once the arrays are copied off the devices."""
    if step in self._manager.all_steps() and step not in self._damaged:
      return
    self.wait()
    # Damaged checkpoints are replaced and do not count among those kept.
    for damaged in sorted(self._damaged & set(self._manager.all_steps())):
      self._manager.delete(damaged)
    if self._damaged:
      self._damaged.clear()
      self._write_digests()
    if (
      jax.process_index() == 0
      and remote.is_remote(self.model_dir)
      and step not in self._manager.all_steps()
    ):
      check_room(self.model_dir, step)
    metric = self._config.best_metric
    metrics = {metric: float(figures[metric])} if metric and figures and metric in figures else None
    items = ocp.args.Composite(
      state=ocp.args.PyTreeSave(to_tree(state)), run=ocp.args.JsonSave(run)
    )
    with self._saving(OSError):
      self._manager.save(step, args=items, metrics=metrics, force=True)

  def restore_latest(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest undamaged checkpoint and its run state, or None if there is no checkpoint.

    Args:
      abstract: shapes, dtypes and shardings to restore into.

    Raises:
      CheckpointError: there are checkpoints but all are damaged, or a complete one is of another
        model or optimizer.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    problems = []
    for step in steps:
      problem = self._agreed_damage(step)
      if problem is not None:
        problem = f'is damaged: {problem}'
      else:
        try:
          state = restore_tree(self._path(step), abstract)
          run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))[
            'run'
          ]
        except CheckpointError:
          raise  # of another model: an older one would be too
        except Exception as error:  # Orbax raises many kinds
          problem = f'cannot be read ({type(error).__name__}: {_first_line(error)})'
          # The store keeps objects intact: the network is the more likely cause.
          if remote.is_remote(self.model_dir):
            raise CheckpointError(
              f'{self._path(step)} {problem}; start the same command again'
            ) from error
          if digests.exists(self._path(step)):
            raise CheckpointError(
              f'{self._path(step)} {problem}, although its files are as they were saved. Start the '
              'same command again with the settings and the library versions that it was saved with'
            ) from error
      if problem is None:
        self._damaged = {damaged for damaged in steps if damaged > step}
        for skipped in problems:
          warnings.warn(f'{skipped}; using {self._path(step)} instead')
        return state, run
      problems.append(f'{self._path(step)} {problem}')
    if problems:
      raise CheckpointError(
        f'no usable checkpoint: {"; ".join(problems)}. Copy them to {self.model_dir} again, or '
        'train from the start in another MODEL_DIR'
      )
    return None

  def wait(self) -> None:
    """Returns when the save in progress is complete and its digest is written.

    Raises:
      CheckpointError: it failed, for instance on a full disk; the previous checkpoint is intact.
      RemoteError: the same on gs://.
    """
    with self._saving(Exception):  # the saving thread raises many kinds
      self._manager.wait_until_finished()
    try:
      self._write_digests()
    except remote.RemoteError:
      raise
    except OSError as error:
      raise CheckpointError(
        f'cannot write the digests of the checkpoints in {self.model_dir}: {_first_line(error)}. '
        'Fix that and start the same command again; the checkpoints are intact'
      ) from error

  @contextlib.contextmanager
  def _saving(self, kind: type[Exception]):
    """Turns errors of Orbax's save into readable ones."""
    try:
      with remote.explaining(self.model_dir):
        yield
    except remote.RemoteError:
      raise
    except kind as error:
      remedy = 'S' if remote.is_remote(self.model_dir) else 'Make room there and s'
      raise CheckpointError(
        f'cannot save a checkpoint in {self.model_dir}: {_first_line(error)}. {remedy}tart the '
        'same command again; it continues from the last complete checkpoint'
      ) from error

  def close(self) -> None:
    """Waits and frees the manager."""
    self.wait()
    self._manager.close()

  def _path(self, step: int) -> str:
    return os.path.join(self.model_dir, f'{PREFIX}_{step}')

  def _write_digests(self) -> None:
    if jax.process_index():
      return
    complete = {f'{PREFIX}_{step}' for step in steps_in(self.model_dir)}
    # One may be being copied here.
    present = complete | {f'{PREFIX}_{step}' for step in folders_in(self.model_dir)}
    folder = os.path.join(self.model_dir, 'digests')
    if remote.is_remote(folder):
      there, remove = remote.listing(folder), remote.remove
    else:
      there, remove = os.listdir(folder) if os.path.isdir(folder) else (), os.unlink
    for name in sorted(complete - {name.removesuffix('.json') for name in there}):
      write_json(
        os.path.join(folder, f'{name}.json'),
        digests.file_digests(os.path.join(self.model_dir, name)),
      )
    for name in there:
      if name.removesuffix('.json') not in present:
        remove(os.path.join(folder, name))

  def _agreed_damage(self, step: int) -> str | None:
    """Host 0's verdict on a checkpoint, broadcast, so that all hosts restore the same one."""
    if jax.process_count() == 1:
      return self._damage(step)
    from jax.experimental import multihost_utils

    problem = None if jax.process_index() else self._damage(step)
    damaged = multihost_utils.broadcast_one_to_all(np.asarray(problem is not None))
    return (problem or 'host 0 found it damaged') if damaged else None

  def _damage(self, step: int) -> str | None:
    return digests.damage(self._path(step))


def saved_run(model_dir: str) -> dict:
  """The run state of the newest checkpoint, without its arrays; empty if there is none to read.

  `Checkpoints.restore_latest` explains what is wrong with a damaged one.
  """
  try:
    path = os.path.join(latest_checkpoint(model_dir), 'run')
    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(remote.absolute(path))
  except Exception:  # Orbax raises many kinds
    return {}


def restore_tree(path: str, abstract: TrainState) -> TrainState:
  """Reads `path`/state directly into the shards of `abstract`.

  Raises:
    CheckpointError: the parameters have another structure or shape.
    OptimizerStateError: the optimizer state has.
  """
  tree = to_tree(abstract)
  check_shapes(path, tree)
  _check_optimizer_state(path, tree)
  restored = ocp.PyTreeCheckpointer().restore(
    os.path.join(path, 'state'),
    item=tree,
    restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
  )
  return from_tree(restored, abstract)


def _check_optimizer_state(path: str, tree: dict) -> None:
  saved = state_shapes(path)['state'].get('param_states') or {}
  saved, wanted = (
    traverse_util.flatten_dict(node) for node in (saved, tree['state']['param_states'])
  )
  shapes = lambda flat: {name: tuple(leaf.shape) for name, leaf in flat.items()}
  if shapes(saved) == shapes(wanted):
    return

  def parts(flat) -> str:
    """'1/0/mu, 1/0/nu': the names without those of parameters."""
    names = (itertools.takewhile(lambda key: key not in tree['target'], name) for name in flat)
    return ', '.join(dict.fromkeys('/'.join(name) for name in names)) or 'none'

  if parts(saved) == parts(wanted):
    names = [
      name for name in {**saved, **wanted} if shapes(saved).get(name) != shapes(wanted).get(name)
    ]
    name = names[0]
    structure = (
      f'{"/".join(name)} is {shapes(saved).get(name)} in the checkpoint, '
      f'{shapes(wanted).get(name)} in this run'
    )
  else:
    structure = f'in the checkpoint {parts(saved)}; in this run {parts(wanted)}'
  raise OptimizerStateError(path, structure)


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
