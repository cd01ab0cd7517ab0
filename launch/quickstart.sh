#!/usr/bin/env bash
# From a bare machine to the report: makes .venv, installs, runs `crossin quickstart`.
#   bash launch/quickstart.sh [--seeds 3] [--languages en,vi,es] ...
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment .venv ''
exec .venv/bin/crossin quickstart "$@"
