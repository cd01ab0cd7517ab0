"""metrics.jsonl, and the figures that trackers show."""

from collections.abc import Sequence
import dataclasses
import json
import math
import os

import numpy as np

from crossin_jax.storage.files import write_text
from crossin_jax.training import router
from crossin_jax.training.router import RouterSums
from crossin_jax.training.trackers import TensorBoard, Trackers


class TaskTable:
  """Turns sums per task into means by source and by language.

  Attributes:
    names: task names, in the order of `decoder_task_ids`.
  """

  def __init__(self, infos: list[dict]):
    self._sources = [info['source'] for info in infos]
    self._languages = [info['target_language'] for info in infos]

  def means(self, loss_by_task, weight_by_task) -> tuple[dict[str, float], dict[str, float]]:
    """Mean losses by source and by language of the response, where there are tokens."""
    return tuple(
      {
        label: float(loss / weight)
        for label in sorted(set(labels))
        for loss, weight in [
          (
            sum(l for l, n in zip(loss_by_task, labels) if n == label),
            sum(w for w, n in zip(weight_by_task, labels) if n == label),
          )
        ]
        if weight > 0
      }
      for labels in (self._sources, self._languages)
    )

  def pairs(self, sums: dict[str, list[float]]) -> dict:
    """The figures of preference pairs in a line: means over all pairs, and by language."""
    counts, figures = sums['pairs'], [name for name in sums if name != 'pairs']
    total = sum(counts)
    by_language: dict[str, dict[str, float]] = {}
    for name in figures:
      for language, mean in self.means(sums[name], counts)[1].items():
        by_language.setdefault(language, {})[name] = mean
    means = {name: sum(sums[name]) / total if total else float('nan') for name in figures}
    return {'preference': {'pairs': total} | means, 'preference_by_language': by_language}


class Period:
  """Sums since the last logged line, in float64; saved in checkpoints, so that a resumed run logs
  the same lines.

  Attributes:
    sums: name -> sum, JSON. Never changed in place, because a checkpoint may be writing it in the
      background.
  """

  def __init__(self, tasks: int, saved: dict | None = None):
    zeros = {
      'loss': 0.0,
      'weight': 0.0,
      'tokens': 0.0,
      'steps': 0,
      'skipped': 0,
      'gradient_norm': 0.0,
    }
    zeros |= {'loss_by_task': [0.0] * tasks, 'weight_by_task': [0.0] * tasks}
    self.sums = zeros if saved is None else dict(saved)

  def add(self, metrics) -> None:
    """Adds one step's `StepMetrics`, which must be on the host."""
    step, skipped, sums = metrics.sums, bool(metrics.skipped), dict(self.sums)
    sums['steps'] += 1
    sums['skipped'] += skipped
    sums['tokens'] += float(step.tokens)
    sums['gradient_norm'] = float(metrics.gradient_norm)
    if not skipped:
      for name in ('loss', 'weight'):
        sums[name] += float(getattr(step, name))
      for name in ('loss_by_task', 'weight_by_task'):
        sums[name] = [a + float(b) for a, b in zip(sums[name], np.asarray(getattr(step, name)))]
      if step.router is not None:
        fields = dataclasses.fields(step.router)
        of_router = {field.name: getattr(step.router, field.name) for field in fields}
        sums['router'] = _added(sums.get('router'), of_router)
      if step.pairs is not None:
        sums['pairs'] = _added(sums.get('pairs'), step.pairs)
    self.sums = sums


def _added(sums: dict | None, step: dict) -> dict:
  """Named sums with one step more."""
  values = {name: np.asarray(value, np.float64) for name, value in step.items()}
  return {name: (value + (sums or {}).get(name, 0.0)).tolist() for name, value in values.items()}


def _router_line(sums: dict) -> dict:
  """The routers' part of a line: balance loss, and the busiest expert's tokens over the mean."""
  chosen_X = np.asarray(sums['chosen_X'])
  balance = router.balance_loss(RouterSums(**{k: np.asarray(v) for k, v in sums.items()}))
  busiest = float(chosen_X.max() / chosen_X.mean()) if chosen_X.any() else float('nan')
  return {'router_balance_loss': float(balance), 'busiest_expert': busiest}


def line(sums: dict, table, learning_rate: float, seconds: float) -> dict:
  """One line of metrics.jsonl from the sums of a period.

  With preference pairs the loss is a mean over pairs and rows, `loss_examples`, not over tokens.
  """
  mean = sums['loss'] / sums['weight'] if sums['weight'] else float('nan')
  by_source, by_language = table.means(sums['loss_by_task'], sums['weight_by_task'])
  unit = 'examples' if 'pairs' in sums else 'tokens'
  return {
    'loss': mean,
    f'loss_{unit}': sums['weight'],
    'tokens': sums['tokens'],
    'gradient_norm': sums['gradient_norm'],
    'learning_rate': learning_rate,
    'skipped_steps': sums['skipped'],
    'seconds_per_step': seconds / max(1, sums['steps']),
    'tokens_per_second': sums['tokens'] / seconds if seconds else None,
    f'loss_{unit}_per_second': sums['weight'] / seconds if seconds else None,
    'mfu': None,
    'loss_by_source': by_source,
    'loss_by_language': by_language,
    **(_router_line(sums['router']) if 'router' in sums else {}),
    **(table.pairs(sums['pairs']) if 'pairs' in sums else {}),
  }


class MetricsWriter:
  """Appends lines to MODEL_DIR/metrics.jsonl, and hands scalars to trackers (host 0 only).

  A resumed run first truncates metrics.jsonl to the restored step.
  """

  def __init__(
    self, model_dir: str, resumed_step: int, evaluated: int = 0, trackers: Sequence | None = None
  ):
    """Args:
    model_dir: where metrics.jsonl is.
    resumed_step: later lines are removed.
    evaluated: last step with a completed evaluation; figures of later ones are removed too.
    trackers: see `trackers`; None = TensorBoard.
    """
    self._path = os.path.join(model_dir, 'metrics.jsonl')
    kept = []
    if resumed_step and os.path.exists(self._path):
      with open(self._path, encoding='utf-8') as f:
        for line in f:
          try:
            values = json.loads(line)
            if values['step'] <= (resumed_step if 'loss' in values else evaluated):
              kept.append(line)
          except (ValueError, KeyError, TypeError):
            break  # a line truncated by a kill
    write_text(self._path, ''.join(kept))
    self._file = open(self._path, 'a', encoding='utf-8')
    trackers = (TensorBoard(),) if trackers is None else trackers
    self._trackers = Trackers(trackers, model_dir, resumed_step)

  def write(self, step: int, values: dict) -> None:
    """Writes one line. Trackers get nested dicts as name/key, and no NaN and infinities, which are
    null in JSON.
    """
    self._file.write(json.dumps({'step': step, **_finite(values)}, ensure_ascii=False) + '\n')
    self._file.flush()
    is_scalar = lambda value: isinstance(value, (int, float)) and math.isfinite(value)
    scalars = {name: value for name, value in _flat(values) if is_scalar(value)}
    self._trackers.log(scalars, step)

  def close(self) -> None:
    """Closes all."""
    self._file.close()
    self._trackers.close()


def _finite(value):
  if isinstance(value, dict):
    return {k: _finite(v) for k, v in value.items()}
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: dict):
  for name, value in values.items():
    if isinstance(value, dict):
      yield from ((f'{name}/{key}', v) for key, v in _flat(value))
    else:
      yield name, value
