"""The shares that the laws predict to be best, inside the observed range, with intervals.

`docs/design/mixing_laws.md#proposal` has the region and the simultaneous band of the gain.

Axis letters: B replicates, K candidates, M mixtures, C components.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np
from scipy import optimize

from crossin_jax.mixing_laws.law import LEVEL, SAME, Law, Shares

_CANDIDATES = 4000
_SLACK = 1e-7


@dataclasses.dataclass(frozen=True)
class Objective:
  """A weighted mean of figures: what to optimise, or, as a limit, what must not get worse.

  Attributes:
    terms: figure -> weight.
    maximise: whether more is better.
    bound: what gains are measured from; None = the value at the default shares.
  """

  terms: Mapping[str, float]
  maximise: bool
  bound: float | None = None

  def value(self, laws: Mapping[str, Law], rows: np.ndarray, replicates: bool = False):
    """[...] at shares [..., C], or [B, ...]."""
    total = sum(self.terms.values())
    return sum(
      weight / total * laws[name].predict(rows, replicates) for name, weight in self.terms.items()
    )


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
    columns = np.concatenate([self.corners.T, np.ones((1, len(self.corners)))])
    error = optimize.nnls(columns, np.append(row, 1.0))[1]
    return bool(error < 2 * SAME and self.within_bounds(row))

  def candidates(self, rng: np.random.Generator) -> np.ndarray:
    """Parts [K, M] of the corners, all over the region: corners, and mixtures of two to five."""
    shape = (_CANDIDATES, len(self.corners))
    # A mixture of all corners is never near a face, where the best often is.
    few = rng.random(shape).argsort(axis=1) < rng.integers(2, 6, (_CANDIDATES, 1))
    parts = rng.exponential(size=shape) * few
    parts = np.concatenate([np.eye(shape[1]), parts / parts.sum(axis=1, keepdims=True)])
    return parts[self.within_bounds(parts @ self.corners)]


@dataclasses.dataclass(frozen=True)
class _Problem:
  """What is to be optimised, at shares [K, C]: [K], or [B, K] of the replicates."""

  laws: Mapping[str, Law]
  objective: Objective
  default: np.ndarray
  limits: Sequence[Objective]

  def gain(self, objective: Objective, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    """Of the objective or a limit; it is kept where this is not negative."""
    value = lambda rows: objective.value(self.laws, rows, replicates)
    bound = value(self.default[None]) if objective.bound is None else objective.bound
    return (1 if objective.maximise else -1) * (value(rows) - bound)

  def feasible_gain(self, rows: np.ndarray, replicates: bool = False) -> np.ndarray:
    """The gain of the objective, or -inf where a limit is not kept."""
    kept = [self.gain(limit, rows, replicates) >= -_SLACK for limit in self.limits]
    return np.where(np.all(kept, axis=0), self.gain(self.objective, rows, replicates), -np.inf)


def propose(
  laws: Mapping[str, Law],
  objective: Objective,
  default: np.ndarray,
  region: Region,
  limits: Sequence[Objective] = (),
) -> dict:
  """The best shares of the region, with intervals by bootstrap.

  Args:
    laws: figure -> law; all with the same `Shares`.
    objective: what to optimise.
    default: float64 [C], the shares that a gain is measured against.
    region: where to look.
    limits: each on one figure.

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
  row = _best(problem, region, parts)
  described = []
  for limit in limits:
    bound = float(limit.value(laws, default)) if limit.bound is None else limit.bound
    value = None if row is None else float(limit.value(laws, row))
    limited = {'figure': next(iter(limit.terms)), 'at_least': limit.maximise, 'bound': bound}
    described.append(limited | {'value': value, 'kept': None})
  if row is None:
    return {'shares': None, 'limits': described}
  gain = float(problem.gain(objective, row[None])[0])
  measured = problem.feasible_gain(observed.mixtures).max()
  result = {
    'shares': observed.named(row),
    'limits': described,
    'value': float(objective.value(laws, row)),
    'default_value': float(objective.value(laws, default)),
    'gain': gain,
    'gain_over_best': float(gain - measured) if np.isfinite(measured) else None,
    'gain_interval': None,
    'intervals': None,
  }
  if all(len(laws[name].replicates) for one in (objective, *limits) for name in one.terms):
    _add_intervals(result, problem, np.concatenate([row[None], parts @ region.corners]))
  return result


def _best(problem: _Problem, region: Region, parts: np.ndarray) -> np.ndarray | None:
  """The best shares [C], None if no candidate is feasible; parts [K, M] of the corners."""
  rows = lambda parts: np.atleast_2d(parts) @ region.corners
  values = problem.feasible_gain(rows(parts))
  if not np.isfinite(values).any():
    return None
  unit = np.ptp(values[np.isfinite(values)]) or 1.0  # SLSQP's tolerance is absolute
  constraints = [
    optimize.LinearConstraint(np.ones(parts.shape[1]), 1, 1),
    optimize.LinearConstraint(region.corners.T, region.low, region.high),
  ]
  for limit in problem.limits:
    slack = lambda part, limit=limit: problem.gain(limit, rows(part))
    constraints.append(optimize.NonlinearConstraint(slack, 0, np.inf))
  for start in parts[np.argsort(-values)[:4]]:
    part = optimize.minimize(
      lambda part: -problem.gain(problem.objective, rows(part))[0] / unit, start, method='SLSQP',
      bounds=[(0, 1)] * len(start), constraints=constraints, options={'ftol': 1e-10},
    ).x.clip(0)  # fmt: skip
    part /= part.sum()
    if region.within_bounds(rows(part)).all():
      parts = np.concatenate([parts, part[None]])
  return np.maximum(0, rows(parts[problem.feasible_gain(rows(parts)).argmax()])[0])


def _add_intervals(result: dict, problem: _Problem, rows: np.ndarray) -> None:
  """Adds the intervals of the proposal, rows[0], among all candidates [K, C]."""
  tail = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
  gains = problem.gain(problem.objective, rows, True)
  low, high = np.quantile(gains[:, 0], tail)
  low = min(low, result['gain'] - _band(gains - problem.gain(problem.objective, rows), tail[1]))
  result['gain_interval'] = [float(low), float(high)]
  for limit, described in zip(problem.limits, result['limits']):
    described['kept'] = float((problem.gain(limit, rows[:1], True) >= -_SLACK).mean())
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
