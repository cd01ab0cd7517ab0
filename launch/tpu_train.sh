#!/usr/bin/env bash
# Trains on Cloud TPUs from this machine: creates, installs, starts, follows, restarts.
#   bash launch/tpu_train.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
python=$(launch_python)
exec "$python" launch/tpu_train.py "$@"
