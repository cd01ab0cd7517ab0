"""Laws of how figures depend on the shares of a mixture, fitted to the points of a sweep.

`docs/design/mixing_laws.md` has the reasons.

Axis letters: B replicates, N points, M mixtures, C components, D directions, P parameters.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools
import math

import numpy as np
from scipy import stats

from crossin_jax.mixing_laws.forms import forms_of, minimise, robust

LEVEL = 0.95
SAME = 5e-4  # shares that differ by less are the same: tables of shares are rounded
_WIDEST = 5.0  # limit of the factor by which few degrees of freedom widen a replicate's noise


class Shares:
  """The mixtures of all points, and the directions in which their shares differ.

  Attributes:
    components: their names.
    mixture, seed: int [N], the number of each point's mixture, and its seed.
    mixtures: float64 [M, C], shares of the distinct mixtures; each row sums to 1.
    centre: float64 [C], mean of the mixtures.
    basis: float64 [D, C], orthonormal.
    scale: the largest distance from the centre along a direction.
  """

  def __init__(self, shares: Sequence[Mapping[str, float]], seeds: Sequence[int] | None = None):
    """From {component: weight} of each point; a component that a point omits has weight 0.

    Args:
      shares: of each point.
      seeds: of each point; None = unknown, as if all were the same.

    Raises:
      ValueError: no points, or weights that are negative, not finite, or all zero.
    """
    if not shares:
      raise ValueError('no points: the sweep has none that is finished')
    self.components = tuple(dict.fromkeys(name for one in shares for name in one))
    points = np.array([_normalised(one, self.components) for one in shares])
    same = np.abs(points[:, None] - points).max(axis=2) < SAME  # [N, N]
    first, self.mixture = np.unique(same.argmax(axis=1), return_inverse=True)
    self.seed = np.zeros(len(shares), int) if seeds is None else np.array(seeds, int)
    self.mixtures = points[first]
    self.centre = self.mixtures.mean(axis=0)
    centred = self.mixtures - self.centre
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    extent = np.abs(centred @ directions.T).max(axis=0)
    self.basis = directions[(extent > SAME) & (sizes > 0.005 * sizes[0])]
    self.scale = float(np.abs(centred @ self.basis.T).max(initial=0)) or 1.0

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
    offsets, remove, spent: see `seed_offsets`, and their degrees of freedom.
    freedom: degrees of freedom between the runs of the mixtures.
    forms: those that the figure can have, by their names.
  """

  def __init__(self, shares: Shares, figure: Figure):
    self.shares, self.figure, self.keep = shares, figure, np.isfinite(figure.values)
    self.mixture = shares.mixture[self.keep]
    self.x = shares.coordinates(shares.mixtures[self.mixture])
    self.mixtures, self.group, self.runs = np.unique(
      self.mixture, return_inverse=True, return_counts=True
    )
    values, seed = figure.values[self.keep], shares.seed[self.keep]
    self.offsets, self.remove = seed_offsets(values, self.group, seed)
    self.values = self.remove @ values
    self.spent = max(0, len(self.offsets) - 1)
    self.freedom = len(values) - len(self.mixtures) - self.spent
    self.forms = forms_of(figure.kind, figure.chance)

  def means(self, values: np.ndarray) -> np.ndarray:
    """Of values [N] by mixture."""
    return np.bincount(self.group, values) / self.runs

  def within(self, values: np.ndarray) -> float:
    """Sum of squares of values [N] between the runs of a mixture."""
    return float(np.sum((values - self.means(values)[self.group]) ** 2))

  def fit(self, form: str, rest: np.ndarray | slice = slice(None), starts=None):
    """`robust` of the points `rest`."""
    return robust(self.forms[form], self.x[rest], self.values[rest], self.spent, starts)


def seed_offsets(
  values: np.ndarray, mixture: np.ndarray, seed: np.ndarray
) -> tuple[dict[int, float], np.ndarray]:
  """Fits value = mixture + offset of the seed + noise; offsets sum to zero.

  A seed has its own order of examples, or its own world and questions. Every mixture has a
  parameter here, so neither the effect of the shares nor missing runs bias the offsets.

  Args:
    values, mixture, seed: [N], of each point.

  Returns:
    ({seed: offset}, float64 [N, N] that removes them from values [N]); ({}, identity) for a single
    seed or mixture, or if seeds have too few mixtures in common.
  """
  seeds, mixtures, same = np.unique(seed), np.unique(mixture), np.eye(len(values))
  is_mixture, is_seed = mixture[:, None] == mixtures, (seed[:, None] == seeds).astype(float)
  columns = np.concatenate([is_mixture, is_seed], axis=1)
  effects, _, rank, _ = np.linalg.lstsq(columns, same, rcond=None)
  # One rank is lost in any case: adding to all mixtures what is taken from all seeds.
  if min(len(seeds), len(mixtures)) < 2 or rank < len(seeds) + len(mixtures) - 1:
    return {}, same
  solve = effects[len(mixtures) :] - effects[len(mixtures) :].mean(axis=0)
  return dict(zip(seeds.tolist(), (solve @ values).tolist())), same - is_seed @ solve


class Law:
  """A form fitted to a figure.

  Attributes:
    data: what it was fitted to.
    form, wanted: names in `data.forms`; `form` is simpler than the one that was wanted if there
      are fewer mixtures than parameters.
    theta, replicates: float64 [P], and [B, P] of the bootstrap; none if the noise is unknown or
      there are no draws.
    noise: standard deviation of a run around the law, without seed offsets; None = unknown.
  """

  def __init__(self, data: Measured, wanted: str, draws: tuple | None):
    """Fits `wanted`; `draws` are those of `fit_laws`, None = no bootstrap."""
    directions = len(data.shares.basis)
    name = wanted if np.ptp(data.values) >= 1e-12 and directions else 'constant'
    for simpler in ('linear', 'constant'):
      if len(data.mixtures) < data.forms[name].size(directions):
        name = simpler
    self.data, self.form, self.wanted = data, name, wanted
    self.theta, bend = data.fit(name)
    fitted = data.forms[name].value(self.theta[None], data.x)[0]
    residuals = data.values - fitted
    of_mixture, of_run, freedom = _variances(data, residuals, self.theta.size)
    self.noise = float(np.sqrt(of_mixture + of_run)) if freedom else None
    self.replicates = np.zeros((0, self.theta.size))
    if draws and freedom:
      errors = _draw(data, residuals, (of_mixture, of_run), freedom, draws)
      refit = functools.partial(minimise, data.forms[name], data.x, starts=[self.theta], bend=bend)
      self.replicates = np.array([refit(fitted + one, tolerance=1e-6) for one in errors])

  def predict(self, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    """The figure at shares [..., C]: [...], or [B, ...] of the replicates."""
    theta = self.replicates if replicates else self.theta[None]
    values = self.data.forms[self.form].value(theta, self.data.shares.coordinates(rows))
    return values if replicates else values[0]

  def coefficients(self) -> dict[str, float]:
    """'c' and 'k' or 'b', and t_j by the names of the components; {} for the other forms.

    Only the differences between t_j are known. An exponential law of a fraction is one of its
    error: 1 - y = c + k exp(...).
    """
    if self.form not in ('exponential', 'logistic', 'linear'):
      return {}
    shares = self.data.shares
    slope = self.theta[-len(shares.basis) :] @ shares.basis / shares.scale
    shift, t = float(slope @ shares.centre), shares.named(slope)
    t = {name: t[name] for name in shares.varied}
    first, second, *_ = self.theta.tolist()
    if self.form == 'exponential':
      return {'c': first, 'k': math.exp(second - shift)} | t
    return {'b': first - shift} | t


def fit_laws(
  shares: Shares,
  figures: Mapping[str, Figure],
  *,
  form: str | None = None,
  resampled: Collection[str] | None = None,
  resamples: int = 400,
  seed: int = 0,
) -> dict[str, Law]:
  """Fits a law to every figure.

  The data of a replicate are the law plus residuals drawn with random signs: those of mixtures
  (what the law misses) and those of runs, each scaled to its unbiased variance and widened for few
  degrees of freedom. All figures have the same draws, so the languages of a run stay correlated.

  Args:
    shares, figures: of all points, and by name; each was measured at some point.
    form: of the figures that can have it, in place of exponential (a loss), logistic (a fraction).
    resampled: figures whose laws get replicates, which take most of the time; None = all.
    resamples, seed: number of replicates and their seed.
  """
  rng = np.random.default_rng([seed, 11])
  draw = lambda n: (rng.integers(n, size=(resamples, n)), rng.choice((-1.0, 1.0), (resamples, n)))
  draws = draw(len(shares.mixtures)), draw(len(shares.mixture)), rng.random(resamples)
  default, laws = {'loss': 'exponential', 'fraction': 'logistic'}, {}
  for name, figure in figures.items():
    data = Measured(shares, figure)
    wanted = form if form in data.forms else default[figure.kind]
    laws[name] = Law(data, wanted, draws if resampled is None or name in resampled else None)
  return laws


def _variances(data: Measured, residuals: np.ndarray, parameters: int) -> tuple:
  """Analysis of variance of residuals [N] between and within mixtures.

  Returns the variances of what the law misses of a mixture and of one run, and their degrees of
  freedom, 0 if the variances are unknown.
  """
  between, within = data.runs @ data.means(residuals) ** 2, data.within(residuals)
  freedom = len(data.mixtures) - parameters
  if freedom and data.freedom and between / freedom > within / data.freedom:
    of_run = within / data.freedom
    return (between / freedom - of_run) / data.runs.mean(), of_run, freedom
  freedom += data.freedom
  return 0.0, (between + within) / max(1, freedom), freedom


def _draw(data: Measured, residuals, variances, freedom: int, draws: tuple) -> np.ndarray:
  """Errors of the runs [B, N]: see `fit_laws`; variances and freedom are those of `_variances`."""
  means, (*signed, quantile) = data.means(residuals), draws
  pools = (means, residuals - means[data.group] * (variances[0] > 0))
  of_mixtures, of_runs = (
    np.sqrt(variance) * pool[index % len(pool)] * sign / (np.sqrt(np.mean(pool**2)) or 1.0)
    for variance, pool, (index, sign) in zip(variances, pools, signed)
  )
  widened = np.minimum(_WIDEST, np.sqrt(freedom / stats.chi2.ppf(quantile, freedom)))
  errors = of_mixtures[:, data.mixture] + of_runs[:, data.keep] @ data.remove.T
  return errors * widened[:, None]


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
  noise, observed, forms = None, data.means(data.values), {}
  if data.freedom:
    variance = data.within(data.values) / data.freedom
    noise = float(np.sqrt(2 / np.pi * variance * np.mean(1 / data.runs)))
  for name, form in data.forms.items():
    enough = len(data.mixtures) > max(1, form.size(len(data.shares.basis)))
    forms[name] = _left_out(data, name, observed) if enough else None
  return {
    'mixtures': data.mixtures.tolist(), 'observed': observed.tolist(), 'noise': noise,
    'forms': forms,
  }  # fmt: skip


def _left_out(data: Measured, form: str, observed: np.ndarray) -> dict:
  predicted, (near, _) = [], data.fit(form)
  for m in data.mixtures:
    theta, _ = data.fit(form, data.mixture != m, [near])
    x = data.shares.coordinates(data.shares.mixtures[m])
    predicted.append(float(data.forms[form].value(theta[None], x)[0]))
  # The mean of the others always falls as the one left out rises.
  ranked = form != 'constant' and len(observed) > 2
  ranked = ranked and min(np.ptp(predicted), np.ptp(observed)) > 1e-12
  return {
    'error': float(np.abs(predicted - observed).mean()),
    'rank': float(stats.spearmanr(predicted, observed).statistic) if ranked else None,
    'predicted': predicted,
  }
