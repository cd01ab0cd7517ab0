#!/usr/bin/env bash
# A pyarrow.CompressedInputStream over a Python file (pyarrow 26.0.1) closes that file when the
# stream is garbage-collected, where gzip.GzipFile leaves a file that it was given open. Peeking into
# a .zst file with one stream and reading it with a second one on the same handle ends in "read of
# closed file", at a moment that depends on the collector. Give each stream a handle of its own.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1 2>&1 | grep -v WARNING || true
"$folder/venv/bin/python" - <<'P'
import gc, gzip, io, pyarrow as pa

content = b'{"text": "a"}\n' * 100
raw = io.BytesIO(pa.compress(content, 'zstd', asbytes=True))
first = pa.CompressedInputStream(pa.PythonFile(raw, 'r'), 'zstd')
assert first.read(4) == content[:4] and not raw.closed
del first
gc.collect()
print('after the zstd stream is gone, the file is closed:', raw.closed)
assert raw.closed

raw = io.BytesIO(gzip.compress(content))
first = gzip.GzipFile(fileobj=raw)
assert first.read(4) == content[:4]
del first
gc.collect()
print('after the gzip stream is gone, the file is closed:', raw.closed)
assert not raw.closed
P
echo 'as described'
