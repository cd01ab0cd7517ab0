#!/usr/bin/env bash
# The test suite from a bare machine: makes .venv, installs the test extra, runs pytest.
#   bash launch/test.sh [-k packing] [-m "not slow"] ...
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment .venv 'test'
# Two files at a time: most tests use one core. Their order is that of tests/conftest.py.
exec env JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=2 \
  .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=5 "$@"
