"""The forms of a mixing law and their robust fit.

A form is a function of coordinates x (shares along the directions in which they differ) and
parameters theta. `scipy.optimize.least_squares` fits it with Huber's loss.

Axis letters: B parameter vectors, N points, D directions, P parameters.
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
    starts: (x, y [N], weights [N], chance) -> starting points of the fit, [S, P].
    bounds: x -> lower and upper bounds of theta.
    linear: in theta; the start is then the least-squares fit.
  """

  size: Callable[[int], int]
  value: Callable
  starts: Callable
  bounds: Callable = lambda x: (-np.inf, np.inf)
  linear: bool = False


def minimise(
  form: Form, x, y, weights, chance, *, bend=None, starts=None, tolerance: float = 1e-10
) -> np.ndarray:
  """The best parameters [P] over all starts.

  Args:
    form, x, chance: the family, coordinates [N, D], and the lower end of the logistic.
    y, weights: [N]; a point of weight 0 is ignored.
    bend: weighted residual at which Huber's loss turns linear; None = squares.
    starts: [S, P]; None = those of the form.
    tolerance: relative, of the loss and the parameters.
  """
  from scipy import optimize  # slow to import

  used = weights > 0
  x, y, weights = x[used], y[used], weights[used]
  lower, upper = (np.broadcast_to(end, form.size(x.shape[1])) for end in form.bounds(x))
  residuals = lambda theta: np.sqrt(weights) * (form.value(theta[None], x, chance)[0] - y)
  loss = {} if bend is None else {'loss': 'huber', 'f_scale': bend}
  tolerances = dict.fromkeys(('ftol', 'xtol', 'gtol'), tolerance)
  results = [
    optimize.least_squares(
      residuals, np.clip(start, lower, upper), bounds=(lower, upper), **loss, **tolerances
    )
    for start in (form.starts(x, y, weights, chance) if starts is None else starts)
  ]
  return min(results, key=lambda result: result.cost).x


def robust(form: Form, x, y, weights, chance, spent: int = 0, near=None) -> np.ndarray:
  """Huber's fit [P]; it bends at 1.345 robust standard deviations of the least-squares residuals.

  Args:
    form, x, y, weights, chance: see `minimise`.
    spent: degrees of freedom that the data have already lost.
    near: [P], a fit to almost the same data; it replaces all but the first start.
  """
  used = weights > 0
  starts = form.starts(x[used], y[used], weights[used], chance)
  if near is not None:
    starts = [near, starts[0]]
  theta = starts[-1] if form.linear else minimise(form, x, y, weights, chance, starts=starts)
  residuals = (np.sqrt(weights) * (y - form.value(theta[None], x, chance)[0]))[used]
  bend = BEND * robust_scale(residuals, theta.size + spent)
  starts = [theta] if form.linear or near is not None else [theta, starts[0]]
  return minimise(form, x, y, weights, chance, bend=bend, starts=starts)


def robust_scale(residuals: np.ndarray, parameters: int) -> float:
  """Robust standard deviation; with few more points than parameters twice the plain one."""
  count = len(residuals)
  plain = np.sqrt(np.sum(residuals**2) / max(1, count - parameters))
  if count < parameters + 4:
    return float(max(2 * plain, 1e-3))
  median = 1.4826 * np.median(np.abs(residuals)) * np.sqrt(count / (count - parameters))
  return float(max(median, 0.1 * plain, 1e-3))


def _regress(columns: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
  root = np.sqrt(weights)
  return np.linalg.lstsq(root[:, None] * columns, root * y, rcond=None)[0]


def _with_ones(x: np.ndarray) -> np.ndarray:
  return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def _exponent(z: np.ndarray) -> np.ndarray:
  return np.exp(np.clip(z, -40, 40))


def _steepest(x: np.ndarray) -> np.ndarray:
  return SPAN / np.maximum(np.ptp(x, axis=0), 1e-9)


# ---- c + k exp(x u) ----


def _exponential(theta, x, chance):
  return theta[:, :1] + theta[:, 1:2] * _exponent(theta[:, 2:] @ x.T)


def _exponential_starts(x, y, weights, chance):
  from scipy import optimize  # slow to import

  spread = np.ptp(y) + 1e-9
  slopes = [
    _regress(_with_ones(x), np.log(np.maximum(y - floor, 0.02 * spread)), weights)[1:]
    for floor in (y.min() - 0.1 * spread, y.min() - spread, 0.0)
  ]
  for size, direction in zip((1, 3, 6), np.random.default_rng(7).normal(size=(3, x.shape[1]))):
    direction *= size / max(1e-9, np.linalg.norm(direction))
    slopes += [direction, -direction]
  slopes, root = np.clip(slopes, -_steepest(x), _steepest(x)), np.sqrt(weights)
  linear = [
    optimize.nnls(root[:, None] * np.stack([np.ones(len(x)), np.exp(x @ u)], axis=1), root * y)[0]
    for u in slopes
  ]
  return np.concatenate([linear, slopes], axis=1)


def _exponential_bounds(x):
  return np.array([0, 0, *-_steepest(x)]), np.array([np.inf, np.inf, *_steepest(x)])


# ---- chance + (1 - chance) sigmoid(b + x u) ----


def _logistic(theta, x, chance):
  return chance + (1 - chance) / (1 + _exponent(-theta[:, :1] - theta[:, 1:] @ x.T))


def _logistic_starts(x, y, weights, chance):
  part = np.clip((y - chance) / (1 - chance), 0.02, 0.98)
  logit = np.log(part / (1 - part))
  line, flat = _regress(_with_ones(x), logit, weights), np.zeros(1 + x.shape[1])
  flat[0] = np.average(logit, weights=weights)
  return np.stack([line, flat, 3 * line])


def _logistic_bounds(x):
  steepest = np.array([SPAN, *_steepest(x)])
  return -steepest, steepest


# ---- polynomials ----


def _polynomial(terms: Callable) -> Form:
  return Form(
    size=lambda d: terms(np.zeros((1, d))).shape[1],
    value=lambda theta, x, chance: theta @ terms(x).T,
    starts=lambda x, y, weights, chance: _regress(terms(x), y, weights)[None],
    linear=True,
  )


def _squares(x: np.ndarray) -> np.ndarray:
  i, j = np.triu_indices(x.shape[1])
  return np.concatenate([_with_ones(x), x[:, i] * x[:, j]], axis=1)


FORMS = {
  'constant': _polynomial(lambda x: np.ones((len(x), 1))),
  'linear': _polynomial(_with_ones),
  'quadratic': _polynomial(_squares),
  'exponential': Form(lambda d: d + 2, _exponential, _exponential_starts, _exponential_bounds),
  'logistic': Form(lambda d: d + 1, _logistic, _logistic_starts, _logistic_bounds),
}
