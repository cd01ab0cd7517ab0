"""What a training run records: metric lines, skipped steps, evaluations, and its saved state."""

from collections.abc import Callable, Sequence
import dataclasses
import sys
import time

import jax

from crossin_jax.data.stream import fingerprint
from crossin_jax.errors import CrossinError
from crossin_jax.progress import Progress
from crossin_jax.storage import lease, remote
from crossin_jax.training import metrics, nonfinite


class TrainingError(CrossinError, RuntimeError):
  """Training cannot continue; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class RunState:
  """What a checkpoint keeps besides the train state.

  Attributes:
    stream: settings of the batch stream, see `BatchStream.settings`.
    base: {'path', 'digest'} of the parameters that a LoRA run freezes; None without LoRA.
    optimizer: `Optimizer.settings`; None in checkpoints that were saved without them.
    objective: repr of the objective; None in checkpoints that were saved without it.
    period: sums of the next metrics line; None = none yet.
    losses: see `SpikeThreshold.losses`.
    best: best value so far of `CheckpointConfig.best_metric`.
    evaluations_without_better: since then.
    evaluated: last step whose evaluation was completed.
    finished_early: early stopping ended the run.
  """

  stream: dict
  base: dict | None = None
  optimizer: dict | None = None
  objective: str | None = None
  period: dict | None = None
  losses: list = dataclasses.field(default_factory=list)
  best: float | None = None
  evaluations_without_better: int = 0
  evaluated: int = 0
  finished_early: bool = False

  @classmethod
  def from_json(cls, saved: dict) -> 'RunState':
    """The inverse of `as_json`; unknown keys are ignored."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in saved.items() if name in names})

  def as_json(self) -> dict:
    """All attributes, and the fingerprint of the stream."""
    return dataclasses.asdict(self) | {'fingerprint': fingerprint(self.stream)}

  def after_evaluation(self, step: int, figures: dict, config, patience: int | None) -> 'RunState':
    """The state after the evaluation of a step.

    Args:
      step: the step.
      figures: name -> value of all evaluators.
      config: a `CheckpointConfig`.
      patience: evaluations without a better `best_metric` that end the run; None = never.

    Raises:
      TrainingError: the metric is not among the figures, or patience is set without a metric.
    """
    state, metric = dataclasses.replace(self, evaluated=step), config.best_metric
    if metric is None:
      if patience is not None:
        raise TrainingError('train.early_stopping_patience needs CheckpointConfig.best_metric')
      return state
    if metric not in figures:
      raise TrainingError(
        f"CheckpointConfig.best_metric = {metric!r} is none of the evaluators' figures: "
        f'{", ".join(figures)}'
      )
    value, better = figures[metric], self.best is None
    better = better or (value < self.best if config.best_mode == 'min' else value > self.best)
    count = 0 if better else self.evaluations_without_better + 1
    return dataclasses.replace(
      state,
      best=value if better else self.best,
      evaluations_without_better=count,
      finished_early=patience is not None and count >= patience,
    )


@dataclasses.dataclass
class Bookkeeping:
  """Records one run. Only process 0 writes.

  Attributes:
    run: the state of the run, except for the open sums, see `state`.
    files: `run_directory.exclusive` of the run.
    tasks: the `info` of each task.
    step: where the run starts or continues.
    total_steps: where it ends.
    name: of the run, for the progress line.
    log_period: steps per line of metrics.jsonl.
    nan_policy: 'skip' or 'stop', see `train`.
    max_skipped_steps: that many in a row end the run.
    spike_factor: see `train`.
    learning_rate: (step, from 0) -> rate.
    utilisation: (tokens per second) -> MFU, or None where the peak is unknown.
    blame: (step, its metrics on the host) -> what went wrong and in which examples.
    trackers: see `MetricsWriter`.
  """

  run: RunState
  files: object
  tasks: list[dict]
  step: int
  total_steps: int
  name: str
  log_period: int
  nan_policy: str
  max_skipped_steps: int
  spike_factor: float | None
  learning_rate: Callable[[int], float]
  utilisation: Callable[[float], float | None]
  blame: Callable
  trackers: Sequence | None = None

  def __post_init__(self):
    self._table = metrics.TaskTable(self.tasks)
    self._period = metrics.Period(len(self.tasks), self.run.period)
    self.spikes = nonfinite.SpikeThreshold(self.spike_factor, self.run.losses)
    self._progress = Progress(self.total_steps, f'train {self.name}: step')
    self._writer, self._skipped_in_a_row, self._clock = None, 0, time.monotonic()
    if jax.process_index() == 0:
      self._writer = metrics.MetricsWriter(
        self.files.path, self.step, self.run.evaluated, self.trackers
      )
    self._next_rate = self._rate_of_next_line(self.step)

  def _rate_of_next_line(self, step: int):
    """The learning rate of the next line after a step, not waited for.

    It is asked for a line ahead: behind a step that already runs, the host would wait for that one.
    """
    return self.learning_rate(
      min(step + self.log_period - step % self.log_period, self.total_steps) - 1
    )

  def finish(self, step: int, step_metrics) -> None:
    """Reads the metrics of a step, applies `nan_policy`, and writes a line at the end of a period.

    Raises:
      TrainingError: a step was skipped and `nan_policy` or `max_skipped_steps` ends the run.
    """
    values = jax.device_get(step_metrics)
    self._period.add(values)
    self.spikes.add(step, values)
    self._skipped_in_a_row = self._skipped_in_a_row + 1 if values.skipped else 0
    if values.skipped:
      cause = self.blame(step, values)
      print(f'step {step}: {cause}; its update was skipped', file=sys.stderr)
      if self.nan_policy == 'stop' or self._skipped_in_a_row >= self.max_skipped_steps:
        raise TrainingError(
          f'step {step}: {cause}; {self._skipped_in_a_row} such step(s) in a row. Fix or remove '
          'those rows and prepare again, or lower the learning rate (schedule.peak)'
        )
    if step % self.log_period == 0 or step == self.total_steps:
      self._write_line(step)
    elif self._writer:  # shown at most every 30 s, whatever the period is
      self._progress.show(step)

  def begun(self, figures: dict) -> None:
    """Records figures of before the first step; they decide nothing."""
    if self._writer and figures:
      self._writer.write(0, figures)
    self._clock = time.monotonic()

  def _write_line(self, step: int) -> None:
    now = time.monotonic()
    line = metrics.line(self._period.sums, self._table, float(self._next_rate), now - self._clock)
    self._next_rate = self._rate_of_next_line(step)
    line['mfu'] = self.utilisation(line['tokens_per_second'] or 0.0)
    self.files.check()
    if self._writer:
      self._writer.write(step, line)
      self._progress.show(step, f'loss {line["loss"]:.4f}')
    self._clock, self._period = now, metrics.Period(len(self.tasks))

  def evaluated(self, step: int, figures: dict, config, patience: int | None) -> None:
    """Records the figures of an evaluation, see `RunState.after_evaluation`."""
    if self._writer and figures:
      self._writer.write(step, figures)
      shown = ' '.join(f'{k} {v:.4f}' for k, v in figures.items() if isinstance(v, float))
      self._progress.show(step, shown, force=True)
    self.run = self.run.after_evaluation(step, figures, config, patience)
    self._clock = time.monotonic()  # evaluation does not count as training time

  def state(self, step: int) -> RunState:
    """The state to save with the checkpoint of a step, once metrics.jsonl is in MODEL_DIR."""
    self.files.check()
    try:
      self.files.push()  # a checkpoint must not be ahead of metrics.jsonl
    except lease.InUse:
      raise
    except remote.RemoteError as error:
      print(f'warning: {error}; the checkpoint of step {step} is saved anyway', file=sys.stderr)
    return dataclasses.replace(self.run, period=self._period.sums, losses=self.spikes.losses)

  def close(self) -> None:
    """Closes metrics.jsonl and the trackers."""
    if self._writer:
      self._writer.close()
