#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that xpk created.
#   bash launch/gke_xpk.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
python=$(launch_python)
exec "$python" launch/gke_xpk.py "$@"
