"""A product that is summed around a ring equals one that is summed at the end."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from crossin_jax.training import ring

jax.config.update('jax_enable_x64', True)
rng = np.random.default_rng(0)
for count in (4, 6, 8):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ('fsdp',))
  x = rng.standard_normal((count * 3, count * 2))
  d = rng.standard_normal((count * 3, 5))

  def summed(x_NE, d_NC):
    return ring.summed_product(lambda piece: piece.T @ d_NC, x_NE, 'fsdp', x_NE.dtype)

  rows = P('fsdp', None)
  found = jax.shard_map(summed, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False)
  np.testing.assert_allclose(found(x, d), x.T @ d, rtol=1e-12, atol=1e-12)
print('equal')
"""


def test_on_rings_of_several_sizes():
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True, check=False
  )
  assert done.stdout == 'equal\n', done.stderr
