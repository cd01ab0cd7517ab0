# Sourced by the launch scripts: a virtual environment with the project and its extras, made once.

# The newest of the supported Pythons on this machine, python3 preferred.
find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo 'No Python 3.11, 3.12 or 3.13 found. On Debian or Ubuntu: sudo apt-get install python3 python3-venv; or set PYTHON=/path/to/python3.12' >&2
  return 1
}

# make_environment FOLDER EXTRA: installs the project (editable) unless that was done for this very pyproject.toml.
make_environment() {
  local folder=$1 extra=$2 stamp
  stamp="$folder/.installed-${extra:-base}-$(cksum <pyproject.toml | tr ' ' '-')"
  if [ -e "$stamp" ] && [ -x "$folder/bin/python" ]; then return; fi
  if [ ! -x "$folder/bin/python" ]; then
    local python
    python=$(find_python)
    echo "Making $folder with $($python --version)" >&2
    "$python" -m venv "$folder" || {
      rm -rf "$folder"
      echo 'python -m venv failed. On Debian or Ubuntu: sudo apt-get install python3-venv' >&2
      return 1
    }
  fi
  echo 'Installing (a few minutes the first time) ...' >&2
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
  touch "$stamp"
}
