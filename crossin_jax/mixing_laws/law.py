"""Laws of how figures depend on the shares of a mixture, fitted to the points of a sweep.

`docs/design/mixing_laws.md` has the forms and the reasons. The exponential law is that of Ye et
al., "Data Mixing Laws" (2024, arXiv 2403.16952, section 3).

Axis letters: B replicates, N points, M mixtures, C components, D directions, P parameters.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math

import numpy as np

from crossin_jax.mixing_laws.forms import BEND, FORMS, Form, minimise, robust, robust_scale
from crossin_jax.mixing_laws.offsets import Offsets, seed_offsets

LEVEL = 0.95
SAME = 5e-4  # shares that differ by less are the same: tables of shares are rounded
_WIDEST = 5.0  # limit of the factor by which few degrees of freedom widen a replicate's noise


@dataclasses.dataclass(frozen=True)
class Shares:
  """The shares of all points, and the directions in which they differ.

  Attributes:
    components: their names.
    points: float64 [N, C], each row sums to 1.
    mixture: int [N], the number of each point's mixture.
    seed: int [N], or None where seeds are unknown: then runs share nothing.
    mixtures: float64 [M, C], the distinct rows.
    centre: float64 [C], mean of the distinct rows.
    basis: float64 [D, C], orthonormal.
    scale: the largest distance from the centre along a direction.
  """

  components: tuple[str, ...]
  points: np.ndarray
  mixture: np.ndarray
  seed: np.ndarray | None
  mixtures: np.ndarray
  centre: np.ndarray
  basis: np.ndarray
  scale: float

  @classmethod
  def of(
    cls, shares: Sequence[Mapping[str, float]], seeds: Sequence[int] | None = None
  ) -> 'Shares':
    """From {component: weight} of each point; a component that a point omits has weight 0.

    Raises:
      ValueError: no points, or weights that are negative, not finite, or all zero.
    """
    if not shares:
      raise ValueError('no points: the sweep has none that is finished')
    components = tuple(dict.fromkeys(name for one in shares for name in one))
    points = np.array([_normalised(one, components) for one in shares])
    same = np.abs(points[:, None] - points).max(axis=2) < SAME  # [N, N]
    first, mixture = np.unique(same.argmax(axis=1), return_inverse=True)
    mixtures = points[first]
    centre = mixtures.mean(axis=0)
    _, sizes, directions = np.linalg.svd(mixtures - centre, full_matrices=False)
    extent = np.abs((mixtures - centre) @ directions.T).max(axis=0)
    basis = directions[(extent > SAME) & (sizes > 0.005 * sizes[0])]
    scale = float(np.abs((mixtures - centre) @ basis.T).max(initial=0)) or 1.0
    seed = None if seeds is None else np.array(seeds, int)
    return cls(components, points, mixture, seed, mixtures, centre, basis, scale)

  @property
  def varied(self) -> tuple[str, ...]:
    """Components whose share is not the same in all mixtures."""
    spread = np.ptp(self.mixtures, axis=0) > SAME
    return tuple(name for name, differs in zip(self.components, spread) if differs)

  def row(self, shares: Mapping[str, float]) -> np.ndarray:
    """{component: weight} -> float64 [C] that sums to 1.

    Raises:
      ValueError: a component that no mixture has, or weights that are no shares.
    """
    if unknown := [name for name in shares if name not in self.components]:
      raise ValueError(
        f'no mixture has {", ".join(unknown)}; there are {", ".join(self.components)}'
      )
    return _normalised(shares, self.components)

  def named(self, row: np.ndarray) -> dict[str, float]:
    """float64 [C] -> {component: share}."""
    return dict(zip(self.components, row.tolist()))

  def coordinates(self, shares: np.ndarray) -> np.ndarray:
    """Shares [..., C] -> coordinates [..., D] along the directions, about between -1 and 1."""
    return (np.asarray(shares) - self.centre) @ self.basis.T / self.scale

  def shares(self, coordinates: np.ndarray) -> np.ndarray:
    """The inverse of `coordinates`."""
    return self.centre + self.scale * (np.asarray(coordinates) @ self.basis)


def _normalised(shares: Mapping[str, float], components: Sequence[str]) -> np.ndarray:
  values = np.array([float(shares.get(name, 0.0)) for name in components])
  if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
    raise ValueError(f'shares {dict(shares)} must be finite, not negative, and not all zero')
  return values / values.sum()


@dataclasses.dataclass(frozen=True)
class Figure:
  """One measured quantity at every point.

  Attributes:
    values: float64 [N], NaN = not measured.
    kind: 'loss' (nats per token, at least 0) or 'fraction'.
    chance: lower end of a fraction.
    items: number of items that a fraction is a mean over; its binomial noise weights the points.
  """

  values: np.ndarray
  kind: str = 'loss'
  chance: float = 0.0
  items: int | None = None


def default_form(kind: str) -> str:
  return 'exponential' if kind == 'loss' else 'logistic'


def _scaled(form: str, kind: str, values: np.ndarray, unit: float, back: bool = False):
  """Figure -> what a form describes, or back; an exponential law of a fraction is of its error."""
  if form == 'logistic':
    return values
  error = form == 'exponential' and kind == 'fraction'
  if back:
    return 1 - unit * values if error else unit * values
  return (1 - values if error else values) / unit


@dataclasses.dataclass(frozen=True)
class Law:
  """A fitted form.

  Attributes:
    shares: where it was fitted.
    form: name in `forms.FORMS`.
    wanted: the requested form; `form` is simpler if there are fewer mixtures than parameters.
    kind, chance: see `Figure`.
    theta: float64 [P].
    replicates: float64 [B, P], fits to bootstrap data; none if the noise is unknown.
    unit: the figure is this times the form's value.
    noise: standard deviation of a run around the law, without seed offsets; None = unknown.
    seed_noise: standard deviation between the runs of a mixture, likewise.
    offsets: what the runs of a seed share.
    freedom: degrees of freedom of `noise`.
    mixtures, points: how many were measured.
  """

  shares: Shares
  form: str
  wanted: str
  kind: str
  chance: float
  theta: np.ndarray
  replicates: np.ndarray
  unit: float
  noise: float | None
  seed_noise: float | None
  offsets: Offsets
  freedom: int
  mixtures: int
  points: int

  @property
  def parameters(self) -> int:
    return self.theta.size

  def predict(
    self, shares: np.ndarray | Mapping[str, float], replicates: bool = False
  ) -> np.ndarray:
    """The figure at shares [..., C] (or a mapping): [...], or [B, ...] of the replicates."""
    rows = self.shares.row(shares) if isinstance(shares, Mapping) else np.asarray(shares, float)
    x = self.shares.coordinates(rows).reshape(math.prod(rows.shape[:-1]), len(self.shares.basis))
    theta = self.replicates if replicates else self.theta[None]
    values = FORMS[self.form].value(theta, x, self.chance)
    figure = _scaled(self.form, self.kind, values, self.unit, back=True)
    figure = figure.reshape(len(theta), *rows.shape[:-1])
    return figure if replicates else figure[0]

  def interval(self, shares, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray] | None:
    """Interval of the law itself, for the seeds that were run; None without replicates."""
    if not len(self.replicates):
      return None
    low, high = np.quantile(self.predict(shares, True), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high

  def coefficients(self) -> dict:
    """{'c', 'k' or 'b', 't': {component: t_j}} of the shares; {} for the other forms.

    t has only the observed directions. An exponential law of a fraction is one of its error:
    1 - y = c + k exp(...).
    """
    if self.form not in ('exponential', 'logistic', 'linear'):
      return {}
    first = self.theta.size - len(self.shares.basis)
    slope = self.theta[first:] @ self.shares.basis / self.shares.scale
    shift = float(slope @ self.shares.centre)
    unit = self.unit if self.form == 'linear' else 1.0
    t = {n: v * unit for n, v in self.shares.named(slope).items() if n in self.shares.varied}
    if self.form == 'exponential':
      c, k = self.theta[:2] * self.unit
      return {'c': float(c), 'k': float(k * np.exp(-shift)), 't': t}
    return {'b': float((self.theta[0] - shift) * unit), 't': t}


class _Data:
  """The measured points of a figure, without the offsets of their seeds.

  Attributes:
    keep: bool [N] of all points.
    mixture, values, x, weights: of the measured points; weights have mean 1 and are, for fractions
      of a known number of items, one over the variance.
    offsets: what was removed.
    within, freedom: sum of squares between the runs of a mixture, and its degrees of freedom.
    unit: values are divided by this before a fit, so that nothing depends on nats or bits.
  """

  def __init__(self, shares: Shares, figure: Figure):
    self.figure, self.keep = figure, np.isfinite(figure.values)
    self.mixture, values = shares.mixture[self.keep], figure.values[self.keep]
    seed = None if shares.seed is None else shares.seed[self.keep]
    self.offsets = seed_offsets(values, self.mixture, seed)
    self.values = self.offsets.remove @ values
    self.x = shares.coordinates(shares.points[self.keep])
    self.within, self.freedom = self.spread(self.values)
    self.unit = float(np.std(self.values)) or 1.0
    self.weights = np.ones(len(values))
    if figure.kind == 'fraction' and figure.items:
      smooth = (np.clip(self.values, 0, 1) * figure.items + 1) / (figure.items + 2)
      binomial = smooth * (1 - smooth) / figure.items
      between_seeds = self.within / self.freedom - binomial.mean() if self.freedom else 0.0
      weights = 1 / (binomial + max(0.0, between_seeds))
      self.weights = weights / weights.mean()

  def spread(self, values: np.ndarray) -> tuple[float, int]:
    """Sum of squares of values [N] between the runs of a mixture, and its degrees of freedom."""
    groups = [values[self.mixture == m] for m in np.unique(self.mixture)]
    freedom = len(values) - len(groups) - self.offsets.spent
    return float(sum(((g - g.mean()) ** 2).sum() for g in groups)), freedom

  def scaled(self, form: str) -> np.ndarray:
    return _scaled(form, self.figure.kind, self.values, self.unit)

  def fit(self, name: str, weights: np.ndarray | None = None, near=None) -> np.ndarray:
    """The robust parameters [P] of a form."""
    weights = self.weights if weights is None else weights
    y, chance = self.scaled(name), self.figure.chance
    return robust(FORMS[name], self.x, y, weights, chance, self.offsets.spent, near)


def fit_laws(
  shares: Shares,
  figures: Mapping[str, Figure],
  *,
  forms: Mapping[str, str] | None = None,
  resamples: int = 400,
  seed: int = 0,
) -> dict[str, Law]:
  """Fits every figure that was measured at some point.

  The data of a replicate are the law plus residuals drawn with random signs: those of mixtures
  (what the law misses) and those of runs, each scaled to its unbiased variance and widened for few
  degrees of freedom. Seed offsets of the drawn noise are removed, as they were from the data. All
  figures have the same draws, so the languages of a run stay correlated.

  Args:
    shares: of all points.
    figures: name -> values.
    forms: figure -> form, where it is not `default_form`.
    resamples, seed: number of replicates and their seed.
  """
  rng = np.random.default_rng([seed, 11])
  sizes = {'mixture': (resamples, len(shares.mixtures)), 'point': (resamples, len(shares.points))}
  draws = {}
  for name, size in sizes.items():
    draws[name] = rng.integers(size[1], size=size), rng.choice((-1.0, 1.0), size=size)
  draws['quantile'] = rng.random((resamples, 1))
  return {
    name: _fit(shares, figure, (forms or {}).get(name) or default_form(figure.kind), draws)
    for name, figure in figures.items()
    if np.isfinite(figure.values).any()
  }


def _fit(shares: Shares, figure: Figure, wanted: str, draws: dict) -> Law:
  data = _Data(shares, figure)
  measured, numbers = np.unique(data.mixture, return_inverse=True)
  name = wanted if np.ptp(data.values) >= 1e-12 and len(shares.basis) else 'constant'
  for simpler in ('linear', 'constant'):
    if len(measured) < FORMS[name].size(len(shares.basis)):
      name = simpler
  form, theta = FORMS[name], data.fit(name)
  fitted = form.value(theta[None], data.x, figure.chance)[0]
  residuals = data.scaled(name) - fitted
  each = np.bincount(numbers)
  means = np.bincount(numbers, residuals) / each
  of_mixture, of_run, freedom = _variances(
    float(each @ means**2), len(measured) - theta.size, *data.spread(residuals), each.mean()
  )
  replicates = np.zeros((0, theta.size))
  if of_run is not None:
    pools = (means, residuals - means[numbers] if of_mixture else residuals)
    normal = lambda pool: pool / (np.sqrt(np.mean(pool**2)) or 1.0)
    drawn = [
      normal(pool)[index % len(pool)] * sign
      for pool, (index, sign) in zip(pools, (draws['mixture'], draws['point']))
    ]
    noise = np.sqrt(of_mixture) * drawn[0][:, data.mixture]
    noise = noise + np.sqrt(of_run) * drawn[1][:, data.keep] @ data.offsets.remove.T
    noise *= _widening(draws['quantile'], freedom)
    scale = robust_scale(np.sqrt(data.weights) * residuals, theta.size + data.offsets.spent)
    refit = functools.partial(minimise, form, data.x, bend=BEND * scale, tolerance=1e-6)
    replicates = np.array(
      [refit(fitted + one, data.weights, figure.chance, starts=[theta]) for one in noise]
    )
  unit = 1.0 if name == 'logistic' else data.unit
  return Law(
    shares, name, wanted, figure.kind, figure.chance, theta, replicates, data.unit,
    noise=None if of_run is None else float(np.sqrt(of_mixture + of_run) * unit),
    seed_noise=float(np.sqrt(data.within / data.freedom)) if data.freedom else None,
    offsets=data.offsets, freedom=int(freedom), mixtures=len(measured), points=len(residuals),
  )  # fmt: skip


def _variances(between, between_freedom, within, within_freedom, runs):
  """Variances of what the law misses of a mixture and of one run, as in an analysis of variance.

  Args:
    between, within: sums of squares of the residuals' means by mixture, and around them.
    between_freedom, within_freedom: their degrees of freedom.
    runs: mean number of runs of a mixture.

  Returns:
    (of a mixture, of a run or None = unknown, degrees of freedom).
  """
  if between_freedom <= 0:
    return 0.0, within / within_freedom if within_freedom else None, within_freedom
  if within_freedom and between / between_freedom > within / within_freedom:
    of_run = within / within_freedom
    return (between / between_freedom - of_run) / runs, of_run, between_freedom
  freedom = between_freedom + within_freedom
  return 0.0, (between + within) / freedom, freedom


def _widening(quantile: np.ndarray, freedom: int) -> np.ndarray:
  from scipy import stats  # slow to import

  return np.minimum(_WIDEST, np.sqrt(freedom / stats.chi2.ppf(quantile, freedom)))


def held_out(shares: Shares, figure: Figure, forms: Sequence[str] | None = None) -> dict:
  """Leaves out each mixture, with all its runs, and predicts it from the others.

  Seed offsets are those of all mixtures. For a mixture that has all seeds, this reveals nothing:
  its mean and the offsets do not depend on each other.

  Args:
    shares, figure: the points.
    forms: names; None = mean, linear, quadratic, exponential, and logistic for a fraction.

  Returns:
    {'observed': [mean of each measured mixture without offsets], 'mixtures': [its number], 'noise':
    the error that the noise of the runs alone would give, or None, 'forms': {form: {'error': mean
    absolute error, 'rank': Spearman's correlation or None where it has no meaning, 'predicted':
    [...]}, or None with fewer other mixtures than parameters}}.
  """
  if forms is None:
    forms = [form for form in FORMS if form != 'logistic' or figure.kind == 'fraction']
  data = _Data(shares, figure)
  measured, numbers, runs = np.unique(data.mixture, return_inverse=True, return_counts=True)
  observed, noise = np.bincount(numbers, data.values) / runs, None
  if data.freedom:
    noise = float(np.sqrt(2 / np.pi * data.within / data.freedom * np.mean(1 / runs)))
  rows = shares.coordinates(shares.mixtures[measured])
  enough = lambda form: len(measured) > max(1, FORMS[form].size(len(shares.basis)))
  return {
    'observed': observed.tolist(),
    'mixtures': measured.tolist(),
    'noise': noise,
    'forms': {n: _left_out(data, n, rows, observed) if enough(n) else None for n in forms},
  }


def _left_out(data: _Data, name: str, rows: np.ndarray, observed: np.ndarray) -> dict:
  from scipy import stats  # slow to import

  form: Form = FORMS[name]
  figure, everything = data.figure, data.fit(name)
  predicted = []
  for row, m in zip(rows, np.unique(data.mixture)):
    theta = data.fit(name, data.weights * (data.mixture != m), near=everything)
    predicted.append(form.value(theta[None], row[None], figure.chance)[0, 0])
  predicted = _scaled(name, figure.kind, np.array(predicted), data.unit, back=True)
  # The mean of the others always falls as the one left out rises.
  ranked = name != 'constant' and len(rows) > 2
  ranked = ranked and min(np.ptp(predicted), np.ptp(observed)) > 1e-12
  return {
    'error': float(np.abs(predicted - observed).mean()),
    'rank': float(stats.spearmanr(predicted, observed).statistic) if ranked else None,
    'predicted': predicted.tolist(),
  }
