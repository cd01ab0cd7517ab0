#!/usr/bin/env bash
# Splash attention of jax 0.10.2 takes attention sinks in float32 beside queries in bfloat16. Its
# gradient of the sinks comes back in bfloat16, the dtype of the output, and jax.custom_vjp lets that
# pass: `jax.grad` returns a tree whose dtypes are not those of the parameters. Cast the sinks to the
# dtype of the queries before the kernel: the gradient of the cast is float32 again.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 2>&1 | grep -v WARNING || true
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

heads, length, size = 2, 128, 128
mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=True)
q = jax.random.normal(jax.random.key(0), (heads, length, size), jnp.bfloat16)
sinks = jnp.zeros(heads, jnp.float32)

def loss(sinks, cast):
  sinks = sinks.astype(q.dtype) if cast else sinks
  return kernel(q, q, q, None, sinks).astype(jnp.float32).sum()

found = {cast: jax.grad(loss)(sinks, cast).dtype for cast in (False, True)}
print(jax.__version__, {'sinks': sinks.dtype, 'gradient': found[False], 'behind a cast': found[True]})
assert found[False] == jnp.bfloat16 and found[True] == jnp.float32
P
echo 'as described'
