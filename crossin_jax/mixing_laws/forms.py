"""The forms of a mixing law, their robust fit, and the offsets that the runs of a seed share.

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


def _unbounded(x: np.ndarray) -> tuple:
  return -np.inf, np.inf


@dataclasses.dataclass(frozen=True)
class Form:
  """A family of curves.

  Attributes:
    size: number of directions -> number of parameters.
    curve: (theta [B, P], x [N, D], chance) -> values [B, N], derivatives [B, N, P].
    starts: (x, y [N], weights [N], chance) -> starting points of the fit, [S, P].
    bounds: x -> lower and upper bounds of theta.
    linear: in theta; the start is then the least-squares fit.
  """

  size: Callable[[int], int]
  curve: Callable
  starts: Callable
  bounds: Callable = _unbounded
  linear: bool = False

  def value(self, theta: np.ndarray, x: np.ndarray, chance: float) -> np.ndarray:
    return self.curve(theta, x, chance)[0]


def minimise(
  form: Form, x, y, weights, chance, *, bend=None, starts=None, tolerance: float = 1e-10
) -> np.ndarray:
  """The best parameters [P] over all starts.

  Args:
    form: the family.
    x: [N, D].
    y, weights: [N]; a point of weight 0 is ignored.
    chance: lower end of the logistic.
    bend: weighted residual at which Huber's loss turns linear; None = squares.
    starts: [S, P]; None = those of the form.
    tolerance: relative, of the loss and the parameters.
  """
  from scipy import optimize  # slow to import

  lower, upper = (np.broadcast_to(end, form.size(x.shape[1])) for end in form.bounds(x))
  used = weights > 0
  x, y, root = x[used], y[used], np.sqrt(weights[used])
  if starts is None:
    starts = form.starts(x, y, weights[used], chance)
  results = [
    optimize.least_squares(
      lambda theta: root * (form.value(theta[None], x, chance)[0] - y),
      np.clip(start, lower, upper),
      lambda theta: root[:, None] * form.curve(theta[None], x, chance)[1][0],
      bounds=(lower, upper),
      loss='linear' if bend is None else 'huber',
      f_scale=1.0 if bend is None else bend,
      ftol=tolerance,
      xtol=tolerance,
      gtol=tolerance,
    )
    for start in starts
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


def _steepest(x: np.ndarray) -> np.ndarray:
  return SPAN / np.maximum(np.ptp(x, axis=0), 1e-9)


# ---- c + k exp(x u) ----


def _exponential(theta, x, chance):
  z = np.exp(np.clip(theta[:, 2:] @ x.T, -40, 40))
  slopes = theta[:, 1, None, None] * z[..., None] * x
  ones = np.ones_like(z)[..., None]
  return theta[:, :1] + theta[:, 1:2] * z, np.concatenate([ones, z[..., None], slopes], axis=2)


def _exponential_starts(x, y, weights, chance):
  from scipy import optimize  # slow to import

  low, spread = y.min(), np.ptp(y) + 1e-9
  slopes = [
    _regress(_with_ones(x), np.log(np.maximum(y - floor, 0.02 * spread)), weights)[1:]
    for floor in (low - 0.1 * spread, low - spread, 0.0)
  ]
  rng = np.random.default_rng(7)
  for size in (1, 3, 6):
    direction = rng.normal(size=x.shape[1])
    direction *= size / max(1e-9, np.linalg.norm(direction))
    slopes += [direction, -direction]
  root, starts = np.sqrt(weights)[:, None], []
  for slope in slopes:
    slope = np.clip(slope, -_steepest(x), _steepest(x))
    columns = np.stack([np.ones(len(x)), np.exp(x @ slope)], axis=1)
    starts.append([*optimize.nnls(root * columns, root[:, 0] * y)[0], *slope])
  return np.array(starts)


def _exponential_bounds(x):
  steepest = _steepest(x)
  return np.array([0, 0, *-steepest]), np.array([np.inf, np.inf, *steepest])


# ---- chance + (1 - chance) sigmoid(b + x u) ----


def _logistic(theta, x, chance):
  p = 1 / (1 + np.exp(-np.clip(theta[:, :1] + theta[:, 1:] @ x.T, -40, 40)))
  slope = ((1 - chance) * p * (1 - p))[..., None]
  return chance + (1 - chance) * p, np.concatenate([slope, slope * x], axis=2)


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
  def curve(theta, x, chance):
    columns = terms(x)
    return theta @ columns.T, np.broadcast_to(columns, (len(theta), *columns.shape))

  starts = lambda x, y, weights, chance: _regress(terms(x), y, weights)[None]
  return Form(lambda d: terms(np.zeros((1, d))).shape[1], curve, starts, linear=True)


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


# ---- what the runs of a seed share ----


@dataclasses.dataclass(frozen=True)
class Offsets:
  """How far the figures of each seed are from the mean over the seeds.

  Attributes:
    of_seed: {seed: offset}, only of seeds that can be compared.
    remove: float64 [N, N]; `remove @ values` has the offsets subtracted.
    spent: degrees of freedom of the offsets.
    apart: some seeds share no mixture with the others, so offsets sum to zero in each group alone.
  """

  of_seed: dict[int, float]
  remove: np.ndarray
  spent: int
  apart: bool


def seed_offsets(values: np.ndarray, mixture: np.ndarray, seed: np.ndarray | None) -> Offsets:
  """Fits value = mixture + offset of the seed + noise, with Huber's loss; offsets sum to zero.

  A seed has its own order of examples, or its own world and questions. What that does to all
  mixtures alike is no noise of their comparison. Every mixture has a parameter here, so neither the
  effect of the shares nor missing runs bias the offsets. Offsets are added to the figure, for
  fractions too: runs at or below chance have no logit.

  Args:
    values: float64 [N].
    mixture: int [N].
    seed: int [N]; None = unknown, no offsets.
  """
  count = len(values)
  seeds, column = np.unique(np.zeros(count, int) if seed is None else seed, return_inverse=True)
  group = np.arange(count)  # runs that are linked by a seed or a mixture
  before = None
  while before is None or (group != before).any():
    before = group
    for label in (mixture, column):
      least = np.full(label.max() + 1, count)
      np.minimum.at(least, label, group)
      group = least[label]
  # In a group with one mixture, the differences between seeds are its noise.
  shared = np.array([len(np.unique(mixture[group == g])) > 1 for g in group])
  is_seed = (column[:, None] == np.arange(len(seeds))) * shared[:, None]
  is_mixture = (mixture[:, None] == np.unique(mixture)).astype(float)
  spent = int(is_seed.any(axis=0).sum() - len(np.unique(group[shared])))
  remove, offsets, weights = np.eye(count), np.zeros(len(seeds)), np.ones(count)
  unit = float(np.std(values)) or 1.0
  for _ in range(50 if spent else 0):
    mean = is_mixture @ ((is_mixture * weights[:, None]).T / (weights @ is_mixture)[:, None])
    centred, root = np.eye(count) - mean, np.sqrt(weights)[:, None]
    solve = np.linalg.pinv(root * (centred @ is_seed), rcond=1e-6) @ (root * centred)
    offsets, remove = solve @ values, np.eye(count) - is_seed @ solve
    residuals = centred @ (remove @ values) / unit
    bend = BEND * robust_scale(residuals, is_mixture.shape[1] + spent)
    last, weights = weights, np.minimum(1, bend / np.maximum(np.abs(residuals), 1e-300))
    if np.abs(weights - last).max() < 1e-4:
      break
  known = is_seed.any(axis=0) & bool(spent)
  of_seed = {int(s): float(o) for s, o, has in zip(seeds, offsets, known) if has}
  return Offsets(of_seed, remove, spent, bool(shared.any() and len(np.unique(group)) > 1))
