"""What a run tells of itself: metrics.jsonl, TensorBoard, a progress line."""

import json
import math
import os

import numpy as np

from crossin_jax.storage.files import write_text


class TaskTable:
  """Sums per task of a mixture, told by source and by language.

  Attributes:
    names: task names, in the order of `decoder_task_ids`.
  """

  def __init__(self, infos: list[dict]):
    self._sources = [info['source'] for info in infos]
    self._languages = [info['target_language'] for info in infos]

  def means(self, loss_by_task, weight_by_task) -> tuple[dict[str, float], dict[str, float]]:
    """Mean losses by source and by language of the response; those without tokens are left out."""
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


class Period:
  """Sums since the last logged line, kept in float64 and saved in checkpoints, so that a resumed
  run logs the same lines.

  Attributes:
    sums: name -> sum, JSON. Never changed in place: a checkpoint writes it in the background while
      steps go on.
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
    """Adds one step's `StepMetrics`, fetched to the host."""
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
    self.sums = sums


def line(sums: dict, table, learning_rate: float, seconds: float) -> dict:
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


class MetricsWriter:
  """Appends lines to MODEL_DIR/metrics.jsonl and scalars to MODEL_DIR/tensorboard (host 0 only).

  A resumed run first cuts metrics.jsonl back to the restored step.
  """

  def __init__(self, model_dir: str, resumed_step: int, evaluated: int = 0):
    """Args:
    model_dir: where metrics.jsonl and tensorboard/ are.
    resumed_step: lines after it are cut off.
    evaluated: last step whose evaluation was completed; figures after it are cut off too.
    """
    from tensorboardX import SummaryWriter

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
            break  # the line that a kill cut short
    write_text(self._path, ''.join(kept))
    self._file = open(self._path, 'a', encoding='utf-8')
    self._board = SummaryWriter(os.path.join(model_dir, 'tensorboard'), purge_step=resumed_step + 1)

  def write(self, step: int, values: dict) -> None:
    """One line; nested dicts become name/key in TensorBoard. NaN and infinities are written as
    null.
    """
    self._file.write(json.dumps({'step': step, **_finite(values)}, ensure_ascii=False) + '\n')
    self._file.flush()
    for name, value in _flat(values):
      if isinstance(value, (int, float)) and math.isfinite(value):
        self._board.add_scalar(f'train/{name}' if '/' not in name else name, value, step)

  def close(self) -> None:
    """Flushes both."""
    self._file.close()
    self._board.close()


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
