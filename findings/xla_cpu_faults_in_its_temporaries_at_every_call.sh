#!/usr/bin/env bash
# XLA's CPU backend (jax 0.10.2) frees the temporaries of a program after each call, and its threads
# get theirs from malloc arenas that cannot hold a block of over 64 MiB. On Linux with glibc every
# call therefore maps new pages: a program with 256 MiB of temporaries meets 65,000 page faults a call,
# a fifth to a third of a training step. MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_ alone change
# nothing; with MALLOC_ARENA_MAX=1 beside them there are no faults. mallopt() does the same from inside
# the process, but only before JAX makes its devices: afterwards its threads have their arenas.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 2>&1 | grep -v WARNING || true
cat > "$folder/faults.py" <<'P'
import ctypes, platform, resource, sys
import jax, jax.numpy as jnp

def keep():
  libc = ctypes.CDLL(None)
  assert libc.mallopt(-8, 1) and libc.mallopt(-4, 0) and libc.mallopt(-1, -1)

if 'early' in sys.argv: keep()
x = jnp.ones((8192, 8))
if 'late' in sys.argv: keep()
step = jax.jit(lambda x: (jnp.exp(x @ x.T) @ x).sum())
faults = []
for _ in range(4):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  step(x).block_until_ready()
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
P
export JAX_PLATFORMS=cpu
run() { "$folder/venv/bin/python" "$folder/faults.py" "$@"; }
plain=$(run)
large=$(MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 run)
arena=$(MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 run)
late=$(run late)
early=$(run early)
echo "$(getconf GNU_LIBC_VERSION), page faults a call: $plain; without mmap $large; one arena $arena;" \
  "mallopt after the devices $late, before them $early"
[ "$plain" -gt 10000 ] && [ "$large" -gt 10000 ] && [ "$late" -gt 10000 ]
[ "$arena" -lt 1000 ] && [ "$early" -lt 1000 ]
echo 'as described'
