#!/usr/bin/env bash
# Babel carries the names of CLDR, and a minor release may change them: between 2.16.0 and 2.19.0
# 3 names of territories change in English, 3 in Vietnamese, 20 in Swahili, and Sark (CQ) is new. A data set that is generated
# from these names, or filtered by them, is another one after `pip install -U babel`, under the same
# seed. Pin Babel beside the seed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
for version in 2.16.0 2.19.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "babel==$version" 2>&1 | grep -v WARNING || true
  "$folder/$version/bin/python" - > "$folder/$version.json" <<'P'
import json
from babel import Locale
print(json.dumps({c: dict(Locale(c).territories) for c in ('en', 'es', 'vi', 'th', 'sw')}))
P
done
FOLDER="$folder" python3 - <<'P'
import json, os
old, new = (json.load(open(f"{os.environ['FOLDER']}/{v}.json")) for v in ('2.16.0', '2.19.0'))
changed = {c: [(k, old[c].get(k), new[c].get(k)) for k in sorted({*old[c], *new[c]}) if old[c].get(k) != new[c].get(k)] for c in old}
for code, rows in changed.items():
  print(code, len(rows), rows[:3])
assert sum(map(len, changed.values())) > 0
P
echo 'as described'
