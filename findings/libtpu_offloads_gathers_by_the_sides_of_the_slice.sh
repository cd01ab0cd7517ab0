#!/usr/bin/env bash
# libtpu 0.0.52 (jax 0.12.0.1): the option xla_tpu_enable_sparse_core_collective_offload_all_gather
# hands the all-gathers of a v6e:2x2 to the sparse cores. On a v5p:2x2x2, whose mesh axis runs over
# three sides of the slice, the same option is accepted and changes nothing: no warning, and every
# gather stays on the main core, where products wait for it. It acts only with
# ..._offload_2d_all_gather and ..._offload_3d_all_gather beside it. So look into the compiled
# program for DEVICE_TYPE_SPARSECORE before you believe a flag. No TPU is needed: libtpu compiles for
# a described slice. Needs Python 3.12 (PYTHON=... names another one).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.12.0.1 jaxlib==0.12.0.1 libtpu==0.0.52 2>&1 | grep -v WARNING || true
cd "$folder"
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost \
  TPU_ACCELERATOR_TYPE=v5litepod-4 "$folder/venv/bin/python" - 2>/dev/null <<'P'
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P


def offloaded(topology, *more):
  """Whether a layer's gather runs on sparse cores."""
  devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  mesh = Mesh(np.array(devices), ('fsdp',))
  shaped = lambda shape, *spec: jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec))
  )

  def step(x, kernels):
    whole = NamedSharding(mesh, P())
    layer = lambda x, k: (jnp.tanh(x @ jax.lax.with_sharding_constraint(k, whole)), None)
    return jax.lax.scan(layer, x, kernels)[0]

  lowered = jax.jit(step).lower(
    shaped((len(devices) * 1024, 4096), 'fsdp'), shaped((3, 4096, 4096), None, 'fsdp')
  )
  options = {'xla_tpu_enable_windowed_einsum_for_all_gather': 'false'}
  options |= {f'xla_tpu_enable_sparse_core_collective_offload_{name}': 'true' for name in more}
  text = lowered.compile(compiler_options=options).as_text()
  assert 'all-gather' in text
  return 'DEVICE_TYPE_SPARSECORE' in text


found = {
  'v6e:2x2, all_gather': offloaded('v6e:2x2', 'all_gather'),
  'v5p:2x2x2, all_gather': offloaded('v5p:2x2x2', 'all_gather'),
  'v5p:2x2x2, all three': offloaded('v5p:2x2x2', 'all_gather', '2d_all_gather', '3d_all_gather'),
}
print(jax.__version__, found)
assert list(found.values()) == [True, False, True]
P
echo 'as described'
