"""Laws of how figures answer to the shares of a mixture, fitted to the points of a sweep.

    exponential   loss = c + k exp(sum_j t_j r_j),  c >= 0, k >= 0
    logistic      fraction = chance + (1 - chance) / (1 + exp(-(b + sum_j t_j r_j)))

The first is the law of Ye et al., "Data Mixing Laws" (2024, arXiv 2403.16952, section 3), a law for
each loss. It is fitted with Huber's loss, so that one run gone wrong does not bend it. c >= 0
because a loss has a floor; it also keeps few and noisy points from being explained by a straight
line that begins at minus infinity.

A fraction (accuracy, consistency, AC3) lies between chance and 1, flat near both: a language the
model cannot be asked in stays at chance whatever a small share adds, then rises, then saturates.
The logistic says so with one parameter less than the exponential, which the few points of a sweep
are glad of. The exponential law of the error 1 - y is the other reading (gains shrink from the
first example on); its held-out error stands beside it.

Both are monotone along every straight line through the shares: only a sum of laws with different t
has its best inside. So 'quadratic' is fitted too, and 'linear' and 'constant' (the mean) are the
baselines.

Laws are of the mean over the seeds that were run: what a seed does to all mixtures alike
(`mixing_forms.seed_offsets`) is taken off before anything is fitted, and its degrees of freedom are
counted. Noise is what then still differs from run to run.

Shares sum to one, so adding a constant to all t_j changes nothing but k. Here t is taken in the
directions in which the observed shares differ, and sums to zero where all of them are seen:
`Shares.basis`.

Axis letters: B fits at once (replicates x starts), N points, M mixtures, C components, D
directions, P parameters.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from crossin_jax.mixing_laws.forms import FORMS, Offsets, robust, robust_scale, seed_offsets

LEVEL = 0.95
SAME = 5e-4
# largest factor by which a small number of degrees of freedom widens a replicate's noise
_MOST = 5.0


@dataclasses.dataclass(frozen=True)
class Shares:
  """The shares of all points, and the directions in which they differ.

  Attributes:
    components: their names.
    points: float64 [N, C], each row sums to 1.
    mixture: int [N], the number of each point's mixture.
    seed: int [N] of each point, or None where they are not known: then they share nothing.
    mixtures: float64 [M, C], the distinct rows.
    centre: float64 [C], mean of the distinct rows.
    basis: float64 [D, C], orthonormal; no more than one direction less than there are components,
      or mixtures.
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
    cls,
    shares: Sequence[Mapping[str, float]],
    tolerance: float = SAME,
    seeds: Sequence[int] | None = None,
  ) -> 'Shares':
    """From a {component: weight} a point; what a point does not name it has nothing of.

    Args:
      shares: weights, scaled to sum 1 here.
      tolerance: shares that differ by less are the same: rounded tables of shares do not sum to one
        alike.
      seeds: of each point.

    Raises:
      ValueError: no points, or weights that are negative, not finite, or all zero.
    """
    if not shares:
      raise ValueError('no points: the sweep has none that is finished')
    components = tuple(dict.fromkeys(name for one in shares for name in one))
    table = np.array([[float(one.get(name, 0.0)) for name in components] for one in shares])
    for one, row in zip(shares, table):
      if not np.isfinite(row).all() or (row < 0).any() or row.sum() <= 0:
        raise ValueError(f'shares {dict(one)} must be finite, not negative, and not all zero')
    table /= table.sum(axis=1, keepdims=True)
    mixtures, index = [], []
    for row in table:
      found = [m for m, other in enumerate(mixtures) if np.abs(other - row).max() < tolerance]
      index.append(found[0] if found else len(mixtures))
      if not found:
        mixtures.append(row)
    mixtures = np.array(mixtures)
    centre = mixtures.mean(axis=0)
    _, sizes, directions = np.linalg.svd(mixtures - centre, full_matrices=False)
    extent = np.abs((mixtures - centre) @ directions.T).max(axis=0)
    basis = directions[(extent > tolerance) & (sizes > 0.005 * sizes[0])]
    places = (mixtures - centre) @ basis.T
    scale = float(np.abs(places).max(initial=0)) or 1.0
    seed = None if seeds is None else np.array(seeds, int)
    return cls(components, table, np.array(index), seed, mixtures, centre, basis, scale)

  @property
  def varied(self) -> tuple[str, ...]:
    """Components whose share is not the same in all mixtures."""
    spread = np.ptp(self.mixtures, axis=0) > SAME
    return tuple(name for name, differs in zip(self.components, spread) if differs)

  def row(self, shares: Mapping[str, float]) -> np.ndarray:
    """{component: weight} -> float64 [C] that sums to 1. ValueError names components that no
    mixture has.
    """
    if unknown := [name for name in shares if name not in self.components]:
      raise ValueError(
        f'no mixture has {", ".join(unknown)}; there are {", ".join(self.components)}'
      )
    values = np.array([float(shares.get(name, 0.0)) for name in self.components])
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
      raise ValueError(f'shares {dict(shares)} must be finite, not negative, and not all zero')
    return values / values.sum()

  def places(self, shares: np.ndarray) -> np.ndarray:
    """Shares [..., C] -> places [..., D] along the directions, about between -1 and 1."""
    return (np.asarray(shares) - self.centre) @ self.basis.T / self.scale

  def shares(self, places: np.ndarray) -> np.ndarray:
    """The inverse of `places`."""
    return self.centre + self.scale * (np.asarray(places) @ self.basis)


@dataclasses.dataclass(frozen=True)
class Figure:
  """What was measured at every point.

  Attributes:
    values: float64 [N], NaN = not measured.
    kind: 'loss' (nats per token, at least 0) or 'fraction'.
    chance: lower end of a fraction.
    items: how many a fraction is a mean over: its binomial noise then weighs the points.
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
    form: name in `mixing_forms.FORMS`.
    wanted: the form that was asked for; `form` is simpler where there are fewer mixtures than
      parameters.
    kind, chance: see `Figure`.
    theta: float64 [P].
    replicates: float64 [B, P], fits to data made by bootstrap; none where nothing tells the noise.
    unit: the figure is this times the form's value.
    noise: standard deviation of one run around the law, the offset of its seed taken off; None =
      unknown.
    seed_noise: standard deviation between the runs of a mixture, likewise; None = nothing tells it.
    offsets: what the runs of a seed share.
    freedom: degrees of freedom behind `noise`.
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
    places = self.shares.places(rows)
    theta = self.replicates if replicates else self.theta[None]
    flat = FORMS[self.form].value(
      theta, places.reshape(math.prod(rows.shape[:-1]), places.shape[-1]), self.chance
    )
    figure = _from_form(self.form, self.kind, flat, self.unit).reshape(
      len(theta), *places.shape[:-1]
    )
    return figure if replicates else figure[0]

  def interval(self, shares, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray] | None:
    """Ends of the interval of the law itself, for the seeds that were run (not of one more run, nor
    of other seeds); None where nothing tells the noise."""
    if not len(self.replicates):
      return None
    low, high = np.quantile(self.predict(shares, True), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high

  def coefficients(self) -> dict:
    """{'c', 'k' or 'b', 't': {component: t_j}} of the shares themselves, t in the observed
    directions; {} for others.

    An exponential law of a fraction is one of its error: 1 - y = c + k exp(...).
    """
    if self.form not in ('exponential', 'logistic', 'linear'):
      return {}
    first = self.theta.size - len(self.shares.basis)
    slope = self.theta[first:] @ self.shares.basis / self.shares.scale
    shift = float(slope @ self.shares.centre)
    unit = self.unit if self.form != 'logistic' else 1.0
    t = {
      name: float(value)
      for name, value in zip(self.shares.components, slope)
      if name in self.shares.varied
    }
    if self.form == 'exponential':
      c, k = self.theta[:2] * unit
      return {'c': float(c), 'k': float(k * np.exp(-shift)), 't': t}
    return {
      'b': float((self.theta[0] - shift) * unit),
      't': {name: value * unit for name, value in t.items()},
    }


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
  """Fits every figure; figures of which no point was measured are left out.

  A replicate's data are the law plus residuals drawn from all points, with random signs: those of
  mixtures (what the law misses) and those of runs, each scaled to its unbiased variance, with the
  extra width that few degrees of freedom ask for; what of the drawn noise looks like an offset of a
  seed is taken off again, as it was from the data. The draws are the same for all figures, so what
  moves the languages of a run together stays together.

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
  laws = {}
  for name, figure in figures.items():
    if np.isfinite(figure.values).any():
      laws[name] = _fit(shares, figure, (forms or {}).get(name) or default_form(figure.kind), draws)
  return laws


def held_out(shares: Shares, figure: Figure, forms: Sequence[str] | None = None) -> dict:
  """Leave-one-mixture-out: every mixture, all its seeds together, predicted from the others.

  The offsets of seeds are those of all mixtures. That lets nothing through of a mixture that was
  run with all seeds: its mean is the same whatever the offsets are, and they are the same whatever
  its mean is.

  Args:
    shares, figure: the points.
    forms: names; None = mean, linear, quadratic, exponential, and logistic for a fraction.

  Returns:
    {'observed': [mean of each measured mixture, offsets of seeds taken off], 'mixtures': [its
    number], 'noise': the error that the noise of runs alone would give or None, 'forms': {form:
      {'error': mean absolute error, 'rank': Spearman's correlation of predicted and
    observed, or None where it says nothing (the mean of the others always falls as the one left out
    rises; ties; fewer than 3), 'predicted': [...]}, or None where the others are fewer than the
    parameters}}.
  """
  forms = forms or ('constant', 'linear', 'quadratic', 'exponential') + (
    ('logistic',) if figure.kind == 'fraction' else ()
  )
  from scipy import stats  # slow to import

  keep, index, values, offsets = _runs(shares, figure)
  weights = _weights(figure, index, values, offsets.spent)
  measured = np.unique(index)
  observed = np.array([values[index == m].mean() for m in measured])
  within, freedom = _within(values, index, offsets.spent)
  noise = None
  if freedom:
    noise = float(
      np.sqrt(2 / np.pi * within / freedom * np.mean([1 / np.sum(index == m) for m in measured]))
    )
  found = {}
  for name in forms:
    form = FORMS[name]
    if len(measured) - 1 < form.size(len(shares.basis)) or len(measured) < 2:
      found[name] = None
      continue
    unit = _unit(values)
    targets = _to_form(name, figure.kind, values, unit)
    masks = (index[None] != measured[:, None]).astype(float)
    places = shares.places(shares.points[keep])
    data = np.tile(targets, (len(measured), 1))
    theta = robust(form, places, data, masks * weights, figure.chance, spent=offsets.spent)
    rows = shares.places(shares.mixtures[measured])
    predicted = np.array(
      [form.value(theta[i : i + 1], rows[i : i + 1], figure.chance)[0, 0] for i in range(len(rows))]
    )
    predicted = _from_form(name, figure.kind, predicted, unit)
    rank = None
    if (
      name != 'constant'
      and len(measured) > 2
      and np.ptp(predicted) > 1e-12
      and np.ptp(observed) > 1e-12
    ):
      rank = float(stats.spearmanr(predicted, observed).statistic)
    found[name] = {
      'error': float(np.abs(predicted - observed).mean()),
      'rank': rank,
      'predicted': predicted.tolist(),
    }
  return {
    'observed': observed.tolist(),
    'mixtures': measured.tolist(),
    'noise': noise,
    'forms': found,
  }


# ---- one figure ----


def _fit(shares: Shares, figure: Figure, wanted: str, draws: dict) -> Law:
  from scipy import stats  # slow to import

  keep, index, values, offsets = _runs(shares, figure)
  places, weights = (
    shares.places(shares.points[keep]),
    _weights(figure, index, values, offsets.spent),
  )
  measured, numbers = np.unique(index, return_inverse=True)
  directions = len(shares.basis)
  form = wanted
  if np.ptp(values) < 1e-12 or not directions:
    form = 'constant'
  for simpler in ('linear', 'constant'):
    if len(measured) < FORMS[form].size(directions):
      form = simpler
  unit = _unit(values)
  targets = _to_form(form, figure.kind, values, unit)
  theta = robust(
    FORMS[form], places, targets[None], weights[None], figure.chance, spent=offsets.spent
  )
  fitted = FORMS[form].value(theta, places, figure.chance)[0]
  residuals, size = targets - fitted, theta.shape[1]
  means = np.array([residuals[numbers == m].mean() for m in range(len(measured))])
  each = np.bincount(numbers)
  within, seeds_freedom = _within(residuals, numbers, offsets.spent)
  mixtures_freedom = len(measured) - size
  between = float(each @ means**2)
  # Variances of what the law misses of a mixture (a) and of one run (w), as in an analysis of
  # variance.
  a, w, freedom = 0.0, None, seeds_freedom
  if mixtures_freedom <= 0:
    w = within / seeds_freedom if seeds_freedom else None
  elif seeds_freedom and between / mixtures_freedom > within / seeds_freedom:
    w, freedom = within / seeds_freedom, mixtures_freedom
    a = (between / mixtures_freedom - w) / each.mean()
  else:
    freedom = mixtures_freedom + seeds_freedom
    w = (between + within) / freedom
  replicates = np.zeros((0, size))
  if w is not None:
    factor = np.minimum(_MOST, np.sqrt(freedom / stats.chi2.ppf(draws['quantile'], freedom)))
    pools = (means, residuals - means[numbers] if a else residuals)
    of_mixtures, of_points = (_unit_size(pool) for pool in pools)
    shift = of_mixtures[draws['mixture'] % len(measured)] * draws['mixture_sign']
    jitter = of_points[draws['point'] % len(residuals)] * draws['point_sign']
    data = fitted + factor * (
      np.sqrt(a) * shift[:, index] + np.sqrt(w) * jitter[:, keep] @ offsets.remove.T
    )
    weights_BN, scale = (
      np.tile(weights, (len(data), 1)),
      robust_scale(residuals, size + offsets.spent),
    )
    replicates = robust(
      FORMS[form], places, data, weights_BN, figure.chance, near=theta[0], scale=scale
    )
  return Law(
    shares=shares,
    form=form,
    wanted=wanted,
    kind=figure.kind,
    chance=figure.chance,
    theta=theta[0],
    replicates=replicates,
    unit=unit,
    noise=None if w is None else float(np.sqrt(a + w) * unit),
    seed_noise=float(np.sqrt(within / seeds_freedom) * unit) if seeds_freedom else None,
    offsets=offsets,
    freedom=int(freedom),
    mixtures=len(measured),
    points=len(values),
  )


def _runs(shares: Shares, figure: Figure) -> tuple[np.ndarray, np.ndarray, np.ndarray, Offsets]:
  """Which points were measured; of those the mixture and the value, the offset of its seed taken
  off; the offsets.
  """
  keep = np.isfinite(figure.values)
  values, index = figure.values[keep], shares.mixture[keep]
  offsets = seed_offsets(values, index, None if shares.seed is None else shares.seed[keep])
  return keep, index, offsets.remove @ values, offsets


def _weights(figure: Figure, index: np.ndarray, values: np.ndarray, spent: int) -> np.ndarray:
  """Weights [measured points] of mean 1: for fractions of a known number of items one over their
  variance.
  """
  if figure.kind != 'fraction' or not figure.items:
    return np.ones(len(values))
  smooth = (np.clip(values, 0, 1) * figure.items + 1) / (figure.items + 2)
  binomial = smooth * (1 - smooth) / figure.items
  within, freedom = _within(values, index, spent)
  seeds = max(0.0, within / freedom - binomial.mean()) if freedom else 0.0
  weights = 1 / (binomial + seeds)
  return weights / weights.mean()


def _within(values: np.ndarray, index: np.ndarray, spent: int) -> tuple[float, int]:
  """Sum of squares between the runs of a mixture, and its degrees of freedom."""
  groups = [values[index == m] for m in np.unique(index)]
  return float(sum(((g - g.mean()) ** 2).sum() for g in groups)), len(values) - len(groups) - spent


def _unit_size(pool: np.ndarray) -> np.ndarray:
  size = np.sqrt(np.mean(pool**2))
  return pool / size if size > 0 else pool


def _unit(values: np.ndarray) -> float:
  """What figures are divided by before a fit, so that nothing depends on nats or bits."""
  return float(np.std(values)) or 1.0


def _to_form(form: str, kind: str, values: np.ndarray, unit: float) -> np.ndarray:
  if form == 'logistic':
    return values
  return ((1 - values) if form == 'exponential' and kind == 'fraction' else values) / unit


def _from_form(form: str, kind: str, values: np.ndarray, unit: float) -> np.ndarray:
  if form == 'logistic':
    return values
  return 1 - unit * values if form == 'exponential' and kind == 'fraction' else unit * values
