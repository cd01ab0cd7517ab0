#!/usr/bin/env bash
# The documentation of `param_with_axes` in flax 0.12.8 says that the initialiser of a parameter is
# called only when the parameter is first used. It is called, under eval_shape, at every trace of
# `apply` as well, to compare shapes. For a decoder of six small layers that was half of the time of
# a trace. Reading the value with `get_variable` where `has_variable` says it is there avoids it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 2>&1 | grep -v WARNING || true
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes

calls = []


def init(key, shape):
  calls.append(shape)
  return jnp.zeros(shape)


class Plain(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x @ param_with_axes('kernel', init, (x.shape[-1], 2), axes=('in', 'out'))


class Reading(nn.Module):
  @nn.compact
  def __call__(self, x):
    if self.has_variable('params', 'kernel'):
      return x @ self.get_variable('params', 'kernel')
    return x @ param_with_axes('kernel', init, (x.shape[-1], 2), axes=('in', 'out'))


x, counts = jnp.ones((1, 3)), {}
for kind in (Plain, Reading):
  params = {'params': kind().init(jax.random.key(0), x)['params']}
  calls.clear()
  for _ in range(3):
    jax.make_jaxpr(lambda p: kind().apply(p, x))(params)
  counts[kind.__name__] = len(calls)
print(counts)
assert counts == {'Plain': 3, 'Reading': 0}
P
echo 'as described'
