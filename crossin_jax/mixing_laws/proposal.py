"""The shares that the laws predict to be best, inside the observed range, with intervals.

`docs/design/mixing_laws.md#proposal` has the region and the simultaneous band of the gain.

Axis letters: B replicates, K candidates, M mixtures, C components, D directions.
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
  """A weighted mean of figures.

  Attributes:
    terms: figure -> weight.
    maximise: maximise it; otherwise minimise it.
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
  """A bound on a figure; None = what its law gives at the default shares."""

  figure: str
  at_least: bool
  bound: float | None = None


class Region:
  """Convex hull of the observed mixtures, widened by a margin, cut by bounds on single shares.

  Attributes:
    corners: float64 [M, D], coordinates of the mixtures, widened.
    faces, offsets: z is inside where faces @ z <= offsets; the first `hull` faces are the hull's.
  """

  def __init__(
    self,
    shares: Shares,
    margin: float = 0.0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
  ):
    """Raises ValueError for bounds on unknown components, or in the wrong order."""
    self.observed = shares
    self.corners = corners = (1 + margin) * shares.coordinates(shares.mixtures)
    if corners.shape[1] < 2:
      faces = np.array([[1.0], [-1.0]]) if corners.shape[1] else np.zeros((0, 0))
      offsets = np.max(corners @ faces.T, axis=0)
    else:
      from scipy.spatial import ConvexHull  # slow to import

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
    for name, (low, high) in ({n: (0.0, 1.0) for n in shares.varied} | dict(bounds or {})).items():
      i = shares.components.index(name)
      slope = shares.scale * shares.basis[:, i]
      faces = np.concatenate([faces, [slope, -slope]])
      offsets = np.concatenate([offsets, [high - shares.centre[i], shares.centre[i] - low]])
    self.faces, self.offsets = faces, offsets

  def inside(self, coordinates: np.ndarray, slack: float = _SLACK) -> np.ndarray:
    """bool [...] of coordinates [..., D]."""
    return (coordinates @ self.faces.T <= self.offsets + slack).all(axis=-1)

  def candidates(self, rng: np.random.Generator) -> np.ndarray:
    """Coordinates [K, D] all over the region, including its edges and corners."""
    corners = self.corners
    count, directions = corners.shape
    if directions == 0:
      return np.zeros((1, 0))
    if directions == 1:
      points = np.linspace(corners.min(), corners.max(), 801)[:, None]
      return points[self.inside(points)]
    pairs = np.array(list(itertools.combinations(range(count), 2)))
    if len(pairs) > 100:
      pairs = pairs[rng.choice(len(pairs), 100, replace=False)]
    along = np.linspace(0, 1, 15)[:, None]
    edges = [along * corners[i] + (1 - along) * corners[j] for i, j in pairs]
    # Each mixes only a few corners: a mixture of all corners is never near a face.
    chosen = rng.random((_CANDIDATES, count)).argsort(axis=1)[:, : directions + 1]
    parts = rng.dirichlet(np.ones(chosen.shape[1]), _CANDIDATES)
    inner = np.einsum('kv,kvd->kd', parts, corners[chosen])
    points = np.concatenate([corners, *edges, inner])
    return points[self.inside(points)]

  def at_border(self, z: np.ndarray) -> bool:
    """Whether z is at a face of the hull that neither zero shares nor requested bounds explain."""
    for face, offset in zip(self.faces[: self.hull], self.offsets[: self.hull]):
      beyond = z + 0.02 * face / np.linalg.norm(face)
      free = self.faces[self.hull :] @ beyond <= self.offsets[self.hull :] + _SLACK
      if face @ z >= offset - 1e-3 and free.all():
        return True
    return False

  def line(self, direction: np.ndarray, start: np.ndarray) -> tuple[float, float]:
    """How far the region extends from `start` along a direction, backwards and forwards."""
    slopes, room = self.faces @ direction, self.offsets - self.faces @ start
    with np.errstate(divide='ignore'):
      ends = room / slopes
    low = max([e for e, s in zip(ends, slopes) if s < -1e-12], default=0.0)
    high = min([e for e, s in zip(ends, slopes) if s > 1e-12], default=0.0)
    return min(low, 0.0), max(high, 0.0)


@dataclasses.dataclass(frozen=True)
class _Problem:
  """Laws, the objective with the sign that makes it a maximum, and limits."""

  laws: Mapping[str, Law]
  objective: Objective
  default: np.ndarray
  limits: Sequence[Limit]

  def value(self, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    return (1 if self.objective.maximise else -1) * self.objective.value(
      self.laws, rows, replicates
    )

  def gain(self, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    default = self.value(self.default, replicates)
    return self.value(rows, replicates) - (default[:, None] if replicates else default)

  def slack(self, limit: Limit, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    """How far a figure is on the right side of its limit."""
    law, bound = self.laws[limit.figure], limit.bound
    if bound is None:
      bound = law.predict(self.default, replicates)
      bound = bound[:, None] if replicates else bound
    return (1 if limit.at_least else -1) * (law.predict(rows, replicates) - bound)

  def keeps(self, rows: np.ndarray) -> np.ndarray:
    """bool [...]: whether shares [..., C] keep all limits."""
    kept = [self.slack(limit, rows) >= -_SLACK for limit in self.limits]
    return np.all([np.ones(rows.shape[:-1], bool), *kept], axis=0)

  def describe(self, limit: Limit, row: np.ndarray | None) -> dict:
    law = self.laws[limit.figure]
    return {
      'figure': limit.figure,
      'at_least': limit.at_least,
      'bound': float(law.predict(self.default)) if limit.bound is None else limit.bound,
      'value': None if row is None else float(law.predict(row)),
      'kept': None,
    }


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
    objective: what to optimise.
    default: float64 [C], the shares that a gain is measured against.
    bounds: component -> (lowest, highest share).
    limits: on figures.
    margin: widens the hull by this part of the distance from its centre.
    seed: of the candidates.

  Returns:
    'shares': {component: share}, None if no mixture of the region keeps the limits;
    'intervals': {component: [low, high]};
    'value', 'default_value', 'gain' (positive = better);
    'gain_interval': its lower end holds for all mixtures of the region at once;
    'better': part of the replicates in which these shares gain;
    'optimism': overestimation of the gain, since the same data choose and judge the shares;
    'best_observed', 'gain_over_best': number of the best mixture by the laws, of those that keep
      the limits, and the predicted gain over it, or None;
    'edges': [{'component', 'end': 'low' or 'high', 'value'}] of the observed range it touches;
    'on_border': see `Region.at_border`;
    'limits': [{'figure', 'at_least', 'bound', 'value', 'kept': part of the replicates}];
    'infeasible': part of the replicates in which no mixture keeps the limits.
    Intervals and parts of the replicates are None without replicates.
  """
  observed = next(iter(laws.values())).shares
  problem = _Problem(laws, objective, default, limits)
  region = Region(observed, margin, bounds)
  points = region.candidates(np.random.default_rng([seed, 13]))
  rows = observed.shares(points)
  feasible = problem.keeps(rows)
  measured, kept = problem.value(observed.mixtures), problem.keeps(observed.mixtures)
  best = int(np.argmax(np.where(kept, measured, -np.inf))) if kept.any() else None
  if not feasible.any():
    described = [problem.describe(limit, None) for limit in limits]
    return {'shares': None, 'best_observed': best, 'limits': described}
  values = np.where(feasible, problem.value(rows), -np.inf)
  z = _refined(problem, region, points[np.argsort(-values)[:4]])
  if z is None or values.max() > problem.value(observed.shares(z)):
    z = points[values.argmax()]
  row = np.maximum(0.0, observed.shares(z))
  return {
    'shares': dict(zip(observed.components, row.tolist())),
    'best_observed': best,
    'limits': [problem.describe(limit, row) for limit in limits],
    'value': float(objective.value(laws, row)),
    'default_value': float(objective.value(laws, default)),
    'gain': float(problem.gain(row)),
    'gain_over_best': None if best is None else float(problem.value(row) - measured[best]),
    'on_border': region.at_border(z),
    'edges': _edges(observed, row),
  } | _uncertainty(problem, observed, np.concatenate([z[None], points]), row)


def _edges(observed: Shares, row: np.ndarray) -> list[dict]:
  edges = []
  for name in observed.varied:
    i = observed.components.index(name)
    column = observed.mixtures[:, i]
    for end, value, sign in (('low', column.min(), -1), ('high', column.max(), 1)):
      if sign * (row[i] - value) >= -0.01 * np.ptp(column):
        edges.append({'component': name, 'end': end, 'value': float(value)})
  return edges


def _refined(problem: _Problem, region: Region, starts: np.ndarray) -> np.ndarray | None:
  """SLSQP from the best candidates; None if no result is inside the region and the limits."""
  if not starts.shape[1]:
    return None
  from scipy.optimize import minimize  # slow to import

  rows = region.observed.shares
  # Scaled, since the tolerance is absolute.
  unit = np.ptp(problem.value(rows(region.corners))) or 1.0
  faces = {'fun': lambda z: region.offsets - region.faces @ z, 'jac': lambda z: -region.faces}
  constraints = [{'type': 'ineq'} | faces]
  for limit in problem.limits:
    constraints.append({'type': 'ineq', 'fun': lambda z, l=limit: problem.slack(l, rows(z))})
  results = [
    minimize(
      lambda z: -problem.value(rows(z)) / unit, start, method='SLSQP', constraints=constraints,
      options={'ftol': 1e-10, 'maxiter': 200},
    )
    for start in starts
  ]  # fmt: skip
  valid = [
    result
    for result in results
    if np.isfinite(result.fun) and problem.keeps(rows(result.x)) and region.inside(result.x)
  ]
  return min(valid, key=lambda result: result.fun).x if valid else None


def _band(errors: np.ndarray, level: float) -> float:
  """Lower half-width, at the first estimate, of a band that covers all estimates at once.

  The band is everywhere the same number of standard deviations wide.

  Args:
    errors: float64 [B, K] of the estimates, by bootstrap.
    level: how often the complete band holds.
  """
  size = np.sqrt(np.mean(errors**2, axis=0))
  known = size > 1e-9 * size.max()  # the gain of the default itself has no error
  if not known[0]:
    return 0.0
  return float(np.quantile((errors[:, known] / size[known]).max(axis=1), level) * size[0])


def _uncertainty(problem: _Problem, observed: Shares, points: np.ndarray, row: np.ndarray) -> dict:
  """Intervals of the proposal (the first of `points`) among all candidates."""
  report = dict.fromkeys(('intervals', 'gain_interval', 'better', 'optimism', 'infeasible'))
  used = [*problem.objective.terms, *[limit.figure for limit in problem.limits]]
  if not all(len(problem.laws[name].replicates) for name in used):
    return report
  rows = observed.shares(points)
  gains = problem.gain(rows, True)  # [B, K]
  feasible, limits = np.ones(gains.shape, bool), []
  for limit in problem.limits:
    kept = problem.slack(limit, rows, True) >= -_SLACK
    limits.append(problem.describe(limit, row) | {'kept': float(kept[:, 0].mean())})
    feasible &= kept
  possible = feasible.any(axis=1)
  tail = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
  low, high = np.quantile(gains[:, 0], tail)
  fitted = problem.gain(rows)
  low = min(low, float(problem.gain(row)) - _band(gains - fitted, tail[1]))
  report |= {
    'gain_interval': [float(low), float(high)],
    'better': float((gains[:, 0] > 0).mean() + 0.5 * (gains[:, 0] == 0).mean()),
    'infeasible': float(1 - possible.mean()),
    'limits': limits,
  }
  if possible.any():
    chosen = np.where(feasible, gains, -np.inf)[possible].argmax(axis=1)
    low, high = np.quantile(rows[chosen], tail, axis=0)
    ends = zip(observed.components, low, high)
    report['intervals'] = {name: [float(max(0, l)), float(h)] for name, l, h in ends}
    report['optimism'] = float(np.mean(gains[possible, chosen] - fitted[chosen]))
  return report
