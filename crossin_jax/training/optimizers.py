"""Optimizers as optax transforms, with their schedule so that the true learning rate is
logged.
"""

from collections.abc import Callable
import dataclasses

import gin
import jax
import optax

DECAYS = ('cosine', 'linear', 'rsqrt', 'constant')


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """A learning rate by step.

  Attributes:
    rate: step, from 0 -> learning rate.
    settings: name -> value, as JSON has it.
  """

  rate: Callable[[jax.Array], jax.Array]
  settings: dict

  def __call__(self, step: jax.Array) -> jax.Array:
    return self.rate(step)


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
  """An optax transform and its learning-rate schedule.

  Attributes:
    transform: its state is saved in checkpoints.
    schedule: step, from 0 -> learning rate.
    settings: name -> value, as JSON has it; saved too, so that a resumed run can name changes.
  """

  transform: optax.GradientTransformation
  schedule: Callable[[jax.Array], jax.Array]
  settings: dict = dataclasses.field(default_factory=dict)


def build(optimizer: Callable[..., Optimizer], total_steps: int) -> Optimizer:
  """`optimizer(total_steps=...)`; one that lists no settings gets its name and the steps."""
  name = getattr(optimizer, '__name__', type(optimizer).__name__)
  built = optimizer(total_steps=total_steps)
  settings = built.settings or {'optimizer': name, 'train.total_steps': total_steps}
  return dataclasses.replace(built, settings=settings)


def changes(saved: dict | None, now: dict) -> list[str]:
  """'name was old, now new' for each setting of both that has changed.

  Args:
    saved: `Optimizer.settings` of a checkpoint; None = saved without them.
    now: those of this run.
  """
  return [
    f'{name} was {before!r}, now {now[name]!r}'
    for name, before in (saved or {}).items()
    if name in now and before != now[name]
  ]


@gin.configurable
def schedule(
  total_steps: int,
  peak: float = 1e-4,
  decay: str = 'cosine',
  warmup_steps: int | None = None,
  warmup_ratio: float = 0.03,
  final_ratio: float = 0.0,
) -> Schedule:
  """Linear warm-up from zero, then one of four decays.

  Args:
    total_steps: steps of the run.
    peak: learning rate at the end of the warm-up.
    decay: 'cosine' or 'linear' to final_ratio * peak at total_steps, 'rsqrt' (peak * sqrt(warm-up /
      step)), or 'constant'.
    warmup_steps: steps of the warm-up; None = warmup_ratio * total_steps.
    warmup_ratio: CrossIn's 0.03 by default.
    final_ratio: 0 to 1.

  Raises:
    ValueError: unknown decay or a warm-up longer than the run.
  """
  settings = {f'schedule.{name}': value for name, value in locals().items()}
  settings['train.total_steps'] = settings.pop('schedule.total_steps')
  if decay not in DECAYS:
    raise ValueError(f'schedule.decay = {decay!r} is not one of {DECAYS}')
  warmup = round(warmup_ratio * total_steps) if warmup_steps is None else warmup_steps
  if not 0 <= warmup <= total_steps:
    raise ValueError(
      f'schedule.warmup_steps = {warmup} is not between 0 and the {total_steps} steps of the run'
    )
  rest = max(1, total_steps - warmup)
  after = {
    'cosine': lambda: optax.cosine_decay_schedule(peak, rest, alpha=final_ratio),
    'linear': lambda: optax.linear_schedule(peak, final_ratio * peak, rest),
    'rsqrt': lambda: lambda step: peak * jax.lax.rsqrt(1.0 + step / max(1, warmup)),
    'constant': lambda: optax.constant_schedule(peak),
  }[decay]()
  if warmup:
    # The rate of step 0 is above zero: a first step at rate zero would be wasted.
    rising = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    after = optax.join_schedules([rising, after], [warmup])
  return Schedule(after, settings)


# Leaves that are no matrices: norm scales, biases, sinks, scalars of xIELU and factors of layers.
_NOT_DECAYED = (
  'scale', 'bias', 'router_bias', 'sinks', 'alpha_p', 'alpha_n', 'beta', 'eps', 'layer_scalar',
)  # fmt: skip


def decay_mask(params):
  """True for matrices, False for everything else (also when layers are stacked)."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: str(getattr(path[-1], 'key', path[-1])) not in _NOT_DECAYED, params
  )


@gin.configurable
def adamw(
  total_steps: int,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.01,
  clip_norm: float | None = 1.0,
) -> Optimizer:
  """AdamW (Loshchilov and Hutter 2019) after clipping by the global norm; no decay on norm scales.

  The defaults are those of CrossIn's training script (docs/design/methods.md#a-5-training).

  Args:
    total_steps: steps of the run, for the schedule.
    b1, b2: decay of the moments. epsilon: added to the root of the second.
    weight_decay: multiplied by the learning rate.
    clip_norm: largest norm of the gradient; None = no clipping.
  """
  settings = _named('adamw', locals())
  rate = schedule(total_steps)
  return Optimizer(
    _chain(
      clip_norm,
      optax.adamw(rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay, mask=decay_mask),
    ),
    rate,
    settings | rate.settings,
  )


@gin.configurable
def adafactor(
  total_steps: int,
  decay_rate: float = 0.8,
  clipping_threshold: float | None = 1.0,
  multiply_by_parameter_scale: bool = True,
  weight_decay: float | None = None,
  clip_norm: float | None = None,
) -> Optimizer:
  """Adafactor (Shazeer and Stern 2018), its second moments factored from 128 columns up.

  Args:
    total_steps: steps of the run, for the schedule.
    decay_rate: exponent of the second moment's decay.
    clipping_threshold: largest root mean square of an update.
    multiply_by_parameter_scale: rates are then relative (T5's habit: peak 1e-3 with constant
      decay).
    weight_decay: None = none.
    clip_norm: largest norm of the gradient before it; None = no clipping.
  """
  settings = _named('adafactor', locals())
  rate = schedule(total_steps)
  factored = optax.adafactor(
    rate,
    decay_rate=decay_rate,
    clipping_threshold=clipping_threshold,
    multiply_by_parameter_scale=multiply_by_parameter_scale,
    weight_decay_rate=weight_decay,
    weight_decay_mask=decay_mask,
  )
  return Optimizer(_chain(clip_norm, factored), rate, settings | rate.settings)


def _named(optimizer: str, arguments: dict) -> dict:
  """Settings with the name of their optimizer, except for what the schedule has."""
  own = {name: value for name, value in arguments.items() if name != 'total_steps'}
  return {'optimizer': optimizer} | {f'{optimizer}.{name}': value for name, value in own.items()}


def _chain(clip_norm, transform):
  return (
    transform if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), transform)
  )
