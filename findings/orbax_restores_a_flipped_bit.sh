#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a checkpoint in which one bit of a data file was flipped on the disk is
# restored without an error or a warning, with another value. (The files hold incompressible
# numbers, so that no decompressor notices.)
# Expected: an error about a checksum. Seen: restore returns, and one of the numbers differs.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'orbax-checkpoint==0.12.8' 'jax==0.10.2' 2>&1 | grep -v WARNING || true
JAX_PLATFORMS=cpu FOLDER="$folder" "$folder/env/bin/python" - <<'P'
import os, pathlib, warnings
import jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
warnings.simplefilter('ignore')
path = pathlib.Path(os.environ['FOLDER']) / 'checkpoint'
values = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
with ocp.StandardCheckpointer() as checkpointer:
  checkpointer.save(path, {'x': jnp.asarray(values)})
largest = max((p for p in path.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
content = bytearray(largest.read_bytes())
content[len(content) // 2] ^= 1
largest.write_bytes(content)
with ocp.StandardCheckpointer() as checkpointer:
  again = np.asarray(checkpointer.restore(path)['x'])
changed = int((again != values).sum())
print(f'{largest.relative_to(path)}: {changed} of {len(values)} numbers changed, no error')
assert changed == 1
P
echo 'as described'
