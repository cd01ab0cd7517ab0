"""Laws of how figures depend on the shares of a mixture, fitted to the points of a sweep.

`docs/design/mixing_laws.md` has the reasons.

Axis letters: B replicates, N points, M mixtures, C components, D directions, P parameters.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math

import numpy as np

from crossin_jax.mixing_laws.forms import FORMS, minimise, robust

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
    seed: int [N]; the same everywhere if seeds are unknown.
    mixtures: float64 [M, C], the distinct rows.
    centre: float64 [C], mean of the distinct rows.
    basis: float64 [D, C], orthonormal.
    scale: the largest distance from the centre along a direction.
  """

  components: tuple[str, ...]
  points: np.ndarray
  mixture: np.ndarray
  seed: np.ndarray
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
    seed = np.zeros(len(shares), int) if seeds is None else np.array(seeds, int)
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
  """

  values: np.ndarray
  kind: str = 'loss'
  chance: float = 0.0


class Measured:
  """The measured points of a figure, without the offsets of their seeds.

  Attributes:
    shares, figure: of all points; `keep`, bool [N], tells which are measured.
    values, x, mixture: float64 [N], coordinates [N, D], number of the mixture [N].
    mixtures, group, runs: numbers of the mixtures, index into them [N], how many runs each has.
    offsets, remove, spent: see `seed_offsets`.
    freedom: degrees of freedom between the runs of the mixtures.
    unit: values are divided by this before a fit, so that nothing depends on nats or bits.
  """

  def __init__(self, shares: Shares, figure: Figure):
    self.shares, self.figure, self.keep = shares, figure, np.isfinite(figure.values)
    self.mixture, self.x = shares.mixture[self.keep], shares.coordinates(shares.points[self.keep])
    self.mixtures, self.group, self.runs = np.unique(
      self.mixture, return_inverse=True, return_counts=True
    )
    values, seed = figure.values[self.keep], shares.seed[self.keep]
    self.offsets, self.remove, self.spent = seed_offsets(values, self.group, seed)
    self.values = self.remove @ values
    self.freedom = len(values) - len(self.mixtures) - self.spent
    self.unit = float(np.std(self.values)) or 1.0

  def means(self, values: np.ndarray) -> np.ndarray:
    """Of values [N] by mixture."""
    return np.bincount(self.group, values) / self.runs

  def within(self, values: np.ndarray) -> float:
    """Sum of squares of values [N] between the runs of a mixture."""
    return float(np.sum((values - self.means(values)[self.group]) ** 2))

  def base_and_unit(self, form: str) -> tuple[float, float]:
    """The figure is base + unit * form; an exponential law of a fraction is one of its error."""
    if form == 'logistic':
      return 0.0, 1.0
    error = form == 'exponential' and self.figure.kind == 'fraction'
    return (1.0, -self.unit) if error else (0.0, self.unit)

  def fit(self, form: str, rest: np.ndarray | slice = slice(None), near=None):
    """`robust` of the points `rest`."""
    base, unit = self.base_and_unit(form)
    y = (self.values - base) / unit
    return robust(FORMS[form], self.x[rest], y[rest], self.figure.chance, self.spent, near)

  def predict(self, form: str, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The figure [B, K] by parameters [B, P] at coordinates [K, D]."""
    base, unit = self.base_and_unit(form)
    return base + unit * FORMS[form].value(theta, x, self.figure.chance)


def seed_offsets(
  values: np.ndarray, mixture: np.ndarray, seed: np.ndarray
) -> tuple[dict[int, float], np.ndarray, int]:
  """Fits value = mixture + offset of the seed + noise; offsets sum to zero.

  A seed has its own order of examples, or its own world and questions. Every mixture has a
  parameter here, so neither the effect of the shares nor missing runs bias the offsets.

  Returns:
    ({seed: offset}, float64 [N, N] that removes them from values [N], their degrees of freedom);
    ({}, identity, 0) for a single seed, or if seeds have too few mixtures in common.
  """
  count = len(values)
  seeds, mixtures = np.unique(seed), np.unique(mixture)
  if len(seeds) > 1 and len(mixtures) > 1:
    is_seed, is_mixture = seed[:, None] == seeds, (mixture[:, None] == mixtures).astype(float)
    centred = np.eye(count) - is_mixture @ np.linalg.pinv(is_mixture)
    spent = int(np.linalg.matrix_rank(centred @ is_seed, tol=1e-6))
    if spent == len(seeds) - 1:
      solve = np.linalg.pinv(centred @ is_seed, rcond=1e-6) @ centred
      offsets = dict(zip(seeds.tolist(), (solve @ values).tolist()))
      return offsets, np.eye(count) - is_seed @ solve, spent
  return {}, np.eye(count), 0


@dataclasses.dataclass(frozen=True)
class Law:
  """A fitted form.

  Attributes:
    data: what it was fitted to.
    form, wanted: names in `forms.FORMS`; `form` is simpler than the one that was wanted if there
      are fewer mixtures than parameters.
    theta, replicates: float64 [P], and [B, P] of the bootstrap; none if the noise is unknown.
    noise: standard deviation of a run around the law, without seed offsets; None = unknown.
  """

  data: Measured
  form: str
  wanted: str
  theta: np.ndarray
  replicates: np.ndarray
  noise: float | None

  def predict(self, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    """The figure at shares [..., C]: [...], or [B, ...] of the replicates."""
    x = self.data.shares.coordinates(rows)
    theta = self.replicates if replicates else self.theta[None]
    values = self.data.predict(self.form, theta, x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
    values = values.reshape(len(theta), *x.shape[:-1])
    return values if replicates else values[0]

  def coefficients(self) -> dict[str, float]:
    """'c' and 'k' or 'b', and t_j by the names of the components; {} for the other forms.

    Only the differences between t_j are known. An exponential law of a fraction is one of its
    error: 1 - y = c + k exp(...).
    """
    if self.form not in ('exponential', 'logistic', 'linear'):
      return {}
    shares, unit = self.data.shares, abs(self.data.base_and_unit(self.form)[1])
    slope = self.theta[self.theta.size - len(shares.basis) :] @ shares.basis / shares.scale
    shift, t = float(slope @ shares.centre), shares.named(slope)
    t = {name: t[name] for name in shares.varied}
    theta = (self.theta * unit).tolist()
    if self.form == 'exponential':
      return {'c': theta[0], 'k': theta[1] * math.exp(-shift)} | t
    return {'b': theta[0] - shift * unit} | {name: value * unit for name, value in t.items()}


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
  degrees of freedom. All figures have the same draws, so the languages of a run stay correlated.

  Args:
    shares, figures: of all points, and by name.
    forms: figure -> form, where it is not exponential (a loss) or logistic (a fraction).
    resamples, seed: number of replicates and their seed.
  """
  rng = np.random.default_rng([seed, 11])
  draw = lambda n: (rng.integers(n, size=(resamples, n)), rng.choice((-1.0, 1.0), (resamples, n)))
  draws = [draw(len(shares.mixtures)), draw(len(shares.points))]
  quantile, form = rng.random(resamples), {'loss': 'exponential', 'fraction': 'logistic'}
  return {
    name: _fit(
      Measured(shares, figure), (forms or {}).get(name, form[figure.kind]), draws, quantile
    )
    for name, figure in figures.items()
    if np.isfinite(figure.values).any()
  }


def _fit(data: Measured, wanted: str, draws: list, quantile: np.ndarray) -> Law:
  directions = len(data.shares.basis)
  name = wanted if np.ptp(data.values) >= 1e-12 and directions else 'constant'
  for simpler in ('linear', 'constant'):
    if len(data.mixtures) < FORMS[name].size(directions):
      name = simpler
  (theta, bend), (base, unit) = data.fit(name), data.base_and_unit(name)
  fitted = FORMS[name].value(theta[None], data.x, data.figure.chance)[0]
  residuals = (data.values - base) / unit - fitted
  means = data.means(residuals)
  of_mixture, of_run, freedom = _variances(
    float(data.runs @ means**2), len(data.mixtures) - theta.size,
    data.within(residuals), data.freedom, data.runs.mean(),
  )  # fmt: skip
  if of_run is None:
    return Law(data, name, wanted, theta, np.zeros((0, theta.size)), None)
  from scipy import stats  # slow to import

  pools = (means, residuals - means[data.group] * (of_mixture > 0))
  of_mixtures, of_runs = (
    pool[index % len(pool)] * sign / (np.sqrt(np.mean(pool**2)) or 1.0)
    for pool, (index, sign) in zip(pools, draws)
  )
  errors = np.sqrt(of_mixture) * of_mixtures[:, data.mixture]
  errors += np.sqrt(of_run) * of_runs[:, data.keep] @ data.remove.T
  widened = np.sqrt(freedom / stats.chi2.ppf(quantile, freedom))
  errors *= np.minimum(_WIDEST, widened)[:, None]
  refit = functools.partial(
    minimise, FORMS[name], data.x, chance=data.figure.chance, starts=[theta], bend=bend
  )
  replicates = np.array([refit(fitted + one, tolerance=1e-6) for one in errors])
  noise = float(np.sqrt(of_mixture + of_run) * abs(unit))
  return Law(data, name, wanted, theta, replicates, noise)


def _variances(between, between_freedom, within, within_freedom, runs):
  """Analysis of variance of residuals between and within mixtures of so many runs each.

  Args are sums of squares and degrees of freedom. Returns the variances of what the law misses of a
  mixture and of one run (None = unknown), and degrees of freedom.
  """
  if between_freedom <= 0:
    return 0.0, within / within_freedom if within_freedom else None, within_freedom
  if within_freedom and between / between_freedom > within / within_freedom:
    of_run = within / within_freedom
    return (between / between_freedom - of_run) / runs, of_run, between_freedom
  freedom = between_freedom + within_freedom
  return 0.0, (between + within) / freedom, freedom


def held_out(data: Measured) -> dict:
  """Leaves out each mixture, with all its runs, and predicts it from the others.

  Seed offsets are those of all mixtures. For a mixture that has all seeds, this reveals nothing:
  its mean and the offsets do not depend on each other.

  Returns:
    'mixtures': [number of each measured mixture]; 'observed': [its mean without offsets];
    'noise': the error that the noise of the runs alone would give, or None;
    'forms': {form: {'error': mean absolute error, 'rank': Spearman's correlation or None,
      'predicted': [...]}, or None with fewer other mixtures than parameters}.
  """
  noise, forms = None, {}
  if data.freedom:
    variance = data.within(data.values) / data.freedom
    noise = float(np.sqrt(2 / np.pi * variance * np.mean(1 / data.runs)))
  for name, form in FORMS.items():
    if name != 'logistic' or data.figure.kind == 'fraction':
      enough = len(data.mixtures) > max(1, form.size(len(data.shares.basis)))
      forms[name] = _left_out(data, name) if enough else None
  observed = data.means(data.values).tolist()
  return {'mixtures': data.mixtures.tolist(), 'observed': observed, 'noise': noise, 'forms': forms}


def _left_out(data: Measured, form: str) -> dict:
  from scipy import stats  # slow to import

  observed, predicted, (near, _) = data.means(data.values), [], data.fit(form)
  for m in data.mixtures:
    theta, _ = data.fit(form, data.mixture != m, near)
    x = data.shares.coordinates(data.shares.mixtures[[m]])
    predicted.append(float(data.predict(form, theta[None], x)[0, 0]))
  # The mean of the others always falls as the one left out rises.
  ranked = form != 'constant' and len(observed) > 2
  ranked = ranked and min(np.ptp(predicted), np.ptp(observed)) > 1e-12
  return {
    'error': float(np.abs(predicted - observed).mean()),
    'rank': float(stats.spearmanr(predicted, observed).statistic) if ranked else None,
    'predicted': predicted,
  }
