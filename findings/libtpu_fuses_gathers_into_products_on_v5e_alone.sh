#!/usr/bin/env bash
# libtpu 0.0.52 (jax 0.12.0.1): the options by which an asynchronous all-gather is carried along by
# fusions (xla_tpu_enable_async_collective_fusion and ..._fuse_all_gather, with
# xla_enable_async_all_gather), often listed together for any TPU, compile for a
# v5e. For v5p and v6e the compiler refuses the program with FAILED_PRECONDITION and names the chip
# by another word (viperfish, ghostlite). There sparse cores take that part. So options belong to a
# chip, not to TPUs. No TPU is needed: libtpu compiles for a described slice. Needs Python 3.12
# (PYTHON=... names another one).
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

OPTIONS = {
  'xla_tpu_enable_windowed_einsum_for_all_gather': 'false',
  'xla_enable_async_all_gather': 'true',
  'xla_tpu_enable_async_collective_fusion': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': 'true',
}


def answer(topology):
  """What the compiler says to a product with a gathered kernel."""
  devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  mesh = Mesh(np.array(devices), ('fsdp',))
  shaped = lambda shape: jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=NamedSharding(mesh, P('fsdp'))
  )
  whole = NamedSharding(mesh, P())
  step = lambda x, k: x @ jax.lax.with_sharding_constraint(k, whole)
  lowered = jax.jit(step).lower(shaped((len(devices) * 1024, 4096)), shaped((4096, 4096)))
  try:
    lowered.compile(compiler_options=OPTIONS)
  except jax.errors.JaxRuntimeError as error:
    return str(error).split(' (variant')[0]
  return 'compiles'


found = {name: answer(name) for name in ('v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')}
print(jax.__version__, found)
refused = 'FAILED_PRECONDITION: Continuation fusion for AllGather is enabled on platform'
assert found == {
  'v5e:2x2': 'compiles', 'v5p:2x2x1': f'{refused} viperfish', 'v6e:2x2': f'{refused} ghostlite'
}
P
echo 'as described'
