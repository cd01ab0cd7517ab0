#!/usr/bin/env bash
# Trains on GPUs of this host, or of several hosts reached by ssh.
#   bash launch/gpu_train.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
python=$(launch_python)
exec "$python" launch/gpu_train.py "$@"
