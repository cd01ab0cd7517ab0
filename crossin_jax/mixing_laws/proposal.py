"""The shares that the laws predict to be best, inside the observed range, with intervals.

`docs/design/mixing_laws.md#proposal` has the region and the simultaneous band of the gain.

Axis letters: B replicates, K candidates, M mixtures, C components.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from crossin_jax.mixing_laws.law import LEVEL, SAME, Law, Shares

_CANDIDATES = 4000
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

  def value(self, laws: Mapping[str, Law], rows: np.ndarray, replicates: bool = False):
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
    corners: float64 [M, C].
    low, high: float64 [C].

  Raises ValueError for bounds on unknown components, or in the wrong order.
  """

  def __init__(self, shares: Shares, margin: float = 0.0, bounds: Mapping | None = None):
    self.corners = shares.centre + (1 + margin) * (shares.mixtures - shares.centre)
    self.low, self.high = np.zeros_like(shares.centre), np.ones_like(shares.centre)
    for name, (low, high) in (bounds or {}).items():
      if name not in shares.components:
        raise ValueError(
          f'bounds: no mixture has {name!r}; there are {", ".join(shares.components)}'
        )
      if not 0 <= low <= high <= 1:
        raise ValueError(
          f'bounds of {name!r}: {low} and {high} are not two shares, the lower one first'
        )
      i = shares.components.index(name)
      self.low[i], self.high[i] = low, high

  def within_bounds(self, rows: np.ndarray) -> np.ndarray:
    """bool [...] of shares [..., C]."""
    return ((rows >= self.low - _SLACK) & (rows <= self.high + _SLACK)).all(axis=-1)

  def inside(self, row: np.ndarray) -> bool:
    """Whether shares [C] are a mixture of the corners and within the bounds."""
    from scipy.optimize import nnls  # slow to import

    columns = np.concatenate([self.corners.T, np.ones((1, len(self.corners)))])
    error = nnls(columns, np.append(row, 1.0))[1]
    return bool(error < 2 * SAME and self.within_bounds(row))

  def candidates(self, rng: np.random.Generator) -> np.ndarray:
    """Parts [K, M] of the corners, all over the hull: the corners, and mixtures of two to five."""
    shape = (_CANDIDATES, len(self.corners))
    # A mixture of all corners is never near a face, where the best often is.
    few = rng.random(shape).argsort(axis=1) < rng.integers(2, 6, (_CANDIDATES, 1))
    parts = rng.exponential(size=shape) * few
    return np.concatenate([np.eye(shape[1]), parts / parts.sum(axis=1, keepdims=True)])


@dataclasses.dataclass(frozen=True)
class _Problem:
  """What is to be optimised, at shares [K, C]: [K], or [B, K] of the replicates."""

  laws: Mapping[str, Law]
  objective: Objective
  default: np.ndarray
  limits: Sequence[Limit]

  def gain(self, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    value = lambda rows: self.objective.value(self.laws, rows, replicates)
    gain = value(rows) - value(self.default[None])
    return gain if self.objective.maximise else -gain

  def slack(self, limit: Limit, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    """How far a figure is on the right side of its limit."""
    law, bound = self.laws[limit.figure], limit.bound
    bound = law.predict(self.default[None], replicates) if bound is None else bound
    return (1 if limit.at_least else -1) * (law.predict(rows, replicates) - bound)

  def feasible_gain(self, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    """The gain, or -inf where a limit is not kept."""
    kept = [self.slack(limit, rows, replicates) >= -_SLACK for limit in self.limits]
    return np.where(np.all(kept, axis=0), self.gain(rows, replicates), -np.inf)


def propose(
  laws: Mapping[str, Law],
  objective: Objective,
  default: np.ndarray,
  region: Region,
  limits: Sequence[Limit] = (),
) -> dict:
  """The best shares of the region, with intervals by bootstrap.

  Args:
    laws: figure -> law; all with the same `Shares`.
    objective: what to optimise.
    default: float64 [C], the shares that a gain is measured against.
    region: where to look.
    limits: on figures.

  Returns:
    'shares': {component: share}, None if no mixture of the region keeps the limits;
    'intervals': {component: [low, high]};
    'value', 'default_value', 'gain' (positive = better);
    'gain_interval': its lower end holds for all mixtures of the region at once;
    'gain_over_best': predicted gain over the best mixture that was run, by the laws, of those that
      keep the limits; None if there is none;
    'limits': [{'figure', 'at_least', 'bound', 'value', 'kept': part of the replicates}].
    Intervals and 'kept' are None without replicates.
  """
  observed = next(iter(laws.values())).data.shares
  problem = _Problem(laws, objective, default, limits)
  parts = region.candidates(np.random.default_rng(13))
  row, gain = _best(problem, region, parts)
  measured = problem.feasible_gain(observed.mixtures).max()
  value = lambda limit, row: float(laws[limit.figure].predict(row))
  described = []
  for limit in limits:
    bound = value(limit, default) if limit.bound is None else limit.bound
    now = {'bound': bound, 'value': value(limit, row), 'kept': None}
    described.append(dataclasses.asdict(limit) | now)
  result = {'shares': None, 'limits': described}
  if not np.isfinite(gain):
    return result
  result |= {
    'shares': observed.named(row),
    'value': float(objective.value(laws, row)),
    'default_value': float(objective.value(laws, default)),
    'gain': float(gain),
    'gain_over_best': float(gain - measured) if np.isfinite(measured) else None,
    'gain_interval': None,
    'intervals': None,
  }
  if all(len(laws[name].replicates) for name in (*objective.terms, *(l.figure for l in limits))):
    _add_intervals(result, problem, region, np.concatenate([row[None], parts @ region.corners]))
  return result


def _best(problem: _Problem, region: Region, parts: np.ndarray) -> tuple[np.ndarray, float]:
  """The best shares [C] and their gain, -inf if none is feasible; parts [K, M] of the corners."""
  from scipy.optimize import minimize  # slow to import

  def gains(parts):
    rows = parts @ region.corners
    return np.where(region.within_bounds(rows), problem.feasible_gain(rows), -np.inf)

  values = gains(parts)
  if np.isfinite(values.max()):
    row = lambda part: part[None] @ region.corners
    inequalities = [lambda part: np.append(row(part) - region.low, region.high - row(part))]
    inequalities += [lambda part, l=limit: problem.slack(l, row(part)) for limit in problem.limits]
    constraints = [{'type': 'ineq', 'fun': function} for function in inequalities]
    constraints.append({'type': 'eq', 'fun': lambda part: part.sum() - 1})
    unit = np.ptp(values[np.isfinite(values)]) or 1.0  # SLSQP's tolerance is absolute
    found = [
      minimize(
        lambda part: -problem.gain(row(part))[0] / unit, start, method='SLSQP',
        bounds=[(0, 1)] * len(start), constraints=constraints, options={'ftol': 1e-10},
      ).x.clip(0)
      for start in parts[np.argsort(-values)[:4]]
    ]  # fmt: skip
    parts = np.concatenate([parts, [part / part.sum() for part in found]])
    values = gains(parts)
  return np.maximum(0, parts[values.argmax()] @ region.corners), values.max()


def _add_intervals(result: dict, problem: _Problem, region: Region, rows: np.ndarray) -> None:
  """Adds the intervals of the proposal, rows[0], among all candidates [K, C]."""
  rows = rows[region.within_bounds(rows)]
  gains, tail = problem.gain(rows, True), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
  low, high = np.quantile(gains[:, 0], tail)
  low = min(low, result['gain'] - _band(gains - problem.gain(rows), tail[1]))
  result['gain_interval'] = [float(low), float(high)]
  for limit, described in zip(problem.limits, result['limits']):
    described['kept'] = float((problem.slack(limit, rows[:1], True) >= -_SLACK).mean())
  gains = problem.feasible_gain(rows, True)
  chosen = rows[gains.argmax(axis=1)[np.isfinite(gains.max(axis=1))]]
  if len(chosen):
    ends = np.quantile(chosen, tail, axis=0).T
    result['intervals'] = dict(zip(result['shares'], ends.tolist()))


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
