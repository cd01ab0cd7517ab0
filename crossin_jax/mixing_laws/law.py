"""Laws of how figures depend on the shares of a mixture, fitted to the points of a sweep.

`docs/design/mixing_laws.md` has the forms and the reasons. The exponential law is that of Ye et
al., "Data Mixing Laws" (2024, arXiv 2403.16952, section 3).

Axis letters: B replicates, N points, M mixtures, C components, D directions, P parameters.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from crossin_jax.mixing_laws.forms import (
  BEND,
  FORMS,
  Offsets,
  minimise,
  robust,
  robust_scale,
  seed_offsets,
)

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
    table = np.array([_normalised(one, components) for one in shares])
    mixtures, index = [], []
    for row in table:
      same = [m for m, other in enumerate(mixtures) if np.abs(other - row).max() < SAME]
      index.append(same[0] if same else len(mixtures))
      if not same:
        mixtures.append(row)
    mixtures = np.array(mixtures)
    centre = mixtures.mean(axis=0)
    _, sizes, directions = np.linalg.svd(mixtures - centre, full_matrices=False)
    extent = np.abs((mixtures - centre) @ directions.T).max(axis=0)
    basis = directions[(extent > SAME) & (sizes > 0.005 * sizes[0])]
    scale = float(np.abs((mixtures - centre) @ basis.T).max(initial=0)) or 1.0
    seed = None if seeds is None else np.array(seeds, int)
    return cls(components, table, np.array(index), seed, mixtures, centre, basis, scale)

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
    figure = _from_form(self.form, self.kind, values, self.unit)
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
    slope = self.theta[self.theta.size - len(self.shares.basis) :] @ self.shares.basis
    slope = slope / self.shares.scale
    shift = float(slope @ self.shares.centre)
    names = zip(self.shares.components, slope)
    t = {name: float(value) for name, value in names if name in self.shares.varied}
    if self.form == 'exponential':
      c, k = self.theta[:2] * self.unit
      return {'c': float(c), 'k': float(k * np.exp(-shift)), 't': t}
    unit = self.unit if self.form == 'linear' else 1.0
    t = {name: value * unit for name, value in t.items()}
    return {'b': float((self.theta[0] - shift) * unit), 't': t}


def default_form(kind: str) -> str:
  return 'exponential' if kind == 'loss' else 'logistic'


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
  count, mixtures = len(shares.points), len(shares.mixtures)
  draws = {
    'mixture': rng.integers(mixtures, size=(resamples, mixtures)),
    'mixture_sign': rng.choice((-1.0, 1.0), size=(resamples, mixtures)),
    'point': rng.integers(count, size=(resamples, count)),
    'point_sign': rng.choice((-1.0, 1.0), size=(resamples, count)),
    'quantile': rng.random((resamples, 1)),
  }
  return {
    name: _fit(shares, figure, (forms or {}).get(name) or default_form(figure.kind), draws)
    for name, figure in figures.items()
    if np.isfinite(figure.values).any()
  }


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
  from scipy import stats  # slow to import

  if forms is None:
    forms = [form for form in FORMS if form != 'logistic' or figure.kind == 'fraction']
  data = _Data(shares, figure)
  measured = np.unique(data.mixture)
  observed = np.array([data.values[data.mixture == m].mean() for m in measured])
  noise = None
  if data.freedom:
    runs = np.array([np.sum(data.mixture == m) for m in measured])
    noise = float(np.sqrt(2 / np.pi * data.within / data.freedom * np.mean(1 / runs)))
  rows = shares.coordinates(shares.mixtures[measured])
  errors = {}
  for name in forms:
    form = FORMS[name]
    if len(measured) < max(2, form.size(len(shares.basis)) + 1):
      errors[name] = None
      continue
    y = _to_form(name, figure.kind, data.values, data.unit)
    everything = robust(form, data.x, y, data.weights, figure.chance, data.offsets.spent)
    predicted = np.zeros(len(measured))
    for i, m in enumerate(measured):
      weights = data.weights * (data.mixture != m)
      theta = robust(form, data.x, y, weights, figure.chance, data.offsets.spent, near=everything)
      predicted[i] = form.value(theta[None], rows[i : i + 1], figure.chance)[0, 0]
    predicted = _from_form(name, figure.kind, predicted, data.unit)
    # The mean of the others always falls as the one left out rises.
    ranked = name != 'constant' and len(measured) > 2
    ranked = ranked and min(np.ptp(predicted), np.ptp(observed)) > 1e-12
    errors[name] = {
      'error': float(np.abs(predicted - observed).mean()),
      'rank': float(stats.spearmanr(predicted, observed).statistic) if ranked else None,
      'predicted': predicted.tolist(),
    }
  return {
    'observed': observed.tolist(),
    'mixtures': measured.tolist(),
    'noise': noise,
    'forms': errors,
  }


# ---- one figure ----


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
    self.keep = np.isfinite(figure.values)
    self.mixture, values = shares.mixture[self.keep], figure.values[self.keep]
    seed = None if shares.seed is None else shares.seed[self.keep]
    self.offsets = seed_offsets(values, self.mixture, seed)
    self.values = self.offsets.remove @ values
    self.x = shares.coordinates(shares.points[self.keep])
    self.within, self.freedom = _within(self.values, self.mixture, self.offsets.spent)
    self.unit = float(np.std(self.values)) or 1.0
    self.weights = np.ones(len(values))
    if figure.kind == 'fraction' and figure.items:
      smooth = (np.clip(self.values, 0, 1) * figure.items + 1) / (figure.items + 2)
      binomial = smooth * (1 - smooth) / figure.items
      between_seeds = self.within / self.freedom - binomial.mean() if self.freedom else 0.0
      weights = 1 / (binomial + max(0.0, between_seeds))
      self.weights = weights / weights.mean()


def _fit(shares: Shares, figure: Figure, wanted: str, draws: dict) -> Law:
  data = _Data(shares, figure)
  offsets, directions = data.offsets, len(shares.basis)
  measured, numbers = np.unique(data.mixture, return_inverse=True)
  name = wanted if np.ptp(data.values) >= 1e-12 and directions else 'constant'
  for simpler in ('linear', 'constant'):
    if len(measured) < FORMS[name].size(directions):
      name = simpler
  form = FORMS[name]
  y = _to_form(name, figure.kind, data.values, data.unit)
  theta = robust(form, data.x, y, data.weights, figure.chance, offsets.spent)
  fitted = form.value(theta[None], data.x, figure.chance)[0]
  residuals = y - fitted
  means = np.array([residuals[numbers == m].mean() for m in range(len(measured))])
  each = np.bincount(numbers)
  within, within_freedom = _within(residuals, numbers, offsets.spent)
  between, between_freedom = float(each @ means**2), len(measured) - theta.size
  # Variances of what the law misses of a mixture and of one run, as in an analysis of variance.
  of_mixture, of_run, freedom = 0.0, None, within_freedom
  if between_freedom <= 0:
    of_run = within / within_freedom if within_freedom else None
  elif within_freedom and between / between_freedom > within / within_freedom:
    of_run, freedom = within / within_freedom, between_freedom
    of_mixture = (between / between_freedom - of_run) / each.mean()
  else:
    freedom = between_freedom + within_freedom
    of_run = (between + within) / freedom
  replicates = np.zeros((0, theta.size))
  if of_run is not None:
    pools = (means, residuals - means[numbers] if of_mixture else residuals)
    of_means, of_runs = (pool / (np.sqrt(np.mean(pool**2)) or 1.0) for pool in pools)
    shift = of_means[draws['mixture'] % len(measured)] * draws['mixture_sign']
    jitter = (of_runs[draws['point'] % len(y)] * draws['point_sign'])[:, data.keep]
    noise = np.sqrt(of_mixture) * shift[:, data.mixture]
    noise = noise + np.sqrt(of_run) * jitter @ offsets.remove.T
    scale = robust_scale(np.sqrt(data.weights) * residuals, theta.size + offsets.spent)
    replicates = np.array([
      minimise(
        form, data.x, replicate, data.weights, figure.chance, bend=BEND * scale, starts=[theta],
        tolerance=1e-6,
      )
      for replicate in fitted + _widening(draws['quantile'], freedom) * noise
    ])  # fmt: skip
  return Law(
    shares, name, wanted, figure.kind, figure.chance, theta, replicates, data.unit,
    noise=None if of_run is None else float(np.sqrt(of_mixture + of_run) * data.unit),
    seed_noise=float(np.sqrt(within / within_freedom) * data.unit) if within_freedom else None,
    offsets=offsets, freedom=int(freedom), mixtures=len(measured), points=len(y),
  )  # fmt: skip


def _widening(quantile: np.ndarray, freedom: int) -> np.ndarray:
  from scipy import stats  # slow to import

  return np.minimum(_WIDEST, np.sqrt(freedom / stats.chi2.ppf(quantile, freedom)))


def _within(values: np.ndarray, index: np.ndarray, spent: int) -> tuple[float, int]:
  groups = [values[index == m] for m in np.unique(index)]
  return float(sum(((g - g.mean()) ** 2).sum() for g in groups)), len(values) - len(groups) - spent


def _to_form(form: str, kind: str, values: np.ndarray, unit: float) -> np.ndarray:
  if form == 'logistic':
    return values
  return (1 - values if form == 'exponential' and kind == 'fraction' else values) / unit


def _from_form(form: str, kind: str, values: np.ndarray, unit: float) -> np.ndarray:
  if form == 'logistic':
    return values
  return 1 - unit * values if form == 'exponential' and kind == 'fraction' else unit * values
