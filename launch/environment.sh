# shellcheck shell=bash
# Sourced by the launch scripts: Pythons, and a virtual environment with the project and its extras.

# The newest of the supported Pythons on this machine, python3 preferred.
find_python() {
  local candidate test='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
  for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c "$test" 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo 'No Python 3.11, 3.12 or 3.13 found. On Debian or Ubuntu:' \
    'sudo apt-get install python3 python3-venv; or set PYTHON=/path/to/python3.12' >&2
  return 1
}

# launch_python: a Python for launch/*.py, which need only the standard library of 3.10.
launch_python() {
  local candidate venv="${BASH_SOURCE[0]%/*}/../.venv/bin/python"
  for candidate in "${PYTHON:-python3}" python3 "$venv" python3.1{3,2,1,0}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo 'No Python 3.10 or later found; install one, or set PYTHON=/path/to/python3.12' >&2
  return 1
}

# provide_python: where no supported Python exists (TPU VMs come with 3.10), uv downloads one; sets
# PYTHON.
provide_python() {
  local uv
  if find_python >/dev/null 2>&1; then return; fi
  if ! uv=$(command -v uv || command -v "$HOME/.local/bin/uv"); then
    python3 -m pip install --quiet --user uv || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv=$HOME/.local/bin/uv
  fi
  "$uv" python install 3.12 && PYTHON=$("$uv" python find 3.12)
}

# make_environment FOLDER EXTRA: installs the project (editable), unless that was done for this very
# pyproject.toml. It returns a status for each error, because callers may have `set -e` off.
make_environment() {
  local folder=$1 extra=$2 stamp python torch cpu
  stamp="$folder/.installed-${extra:-base}-$(cksum <pyproject.toml | tr ' ' '-')"
  if [ -e "$stamp" ] && [ -x "$folder/bin/python" ]; then return; fi
  mkdir -p "$folder"
  # Jobs of a cluster that start together share the folder: one installs, the others wait.
  exec 8>"$folder/.lock"
  if command -v flock >/dev/null; then flock 8; fi
  if [ -e "$stamp" ] && [ -x "$folder/bin/python" ]; then
    exec 8>&-
    return
  fi
  if [ ! -x "$folder/bin/python" ]; then
    python=$(find_python) || return 1
    echo "Making $folder with $($python --version)" >&2
    "$python" -m venv "$folder" || {
      rm -rf "$folder"
      echo 'python -m venv failed. On Debian or Ubuntu: sudo apt-get install python3-venv' >&2
      return 1
    }
  fi
  echo 'Installing (a few minutes the first time) ...' >&2
  set -- "$folder/bin/python" -m pip install --quiet --disable-pip-version-check
  "$@" --upgrade pip || return 1
  torch=$(grep -o 'torch==[0-9.]*' pyproject.toml | head -1)
  cpu=https://download.pytorch.org/whl/cpu
  # On PyPI, torch for Linux brings several GB of CUDA along, which no test needs.
  if [ "$extra" = test ] && [ "$(uname -sm)" = 'Linux x86_64' ] &&
    curl --silent --fail --head --max-time 5 --output /dev/null "$cpu/torch/"; then
    "$@" "$torch" --index-url "$cpu" || echo "No CPU build of $torch; taking the usual one" >&2
  fi
  "$@" --editable ".${extra:+[$extra]}" || return 1
  touch "$stamp"
  exec 8>&-
}
