"""The offsets that the runs of a seed share: what a seed does to all mixtures alike."""

import dataclasses

import numpy as np

from crossin_jax.mixing_laws.forms import BEND, robust_scale


@dataclasses.dataclass(frozen=True)
class Offsets:
  """How far the figures of each seed are from the mean over the seeds.

  Attributes:
    of_seed: {seed: offset}, only of seeds that can be compared.
    remove: float64 [N, N]; `remove @ values` has the offsets subtracted.
    spent: degrees of freedom of the offsets.
    apart: some seeds share no mixture with the others, so offsets sum to zero in each group alone.
  """

  of_seed: dict[int, float]
  remove: np.ndarray
  spent: int
  apart: bool


def seed_offsets(values: np.ndarray, mixture: np.ndarray, seed: np.ndarray | None) -> Offsets:
  """Fits value = mixture + offset of the seed + noise, with Huber's loss; offsets sum to zero.

  A seed has its own order of examples, or its own world and questions. Every mixture has a
  parameter here, so neither the effect of the shares nor missing runs bias the offsets. Offsets are
  added to the figure, for fractions too: runs at or below chance have no logit.

  Args:
    values: float64 [N].
    mixture: int [N].
    seed: int [N]; None = unknown, no offsets.
  """
  count = len(values)
  seeds, column = np.unique(np.zeros(count, int) if seed is None else seed, return_inverse=True)
  group = _linked(mixture, column)
  # In a group with one mixture, the differences between seeds are its noise.
  shared = np.array([len(np.unique(mixture[group == g])) > 1 for g in group])
  is_seed = (column[:, None] == np.arange(len(seeds))) * shared[:, None]
  is_mixture = (mixture[:, None] == np.unique(mixture)).astype(float)
  spent = int(is_seed.any(axis=0).sum() - len(np.unique(group[shared])))
  remove, offsets, weights = np.eye(count), np.zeros(len(seeds)), np.ones(count)
  unit = float(np.std(values)) or 1.0
  for _ in range(50 if spent else 0):
    mean = is_mixture @ ((is_mixture * weights[:, None]).T / (weights @ is_mixture)[:, None])
    centred, root = np.eye(count) - mean, np.sqrt(weights)[:, None]
    solve = np.linalg.pinv(root * (centred @ is_seed), rcond=1e-6) @ (root * centred)
    offsets, remove = solve @ values, np.eye(count) - is_seed @ solve
    residuals = centred @ (remove @ values) / unit
    bend = BEND * robust_scale(residuals, is_mixture.shape[1] + spent)
    last, weights = weights, np.minimum(1, bend / np.maximum(np.abs(residuals), 1e-300))
    if np.abs(weights - last).max() < 1e-4:
      break
  known = is_seed.any(axis=0) & bool(spent)
  of_seed = {int(s): float(o) for s, o, has in zip(seeds, offsets, known) if has}
  return Offsets(of_seed, remove, spent, bool(shared.any() and len(np.unique(group)) > 1))


def _linked(*labels: np.ndarray) -> np.ndarray:
  """A number [N] that runs share which common labels link, directly or through other runs."""
  from scipy.sparse import coo_array, csgraph  # slow to import

  runs, first = np.arange(len(labels[0])), 0
  links = []
  for label in labels:
    first += len(runs)
    links.append(np.stack([runs, first + label]))
  rows, columns = np.concatenate(links, axis=1)
  size = int(columns.max()) + 1
  graph = coo_array((np.ones(len(rows)), (rows, columns)), (size, size))
  return csgraph.connected_components(graph, directed=False)[1][: len(runs)]
