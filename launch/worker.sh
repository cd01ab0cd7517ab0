#!/usr/bin/env bash
# What the launchers run on a worker; the actions are those of launch/worker.py.
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/environment.sh
source "$launch/environment.sh"
if ! python=$(launch_python 2>/dev/null); then
  provide_python >&2
  python=$PYTHON
fi
exec "$python" "$launch/worker.py" "$@"
