"""The forms of a mixing law and their robust fit.

A form is a function of coordinates x (shares along the directions in which they differ) and
parameters theta. `docs/design/mixing_laws.md#forms` has the formulas and the reasons.

Axis letters: B parameter vectors, S starts, N points, D directions, P parameters.
"""

from collections.abc import Callable
import dataclasses

import numpy as np
from scipy import optimize, special

# Largest difference of an exponent along a direction: beyond it, a law is a spike at one point.
SPAN = 12.0
BEND = 1.345  # robust standard deviations at which Huber's loss turns from squares to lines


@dataclasses.dataclass(frozen=True)
class Form:
  """A family of curves: value = floor + link(columns(x) @ theta), or one minus that.

  Attributes:
    columns: x [..., D] -> [..., L]. If there is a span, the last columns are x.
    link, rise, unlink: a function of [...], its derivative, and about its inverse, for starts.
    span: largest difference of the argument of the link along a direction.
    floor: 1 if there is one: a first parameter, at least 0.
    flipped: whether the value is one minus the rest.
  """

  columns: Callable[[np.ndarray], np.ndarray]
  link: Callable[[np.ndarray], np.ndarray] = lambda z: z
  rise: Callable[[np.ndarray], np.ndarray] = np.ones_like
  unlink: Callable[[np.ndarray], np.ndarray] = lambda y: y
  span: float | None = None
  floor: int = 0
  flipped: bool = False

  def size(self, directions: int) -> int:
    """Number of parameters."""
    return self.floor + self.columns(np.zeros(directions)).size

  def value(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values [B, ...] by parameters [B, P] at x [..., D]."""
    curve = self.link(self.columns(x) @ theta[:, self.floor :].T)
    curve = curve + theta[:, 0] if self.floor else curve
    return np.moveaxis(1 - curve if self.flipped else curve, -1, 0)

  def slope(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Derivatives [N, P] of the values by parameters [P]."""
    columns = self.columns(x)
    slope = self.rise(columns @ theta[self.floor :])[:, None] * columns
    slope = np.concatenate([np.ones((len(x), self.floor)), slope], axis=1)
    return -slope if self.flipped else slope

  def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Starting points [S, P] of a fit to y [N]."""
    y = 1 - y if self.flipped else y
    if not self.floor:
      return _regress(self.columns(x), self.unlink(y))[None]
    spread = np.ptp(y) + 1e-9
    floors = np.maximum(0, [y.min() - 0.1 * spread, y.min() - spread, 0.0])
    above = [self.unlink(np.maximum(y - floor, 0.02 * spread)) for floor in floors]
    lines = [_regress(self.columns(x), values) for values in above]
    return np.concatenate([floors[:, None], lines], axis=1)

  def bounds(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds [P] of the parameters."""
    high = np.full(self.size(x.shape[1]), np.inf)
    if self.span:
      high[-x.shape[1] :] = self.span / np.maximum(np.ptp(x, axis=0), 1e-9)
    low = -high
    low[: self.floor] = 0
    return low, high


def minimise(form: Form, x, y, starts, bend=None, tolerance: float = 1e-10) -> np.ndarray:
  """The best parameters [P] over all starts.

  Args:
    form, x, y: the family, coordinates [N, D], values [N].
    starts: [S, P].
    bend: residual at which Huber's loss turns linear; None = squares.
    tolerance: relative, of the loss and the parameters.
  """
  low, high = form.bounds(x)
  options = dict.fromkeys(('ftol', 'xtol', 'gtol'), tolerance) | {'bounds': (low, high)}
  if bend is not None:
    options |= {'loss': 'huber', 'f_scale': bend}
  options['jac'] = lambda theta: form.slope(theta, x)
  residuals = lambda theta: form.value(theta[None], x)[0] - y
  fits = [optimize.least_squares(residuals, np.clip(s, low, high), **options) for s in starts]
  return min(fits, key=lambda fit: fit.cost).x


def robust(form: Form, x, y, spent: int = 0, starts=None) -> tuple[np.ndarray, float]:
  """Huber's fit [P], from the one of squares, and the residual at which its loss bends.

  Args:
    form, x, y: see `minimise`.
    spent: degrees of freedom that the data have already lost.
    starts: [S, P], in place of those of the form.
  """
  theta = minimise(form, x, y, form.starts(x, y) if starts is None else starts)
  residuals = y - form.value(theta[None], x)[0]
  # Without residuals there is a loss too: it bends at a thousandth of the spread of the values.
  least = 1e-3 * (np.std(y) or 1.0)
  bend = BEND * max(_scale(residuals, theta.size + spent), least)
  return minimise(form, x, y, [theta], bend), bend


def _scale(residuals: np.ndarray, parameters: int) -> float:
  """Robust standard deviation; with few more points than parameters twice the plain one."""
  count = len(residuals)
  plain = np.sqrt(np.sum(residuals**2) / max(1, count - parameters))
  if count < parameters + 4:
    return float(2 * plain)
  median = 1.4826 * np.median(np.abs(residuals)) * np.sqrt(count / (count - parameters))
  return float(max(median, 0.1 * plain))


def _regress(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.linalg.lstsq(columns, y, rcond=None)[0]


def _ones(x: np.ndarray) -> np.ndarray:
  return np.ones((*x.shape[:-1], 1))


def _line(x: np.ndarray) -> np.ndarray:
  return np.concatenate([_ones(x), x], axis=-1)


def _squares(x: np.ndarray) -> np.ndarray:
  i, j = np.triu_indices(x.shape[-1])
  return np.concatenate([_line(x), x[..., i] * x[..., j]], axis=-1)


def _exp(z: np.ndarray) -> np.ndarray:
  return np.exp(np.clip(z, -40, 40))


def forms_of(kind: str, chance: float = 0.0) -> dict[str, Form]:
  """The forms of a figure by their names.

  Args:
    kind: 'loss' or 'fraction'. An exponential law of a fraction is one of its error.
    chance: lower end of the logistic form, which only fractions have.
  """
  forms = {
    'constant': Form(_ones),
    'linear': Form(_line),
    'quadratic': Form(_squares),
    'exponential': Form(_line, _exp, _exp, np.log, SPAN, floor=1, flipped=kind == 'fraction'),
  }
  if kind == 'fraction':
    forms['logistic'] = Form(
      _line,
      link=lambda z: chance + (1 - chance) * special.expit(z),
      rise=lambda z: (1 - chance) * special.expit(z) * special.expit(-z),
      unlink=lambda y: special.logit(np.clip((y - chance) / (1 - chance), 0.02, 0.98)),
      span=SPAN,
    )
  return forms
