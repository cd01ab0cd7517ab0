#!/usr/bin/env bash
# TRL 1.16.0 finds the prompt of a preference row without one as the common beginning of both texts
# (`trl.data_utils.extract_prompt`). Where one text is the beginning of the other (an answer that was
# cut off beside the full one) the loop ends without having found a difference, and the last common
# character is left out of the prompt: both answers begin with it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 transformers==5.24.0 2>&1 | grep -v WARNING || true
"$folder/venv/bin/pip" install --quiet --no-deps trl==1.16.0 accelerate==1.15.0 2>&1 | grep -v WARNING || true
cd "$folder"
"$folder/venv/bin/python" - <<'P'
from trl.data_utils import extract_prompt

full = extract_prompt({'chosen': 'Sky? Blue. Grass?', 'rejected': 'Sky? Blue. Trees?'})
cut = extract_prompt({'chosen': 'Sky? It is', 'rejected': 'Sky? It is blue.'})
print(full, cut, sep='\n')
assert full == {'prompt': 'Sky? Blue.', 'chosen': ' Grass?', 'rejected': ' Trees?'}
assert cut == {'prompt': 'Sky? It i', 'chosen': 's', 'rejected': 's blue.'}
P
echo 'as described'
