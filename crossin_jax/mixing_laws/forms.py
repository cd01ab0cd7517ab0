"""The forms of a mixing law and their robust fit.

A form is a function of coordinates x (shares along the directions in which they differ) and
parameters theta. `docs/design/mixing_laws.md#forms` has the formulas and the reasons.

Axis letters: B parameter vectors, S starts, N points, D directions, P parameters.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

# Largest difference of an exponent along a direction: beyond it, a law is a spike at one point.
SPAN = 12.0
BEND = 1.345  # robust standard deviations at which Huber's loss turns from squares to lines


@dataclasses.dataclass(frozen=True)
class Form:
  """A family of curves.

  Attributes:
    size: number of directions -> number of parameters.
    value: (theta [B, P], x [N, D], chance) -> values [B, N].
    slope: (theta [P], x, chance) -> derivatives of the values by theta, [N, P].
    starts: (x, y [N], chance) -> starting points of the fit, [S, P].
    bounds: x -> lower and upper bounds of theta.
  """

  size: Callable[[int], int]
  value: Callable
  slope: Callable
  starts: Callable
  bounds: Callable = lambda x: (-np.inf, np.inf)


def minimise(form: Form, x, y, chance, starts, bend=None, tolerance: float = 1e-10) -> np.ndarray:
  """The best parameters [P] over all starts.

  Args:
    form, x, y, chance: the family, coordinates [N, D], values [N], lower end of the logistic.
    starts: [S, P].
    bend: residual at which Huber's loss turns linear; None = squares.
    tolerance: relative, of the loss and the parameters.
  """
  from scipy import optimize  # slow to import

  lower, upper = (np.broadcast_to(end, form.size(x.shape[1])) for end in form.bounds(x))
  options = dict.fromkeys(('ftol', 'xtol', 'gtol'), tolerance) | {'bounds': (lower, upper)}
  if bend is not None:
    options |= {'loss': 'huber', 'f_scale': bend}
  options['jac'] = lambda theta: form.slope(theta, x, chance)
  residuals = lambda theta: form.value(theta[None], x, chance)[0] - y
  fits = [optimize.least_squares(residuals, np.clip(s, lower, upper), **options) for s in starts]
  return min(fits, key=lambda fit: fit.cost).x


def robust(form: Form, x, y, chance, spent: int = 0, near=None) -> tuple[np.ndarray, float]:
  """Huber's fit [P], and the residual at which its loss bends.

  Args:
    form, x, y, chance: see `minimise`.
    spent: degrees of freedom that the data have already lost.
    near: [P], a fit to almost the same data; it replaces all but the first start.
  """
  starts = form.starts(x, y, chance)
  starts = starts if near is None else [near, starts[0]]
  theta = minimise(form, x, y, chance, starts)
  bend = BEND * _scale(y - form.value(theta[None], x, chance)[0], theta.size + spent)
  return minimise(form, x, y, chance, [theta, starts[0]], bend), bend


def _scale(residuals: np.ndarray, parameters: int) -> float:
  """Robust standard deviation; with few more points than parameters twice the plain one."""
  count = len(residuals)
  plain = np.sqrt(np.sum(residuals**2) / max(1, count - parameters))
  if count < parameters + 4:
    return float(max(2 * plain, 1e-3))
  median = 1.4826 * np.median(np.abs(residuals)) * np.sqrt(count / (count - parameters))
  return float(max(median, 0.1 * plain, 1e-3))


def _regress(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.linalg.lstsq(columns, y, rcond=None)[0]


def _with_ones(x: np.ndarray) -> np.ndarray:
  return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def _exp(z: np.ndarray) -> np.ndarray:
  return np.exp(np.clip(z, -40, 40))


def _steepest(x: np.ndarray) -> np.ndarray:
  return SPAN / np.maximum(np.ptp(x, axis=0), 1e-9)


def _exponential() -> Form:
  """c + k exp(x u)."""

  def starts(x, y, chance):
    spread, found = np.ptp(y) + 1e-9, []
    for floor in np.maximum(0, [y.min() - 0.1 * spread, y.min() - spread, 0.0]):
      line = _regress(_with_ones(x), np.log(np.maximum(y - floor, 0.02 * spread)))
      found += [[floor, _exp(line[0]), *(steeper * line[1:])] for steeper in (1, 3)]
    return np.array(found)

  def slope(theta, x, chance):
    grown = _exp(x @ theta[2:])[:, None]
    return np.concatenate([np.ones((len(x), 1)), grown, theta[1] * grown * x], axis=1)

  return Form(
    size=lambda d: d + 2,
    value=lambda theta, x, chance: theta[:, :1] + theta[:, 1:2] * _exp(theta[:, 2:] @ x.T),
    slope=slope,
    starts=starts,
    bounds=lambda x: ([0, 0, *-_steepest(x)], [np.inf, np.inf, *_steepest(x)]),
  )


def _logistic() -> Form:
  """chance + (1 - chance) sigmoid(b + x u)."""

  def starts(x, y, chance):
    part = np.clip((y - chance) / (1 - chance), 0.02, 0.98)
    logit = np.log(part / (1 - part))
    line, flat = _regress(_with_ones(x), logit), np.zeros(1 + x.shape[1])
    flat[0] = logit.mean()
    return np.stack([line, flat, 3 * line])

  def value(theta, x, chance):
    return chance + (1 - chance) / (1 + _exp(-theta @ _with_ones(x).T))

  def slope(theta, x, chance):
    columns = _with_ones(x)
    part = 1 / (1 + _exp(-columns @ theta))
    return ((1 - chance) * part * (1 - part))[:, None] * columns

  steepest = lambda x: np.array([SPAN, *_steepest(x)])
  return Form(lambda d: d + 1, value, slope, starts, lambda x: (-steepest(x), steepest(x)))


def _polynomial(terms: Callable) -> Form:
  return Form(
    size=lambda d: terms(np.zeros((1, d))).shape[1],
    value=lambda theta, x, chance: theta @ terms(x).T,
    slope=lambda theta, x, chance: terms(x),
    starts=lambda x, y, chance: _regress(terms(x), y)[None],
  )


def _squares(x: np.ndarray) -> np.ndarray:
  i, j = np.triu_indices(x.shape[1])
  return np.concatenate([_with_ones(x), x[:, i] * x[:, j]], axis=1)


FORMS = {
  'constant': _polynomial(lambda x: np.ones((len(x), 1))),
  'linear': _polynomial(_with_ones),
  'quadratic': _polynomial(_squares),
  'exponential': _exponential(),
  'logistic': _logistic(),
}
