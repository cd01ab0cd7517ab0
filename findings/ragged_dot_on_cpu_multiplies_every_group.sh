#!/usr/bin/env bash
# jax.lax.ragged_dot (jax 0.10.2) on a CPU multiplies every row with the matrices of all groups and
# keeps one of them: the operations that XLA counts grow with the number of groups, where the rows
# and the result stay the same: a mixture of 128 experts costs 128 times its arithmetic there. For
# TPUs and GPUs it is lowered to an instruction of XLA instead. On a CPU multiply blocks of rows of
# one group each.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 2>&1 | grep -v WARNING || true
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import jax, jax.numpy as jnp

rows, inputs, outputs = 1024, 64, 32
needed = 2 * rows * inputs * outputs
for groups in (2, 8, 32):
  shapes = (
    jax.ShapeDtypeStruct((rows, inputs), jnp.float32),
    jax.ShapeDtypeStruct((groups, inputs, outputs), jnp.float32),
    jax.ShapeDtypeStruct((groups,), jnp.int32),
  )
  counted = jax.jit(jax.lax.ragged_dot).lower(*shapes).compile().cost_analysis()['flops']
  print(f'{groups} groups: {counted / needed:.1f} times the operations of the product')
  assert 0.9 * groups < counted / needed < 1.5 * groups
P
echo 'as described'
