"""The shares that laws hold for best, inside the range that was observed, and how sure that is.

The region is the convex hull of the mixtures that were run: between them laws interpolate; outside
nothing was seen. A margin widens it about its centre. Components that have the same share in every
mixture keep it.

The same laws choose the shares and judge them: of many mixtures that are equally good one always
looks better, and an interval about that one alone lies above zero far too often. So the lower end
of a gain's interval holds for all mixtures of the region at once, hence for whichever is chosen (a
simultaneous band, as Scheffe's). The upper end needs nothing of the kind.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools

import numpy as np

from crossin_jax.mixing_laws.law import LEVEL, Law, Shares

_CANDIDATES = 3000
_SLACK = 1e-7


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is to be best: a weighted mean of figures.

  Attributes:
    terms: figure -> weight.
    maximise: else it is minimised.
  """

  terms: Mapping[str, float]
  maximise: bool

  def value(
    self, laws: Mapping[str, Law], rows: np.ndarray, replicates: bool = False
  ) -> np.ndarray:
    """[...] at shares [..., C], or [B, ...]."""
    total = sum(self.terms.values())
    return sum(
      weight / total * laws[name].predict(rows, replicates) for name, weight in self.terms.items()
    )


@dataclasses.dataclass(frozen=True)
class Limit:
  """A figure that must stay on one side of a bound; bound None = what its law gives at the default
  shares.
  """

  figure: str
  at_least: bool
  bound: float | None = None


class Region:
  """Convex hull of the observed mixtures, widened by a margin, cut by bounds on single shares.

  Attributes:
    corners: float64 [V, D], places of the mixtures, widened.
    faces, offsets: a place z is inside where faces @ z <= offsets; the first `hull` of them are the
      hull's.
  """

  def __init__(
    self,
    shares: Shares,
    margin: float = 0.0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
  ):
    """Raises ValueError: bounds on components that no mixture has, or that are the wrong way round."""
    self.observed = shares
    corners = (1 + margin) * shares.places(shares.mixtures)
    self.corners = corners
    directions = corners.shape[1]
    if directions == 0:
      faces, offsets = np.zeros((0, 0)), np.zeros(0)
    elif directions == 1:
      faces, offsets = np.array([[1.0], [-1.0]]), np.array([corners.max(), -corners.min()])
    else:
      from scipy.spatial import ConvexHull  # Qhull is slow to import

      equations = ConvexHull(corners).equations
      faces, offsets = equations[:, :-1], -equations[:, -1]
    for name, (low, high) in (bounds or {}).items():
      if name not in shares.components:
        raise ValueError(
          f'bounds: no mixture has {name!r}; there are {", ".join(shares.components)}'
        )
      if not 0 <= low <= high <= 1:
        raise ValueError(
          f'bounds of {name!r}: {low} and {high} are not two shares, the lower one first'
        )
    self.hull = len(faces)
    # r = centre + scale * z @ basis, so a bound on a share is a face.
    slopes = shares.scale * shares.basis.T
    limits = {name: (0.0, 1.0) for name in shares.varied} | dict(bounds or {})
    for name, (low, high) in limits.items():
      i = shares.components.index(name)
      faces = np.concatenate([faces, [slopes[i], -slopes[i]]])
      offsets = np.concatenate([offsets, [high - shares.centre[i], shares.centre[i] - low]])
    self.faces, self.offsets = faces, offsets

  def inside(self, places: np.ndarray, slack: float = _SLACK) -> np.ndarray:
    """bool [...] of places [..., D]."""
    return (places @ self.faces.T <= self.offsets + slack).all(axis=-1)

  def candidates(self, rng: np.random.Generator) -> np.ndarray:
    """Places [K, D] all over the region, its edges and corners included."""
    corners = self.corners
    count, directions = corners.shape
    if directions == 0:
      return np.zeros((1, 0))
    if directions == 1:
      return self._kept(np.linspace(corners.min(), corners.max(), 801)[:, None])
    pairs = np.array(list(itertools.combinations(range(count), 2)))
    if len(pairs) > 100:
      pairs = pairs[rng.choice(len(pairs), 100, replace=False)]
    along = np.linspace(0, 1, 15)[:, None]
    edges = [along * corners[i] + (1 - along) * corners[j] for i, j in pairs]
    # Mixtures of a few corners at a time: of all of them at once, none would lie near a face.
    chosen = rng.random((_CANDIDATES, count)).argsort(axis=1)[:, : directions + 1]
    parts = rng.dirichlet(np.ones(chosen.shape[1]), _CANDIDATES)
    return self._kept(
      np.concatenate([corners, *edges, np.einsum('kv,kvd->kd', parts, corners[chosen])])
    )

  def _kept(self, places: np.ndarray) -> np.ndarray:
    return places[self.inside(places)]

  def at_border(self, place: np.ndarray) -> bool:
    """Whether the hull ends at a place though there are mixtures beyond: not where a share is 0 or
    at a bound that was asked.
    """
    for face, offset in zip(self.faces[: self.hull], self.offsets[: self.hull]):
      beyond = place + 0.02 * face / np.linalg.norm(face)
      if (
        face @ place >= offset - 1e-3
        and (self.faces[self.hull :] @ beyond <= self.offsets[self.hull :] + _SLACK).all()
      ):
        return True
    return False

  def line(self, direction: np.ndarray, start: np.ndarray) -> tuple[float, float]:
    """How far a place may go along a direction, backwards and forwards."""
    slopes, room = self.faces @ direction, self.offsets - self.faces @ start
    with np.errstate(divide='ignore'):
      ends = room / slopes
    low = max([e for e, s in zip(ends, slopes) if s < -1e-12], default=0.0)
    high = min([e for e, s in zip(ends, slopes) if s > 1e-12], default=0.0)
    return min(low, 0.0), max(high, 0.0)


def propose(
  laws: Mapping[str, Law],
  objective: Objective,
  default: np.ndarray,
  *,
  bounds: Mapping[str, tuple[float, float]] | None = None,
  limits: Sequence[Limit] = (),
  margin: float = 0.0,
  seed: int = 0,
) -> dict:
  """The best shares of the region, with intervals by bootstrap.

  Args:
    laws: figure -> law; all with the same `Shares`.
    objective: what is to be best.
    default: float64 [C], the shares that a gain is measured against.
    bounds: component -> (lowest, highest share), inside the region.
    limits: figures that must not get worse than a bound.
    margin: how far beyond the observed mixtures, as a part of their distance from their centre.
    seed: of candidates.

  Returns:
    {'shares': {component: share} or None where no mixture of the region keeps the limits,
    'intervals': {component: [low, high]}, 'value', 'default_value', 'gain' (positive = better),
    'gain_interval' (lower end: for all mixtures of the region at once), 'better': share of
    replicates with a gain above 0 (of these shares, as if not chosen by the data), 'optimism': by
    how much the gain is flattered because the same data chose the shares and judge them,
    'gain_over_best': predicted gain over the best mixture that was run, of those that keep the
    limits by the laws, 'best_observed': its number (both None where none does), 'edges':
      [{'component', 'end': 'low' or 'high', 'value'}] of the observed range that it touches,
      'on_border': see `Region.at_border`, 'limits': [{'figure', 'bound', 'value', 'kept': share of
      replicates}], 'infeasible': share of replicates in which no mixture keeps the limits}.
    Intervals and shares of replicates are None without replicates.
  """
  observed = next(iter(laws.values())).shares
  region = Region(observed, margin, bounds)
  sign = 1.0 if objective.maximise else -1.0
  bound = lambda limit: (
    float(laws[limit.figure].predict(default)) if limit.bound is None else limit.bound
  )
  allowed = lambda rows: np.all(
    [
      (1 if limit.at_least else -1) * (laws[limit.figure].predict(rows) - bound(limit)) >= -_SLACK for limit in limits
    ] or [np.ones(rows.shape[:-1], bool)],
    axis=0,
  )  # fmt: skip
  places = region.candidates(np.random.default_rng([seed, 13]))
  rows = observed.shares(places)
  fits = allowed(rows) if len(rows) else np.zeros(0, bool)
  measured = sign * objective.value(laws, observed.mixtures)
  keeps = allowed(observed.mixtures)
  best = int(np.argmax(np.where(keeps, measured, -np.inf))) if keeps.any() else None
  empty = {
    'shares': None,
    'best_observed': best,
    'limits': [_limit(laws, limit, bound(limit), None) for limit in limits],
  }
  if not fits.any():
    return empty
  values = np.where(fits, sign * objective.value(laws, rows), -np.inf)
  place = _refined(laws, objective, limits, bound, region, places[np.argsort(-values)[:4]], sign)
  if place is None or values.max() > sign * objective.value(laws, observed.shares(place)):
    place = places[values.argmax()]
  row = np.maximum(0.0, observed.shares(place))
  gain = sign * (objective.value(laws, row) - objective.value(laws, default))
  varied = [observed.components.index(name) for name in observed.varied]
  found = empty | {
    'shares': dict(zip(observed.components, row.tolist())),
    'value': float(objective.value(laws, row)),
    'default_value': float(objective.value(laws, default)),
    'gain': float(gain),
    'gain_over_best': None
    if best is None
    else float(sign * objective.value(laws, row) - measured[best]),
    'on_border': region.at_border(place),
    'edges': [],
    'limits': [_limit(laws, limit, bound(limit), row) for limit in limits],
  }
  for i in varied:
    column = observed.mixtures[:, i]
    for end, value in (('low', column.min()), ('high', column.max())):
      if (
        abs(row[i] - value) <= 0.01 * np.ptp(column)
        or (row[i] - value) * (1 if end == 'high' else -1) > 0
      ):
        found['edges'].append(
          {'component': observed.components[i], 'end': end, 'value': float(value)}
        )
  return found | _uncertainty(
    laws, objective, limits, observed, places, place, row, default, gain, sign
  )


def _limit(laws, limit: Limit, bound: float, row) -> dict:
  value = None if row is None else float(laws[limit.figure].predict(row))
  return {
    'figure': limit.figure,
    'at_least': limit.at_least,
    'bound': bound,
    'value': value,
    'kept': None,
  }


def _refined(
  laws, objective, limits, bound, region: Region, starts: np.ndarray, sign: float
) -> np.ndarray | None:
  """SLSQP from the best candidates; None where it finds no place that keeps everything."""
  if not starts.shape[1]:
    return None
  from scipy.optimize import minimize

  rows = region.observed.shares
  # Scaled, since a tolerance of 1e-9 is much or little by the unit.
  unit = np.ptp(objective.value(laws, rows(region.corners))) or 1.0
  constraints = [
    {
      'type': 'ineq',
      'fun': lambda z: region.offsets - region.faces @ z,
      'jac': lambda z: -region.faces,
    }
  ]
  for limit in limits:
    way, end = (1 if limit.at_least else -1), bound(limit)
    constraints.append(
      {
        'type': 'ineq',
        'fun': lambda z, l=limit, w=way, e=end: w * (laws[l.figure].predict(rows(z)) - e),
      }
    )
  best = None
  for start in starts:
    result = minimize(
      lambda z: -sign * objective.value(laws, rows(z)) / unit, start, method='SLSQP',
      constraints=constraints,
      options={'ftol': 1e-10, 'maxiter': 200},
    )  # fmt: skip
    kept = all(
      (1 if limit.at_least else -1) * (laws[limit.figure].predict(rows(result.x)) - bound(limit))
      >= -_SLACK
      for limit in limits
    )
    if (
      np.isfinite(result.fun)
      and kept
      and region.inside(result.x)
      and (best is None or result.fun < best[0])
    ):
      best = result.fun, result.x
  return None if best is None else best[1]


def _band(errors: np.ndarray, level: float) -> float:
  """Room below the first of many estimates, of a band that at this level is nowhere below the
  truth.

  Its width is everywhere the same number of standard deviations: a place that is well known is not
  blurred by one that is not.

  Args:
    errors: float64 [B, K] of the estimates, by bootstrap.
    level: how often the whole band holds.
  """
  size = np.sqrt(np.mean(errors**2, axis=0))
  known = size > 1e-9 * size.max()  # the default itself has no gain, hence no error
  if not known[0]:
    return 0.0
  return float(np.quantile((errors[:, known] / size[known]).max(axis=1), level) * size[0])


def _uncertainty(
  laws, objective, limits, observed, places, place, row, default, gain, sign
) -> dict:
  used = [laws[name] for name in [*objective.terms, *[limit.figure for limit in limits]]]
  unknown = {
    'intervals': None,
    'gain_interval': None,
    'better': None,
    'optimism': None,
    'infeasible': None,
  }
  if not all(len(law.replicates) for law in used):
    return unknown
  rows = observed.shares(np.concatenate([place[None], places]))
  values = sign * objective.value(laws, rows, True)  # [B, K]
  at_default = sign * objective.value(laws, default, True)
  fits, kept = np.ones(values.shape, bool), []
  for limit in limits:
    law, way = laws[limit.figure], 1 if limit.at_least else -1
    ends = law.predict(default, True)[:, None] if limit.bound is None else limit.bound
    one = way * (law.predict(rows, True) - ends) >= -_SLACK
    kept.append(float(one[:, 0].mean()))
    fits &= one
  possible = fits.any(axis=1)
  tail = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
  gains = values[:, 0] - at_default
  low, high = np.quantile(gains, tail)
  fitted = sign * (objective.value(laws, rows) - objective.value(laws, default))
  low = min(low, gain - _band(values - at_default[:, None] - fitted, tail[1]))
  found = unknown | {
    'gain_interval': [float(low), float(high)],
    'better': float((gains > 0).mean() + 0.5 * (gains == 0).mean()),
    'infeasible': float(1 - possible.mean()),
    'limits': [
      _limit(laws, limit, float(laws[limit.figure].predict(default)) if limit.bound is None else limit.bound, row) | {'kept': k}
      for limit, k in zip(limits, kept)
    ],
  }  # fmt: skip
  if not possible.any():
    return found
  chosen = np.where(fits, values, -np.inf)[possible].argmax(axis=1)
  low, high = np.quantile(rows[chosen], tail, axis=0)
  claimed = values[possible, chosen] - at_default[possible]
  real = sign * (objective.value(laws, rows[chosen]) - objective.value(laws, default))
  return found | {
    'intervals': {
      name: [float(max(0, l)), float(h)] for name, l, h in zip(observed.components, low, high)
    },
    'optimism': float(np.mean(claimed - real)),
  }
