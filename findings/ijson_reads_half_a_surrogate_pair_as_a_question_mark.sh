#!/usr/bin/env bash
# ijson 3.6.0 with its default C backend (yajl2_c): an escape of half a surrogate pair, \ud83d alone,
# is read as "?" without an error. Python's json keeps the lone surrogate, so that a reader can count
# and skip the damaged row; behind ijson the damage cannot be told from a question mark.
# The pure Python backend of the same release keeps the surrogate.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'ijson==3.6.0' 2>&1 | grep -v WARNING || true
"$folder/env/bin/python" - <<'P'
import io, json, ijson
text = rb'["a\ud83db", "\ud83d\ude00"]'
def read(backend):
  try:
    return list(ijson.get_backend(backend).items(io.BytesIO(text), 'item'))
  except Exception as error:
    return type(error).__name__
seen = {name: read(name) for name in ('yajl2_c', 'python')}
print('json', [ascii(x) for x in json.loads(text)], {k: ascii(v) for k, v in seen.items()})
assert ijson.backend == 'yajl2_c' and seen['yajl2_c'][0] == 'a?b'
assert json.loads(text)[0] == 'a\ud83db' == seen['python'][0]
P
echo 'as described'
