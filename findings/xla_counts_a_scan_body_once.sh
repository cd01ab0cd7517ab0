#!/usr/bin/env bash
# jax 0.10.2 (CPU): compiled.cost_analysis()['flops'] counts the body of a scan once, however many
# iterations it has. A model of 32 scanned layers looks 32 times too cheap.
# Expected: about 16 times the FLOPs of one product. Seen: those of one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'jax==0.10.2' 2>&1 | grep -v WARNING || true
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'P'
import jax, jax.numpy as jnp
def flops(function, *arguments):
  cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
  return (cost[0] if isinstance(cost, list) else cost)['flops']
w, x = jnp.ones((16, 256, 256)), jnp.ones((256, 256))
scanned = flops(lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], w, x)
def unrolled(w, x):
  for i in range(16):
    x = x @ w[i]
  return x
plain = flops(unrolled, w, x)
print(f'unrolled {plain:.3g}, scanned {scanned:.3g}, product {2 * 256**3:.3g}')
assert plain > 15 * 2 * 256**3 and scanned < 1.5 * 2 * 256**3
P
echo 'as described'
