"""The forms of a mixing law, the fit of one form to many data sets at once, and what the runs of a
seed share.

A form is a function of places x (shares along the directions in which they differ) and parameters
theta. All fits of a bootstrap, and all starts of each, are one batch: Levenberg-Marquardt with
Huber's weights on arrays [B, N, P].

Axis letters: B fits at once, N points, D directions, P parameters, M mixtures, S seeds.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

# most that an exponent may differ between two observed points: beyond, a law is a spike at one of
# them
SPAN = 12.0
BEND = 1.345  # robust standard deviations at which Huber's loss turns from squares to lines
_RIDGE = 1e-8  # pulls slopes that no point tells anything about to 0


@dataclasses.dataclass(frozen=True)
class Form:
  """A family of curves.

  Attributes:
    size: directions -> number of parameters, the last of which are pulled to 0 where nothing tells
      them.
    free: how many of the first are not.
    curve: (theta [B, P], x [N, D], chance) -> values [B, N], derivatives [B, N, P].
    starts: (x, y [B, N], weights [B, N], chance) -> [B, S, P].
    project: (theta, x, y, weights) -> theta with what is linear solved, inside its bounds.
  """

  size: Callable[[int], int]
  free: int
  curve: Callable
  starts: Callable
  project: Callable = lambda theta, x, y, weights: theta

  def value(self, theta: np.ndarray, x: np.ndarray, chance: float) -> np.ndarray:
    return self.curve(theta, x, chance)[0]


def minimise(
  form: Form, x, y_BN, weights_BN, chance, *, bend=None, near=None, steps: int = 80
) -> np.ndarray:
  """The best parameters [B, P] over all starts.

  Args:
    form: the family.
    x: [N, D].
    y_BN, weights_BN: data and weights; weight 0 leaves a point out.
    chance: lower end of the logistic.
    bend: [B], where Huber's loss turns from squares to lines; None = squares.
    near: [P] or [B, P], a start more.
  """
  starts = form.starts(x, y_BN, weights_BN, chance)
  if near is not None:
    own = np.broadcast_to(near, (len(y_BN), starts.shape[2]))[:, None]
    # From a fit that is there, the first start beside it is enough.
    starts = np.concatenate([own, starts[:, :2]], axis=1)
  B, S, P = starts.shape
  y, w = np.repeat(y_BN, S, axis=0), np.repeat(weights_BN, S, axis=0)
  bends = np.full(B * S, np.inf) if bend is None else np.repeat(bend, S)
  ridge = np.where(np.arange(P) < form.free, 0.0, _RIDGE)
  theta = starts.reshape(B * S, P).copy()

  def loss(theta, y, w, bends):
    r = np.abs(y - form.value(theta, x, chance))
    squares = np.minimum(r, bends[:, None]) ** 2
    lines = np.where(r > bends[:, None], 2 * bends[:, None], 0) * np.maximum(
      0, r - np.minimum(r, bends[:, None])
    )
    with np.errstate(invalid='ignore'):
      total = (w * (squares + np.nan_to_num(lines))).sum(axis=1)
    return total + (ridge * theta**2).sum(axis=1)

  def solved(theta, y, w, bends):
    """Linear parameters solved with Huber's weights at the residuals of now."""
    r = np.abs(y - form.value(theta, x, chance))
    return form.project(theta, x, y, w * np.minimum(1, bends[:, None] / np.maximum(r, 1e-300)))

  theta = form.project(theta, x, y, w)
  best, damping = loss(theta, y, w, bends), np.full(B * S, 1e-2)
  active = np.arange(B * S)
  for _ in range(steps):
    t, yy, ww, bb = theta[active], y[active], w[active], bends[active]
    values, derivatives = form.curve(t, x, chance)
    residuals = yy - values
    huber = ww * np.minimum(1, bb[:, None] / np.maximum(np.abs(residuals), 1e-300))
    weighted = derivatives * huber[..., None]
    matrix = np.swapaxes(weighted, 1, 2) @ derivatives + np.diag(ridge)
    gradient = np.einsum('bnp,bn->bp', weighted, residuals) - ridge * t
    size = np.sqrt(np.diagonal(matrix, axis1=1, axis2=2)) + 1e-30
    matrix = matrix / (size[:, :, None] * size[:, None, :]) + (
      damping[active, None, None] + 1e-12
    ) * np.eye(P)
    step = np.linalg.solve(matrix, (gradient / size)[..., None])[..., 0] / size
    moved = solved(t + step, yy, ww, bb)
    now = loss(moved, yy, ww, bb)
    better = now < best[active]
    gained = np.where(better, best[active] - now, 0)
    theta[active[better]], best[active[better]] = moved[better], now[better]
    damping[active] = np.clip(
      np.where(better, damping[active] / 5, damping[active] * 4), 1e-12, 1e12
    )
    ended = (better & (gained <= 1e-11 * (now + 1e-12))) | (damping[active] > 1e7)
    active = active[~ended]
    if not active.size:
      break
  chosen = best.reshape(B, S).argmin(axis=1)
  return theta.reshape(B, S, P)[np.arange(B), chosen]


def robust(
  form: Form, x, y_BN, weights_BN, chance, *, near=None, scale=None, spent: int = 0
) -> np.ndarray:
  """Huber's fit [B, P]: bends at 1.345 robust standard deviations of the residuals of least
  squares.

  Args:
    form, x, y_BN, weights_BN, chance, near: see `minimise`.
    scale: of the residuals, where it is known.
    spent: parameters that the data have already paid for.
  """
  if scale is None:
    theta = minimise(form, x, y_BN, weights_BN, chance, near=near)
    residuals = y_BN - form.value(theta, x, chance)
    used = weights_BN > 0
    scale = np.array([robust_scale(r[u], theta.shape[1] + spent) for r, u in zip(residuals, used)])
    near = theta
  bend = BEND * np.broadcast_to(scale, len(y_BN))
  return minimise(form, x, y_BN, weights_BN, chance, bend=bend, near=near)


def robust_scale(residuals: np.ndarray, parameters: int) -> float:
  """Robust standard deviation; with hardly more points than parameters the plain one, which bends
  nothing.
  """
  count = len(residuals)
  plain = np.sqrt(np.sum(residuals**2) / max(1, count - parameters))
  if count < parameters + 4:
    return float(max(2 * plain, 1e-3))
  return float(
    max(
      1.4826 * np.median(np.abs(residuals)) * np.sqrt(count / (count - parameters)),
      0.1 * plain,
      1e-3,
    )
  )


def _regress(x, y_BN, weights_BN) -> np.ndarray:
  """Weighted linear regression: [B, 1 + D]."""
  design = np.concatenate([np.ones((len(x), 1)), x], axis=1)
  matrix = np.einsum('np,bn,nq->bpq', design, weights_BN, design) + 1e-9 * np.eye(design.shape[1])
  return np.linalg.solve(matrix, np.einsum('np,bn,bn->bp', design, weights_BN, y_BN)[..., None])[
    ..., 0
  ]


# ---- what the runs of a seed share ----


@dataclasses.dataclass(frozen=True)
class Offsets:
  """How far the figures of each seed lie from the mean over the seeds.

  Attributes:
    of_seed: {seed: offset}; seeds that nothing can be told of are not in it.
    remove: float64 [N, N]; `remove @ values` are the values as a run of all seeds on average would
      have them.
    spent: degrees of freedom that the offsets take.
    apart: some seeds share no mixture with the others, so their offsets sum to zero among
      themselves alone.
  """

  of_seed: dict[int, float]
  remove: np.ndarray
  spent: int
  apart: bool


def seed_offsets(values: np.ndarray, mixture: np.ndarray, seed: np.ndarray | None) -> Offsets:
  """Fits value = mixture + offset of the seed + noise of the run, with Huber's loss; offsets sum to
  zero.

  A seed brings its own order of examples, or a world and its questions of its own: what that does
  to all mixtures alike is no noise of the comparison between them. Every mixture has a parameter of
  its own here, so whatever the shares do, and whichever runs are missing, the offsets are not
  biased by it.

  They are added to the figure, for fractions too, not to their logit: runs at or below chance have
  no logit, and what is asked for is the mean of the figure over seeds, which balanced runs give
  whether or not offsets add up. Where they do not (an easy world saturates), the rest of it counts
  as noise of the runs.

  Args:
    values: float64 [N].
    mixture: int [N].
    seed: int [N]; None = unknown, no offsets.
  """
  count = len(values)
  seeds, column = np.unique(np.zeros(count, int) if seed is None else seed, return_inverse=True)
  group = np.arange(count)  # runs that are linked by a seed or a mixture
  for _ in range(count):
    before = group.copy()
    for label in (mixture, column):
      least = np.full(label.max() + 1, count)
      np.minimum.at(least, label, group)
      group = least[label]
    if (group == before).all():
      break
  # The seeds of a mixture that shares none of them with another are its noise.
  shared = np.array([len(np.unique(mixture[group == g])) > 1 for g in group])
  is_seed = (column[:, None] == np.arange(len(seeds))) * shared[:, None]
  is_mixture = (mixture[:, None] == np.unique(mixture)).astype(float)
  spent = int(is_seed.any(axis=0).sum() - len(np.unique(group[shared])))
  remove, offsets, weights = np.eye(count), np.zeros(len(seeds)), np.ones(count)
  unit = float(np.std(values)) or 1.0
  for _ in range(50 if spent else 0):
    centred = np.eye(count) - is_mixture @ (
      (is_mixture * weights[:, None]).T / (weights @ is_mixture)[:, None]
    )
    root = np.sqrt(weights)[:, None]
    solve = np.linalg.pinv(root * (centred @ is_seed), rcond=1e-6) @ (root * centred)
    offsets, remove = solve @ values, np.eye(count) - is_seed @ solve
    residuals = centred @ (remove @ values) / unit
    bend = BEND * robust_scale(residuals, is_mixture.shape[1] + spent)
    last, weights = weights, np.minimum(1, bend / np.maximum(np.abs(residuals), 1e-300))
    if np.abs(weights - last).max() < 1e-4:
      break
  known = {
    int(s): float(o) for s, o, has in zip(seeds, offsets, is_seed.any(axis=0)) if has and spent
  }
  return Offsets(known, remove, spent, bool(shared.any() and len(np.unique(group)) > 1))


# ---- c + k exp(x u) ----


def _exponential(theta, x, chance):
  z = np.exp(np.clip(theta[:, 2:] @ x.T, -40, 40))
  slopes = theta[:, 1, None, None] * z[..., None] * x[None]
  return theta[:, :1] + theta[:, 1:2] * z, np.concatenate(
    [np.ones_like(z)[..., None], z[..., None], slopes], axis=2
  )


def _exponential_starts(x, y, weights, chance):
  seen = np.where(weights > 0, y, np.nan)
  low, spread = np.nanmin(seen, axis=1), np.nanmax(seen, axis=1) - np.nanmin(seen, axis=1) + 1e-9
  slopes = []
  for floor in (low - 0.1 * spread, low - spread, np.zeros_like(low)):
    slopes.append(
      _regress(x, np.log(np.maximum(y - floor[:, None], 0.02 * spread[:, None])), weights)[:, 1:]
    )
  rng = np.random.default_rng(7)
  for size in (1, 3, 3, 6, 6, 6):
    direction = rng.normal(size=x.shape[1])
    slopes.append(
      np.broadcast_to(size * direction / max(1e-9, np.linalg.norm(direction)), slopes[0].shape)
    )
  slopes += [-slope for slope in slopes[3:]]
  slopes = np.stack(slopes, axis=1)
  return np.concatenate([np.ones((*slopes.shape[:2], 2)), slopes], axis=2)


def _exponential_solved(theta, x, y, weights):
  """c and k by least squares under c >= 0, k >= 0, for slopes cut to `SPAN`."""
  slopes = theta[:, 2:]
  z = slopes @ x.T
  span = np.ptp(z, axis=1)
  slopes = slopes * np.minimum(1, SPAN / np.maximum(span, 1e-30))[:, None]
  z = slopes @ x.T
  top = z.max(axis=1)
  e = np.exp(z - top[:, None])
  total = np.maximum(weights.sum(axis=1), 1e-30)
  e_mean, y_mean = (weights * e).sum(axis=1) / total, (weights * y).sum(axis=1) / total
  variance = (weights * (e - e_mean[:, None]) ** 2).sum(axis=1)
  shared = (weights * (e - e_mean[:, None]) * (y - y_mean[:, None])).sum(axis=1)
  k = np.where(variance > 1e-14 * total, np.maximum(0, shared / np.maximum(variance, 1e-30)), 0)
  c = y_mean - k * e_mean
  below = c < 0
  k = np.where(
    below, (weights * e * y).sum(axis=1) / np.maximum((weights * e * e).sum(axis=1), 1e-30), k
  )
  k, c = np.maximum(0, k), np.where(below, 0, c)
  return np.concatenate([c[:, None], (k * np.exp(-top))[:, None], slopes], axis=1)


# ---- chance + (1 - chance) sigmoid(b + x u) ----


def _logistic(theta, x, chance):
  z = np.clip(theta[:, :1] + theta[:, 1:] @ x.T, -40, 40)
  p = 1 / (1 + np.exp(-z))
  slope = ((1 - chance) * p * (1 - p))[..., None]
  return chance + (1 - chance) * p, np.concatenate([slope, slope * x[None]], axis=2)


def _logistic_starts(x, y, weights, chance):
  part = np.clip((y - chance) / (1 - chance), 0.02, 0.98)
  line = _regress(x, np.log(part / (1 - part)), weights)
  flat = np.zeros_like(line)
  flat[:, 0] = np.average(np.log(part / (1 - part)), axis=1, weights=weights)
  return np.stack([line, flat, 3 * line], axis=1)


def _logistic_bounded(theta, x, y, weights):
  """Data that a step describes have no best slope: exponents stay within the span."""
  slopes = theta[:, 1:]
  span = np.ptp(slopes @ x.T, axis=1)
  slopes = slopes * np.minimum(1, SPAN / np.maximum(span, 1e-30))[:, None]
  return np.concatenate([np.clip(theta[:, :1], -SPAN, SPAN), slopes], axis=1)


# ---- polynomials ----


def _polynomial(terms: Callable) -> Form:
  def curve(theta, x, chance):
    columns = terms(x)
    return theta @ columns.T, np.broadcast_to(columns, (len(theta), *columns.shape))

  def starts(x, y, weights, chance):
    return _regress(terms(x)[:, 1:], y, weights)[:, None]

  return Form(lambda d: terms(np.zeros((1, d))).shape[1], 1, curve, starts)


def _ones(x):
  return np.ones((len(x), 1))


def _squares(x):
  i, j = np.triu_indices(x.shape[1])
  return np.concatenate([_ones(x), x, x[:, i] * x[:, j]], axis=1)


FORMS = {
  'constant': _polynomial(_ones),
  'linear': _polynomial(lambda x: np.concatenate([_ones(x), x], axis=1)),
  'quadratic': _polynomial(_squares),
  'exponential': Form(lambda d: d + 2, 2, _exponential, _exponential_starts, _exponential_solved),
  'logistic': Form(lambda d: d + 1, 1, _logistic, _logistic_starts, _logistic_bounded),
}
