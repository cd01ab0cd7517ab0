"""The open sums of a metrics line: what a checkpoint holds of them is what they were when it was
saved.
"""

import copy
import types

import numpy as np

from crossin_jax.training.losses import LossSums
from crossin_jax.training.metrics import Period


def step(loss, skipped=False):
  sums = LossSums(loss, 2.0, 3.0, np.array([loss, 0.0]), np.array([2.0, 0.0]))
  return types.SimpleNamespace(sums=sums, skipped=skipped, gradient_norm=0.5)


def test_sums_that_were_handed_out_do_not_change():
  """Orbax writes them in the background, while later steps are added; kill -9 at that moment showed
  it.
  """
  period = Period(2)
  period.add(step(1.0))
  saved = period.sums
  before = copy.deepcopy(saved)
  period.add(step(2.0))
  period.add(step(4.0, skipped=True))
  assert saved == before and saved['steps'] == 1
  assert period.sums == {
    'loss': 3.0, 'weight': 4.0, 'tokens': 9.0, 'steps': 3, 'skipped': 1, 'gradient_norm': 0.5,
    'loss_by_task': [3.0, 0.0], 'weight_by_task': [4.0, 0.0],
  }  # fmt: skip
  resumed = Period(2, saved)
  resumed.add(step(2.0))
  resumed.add(step(4.0, skipped=True))
  assert resumed.sums == period.sums and saved == before
