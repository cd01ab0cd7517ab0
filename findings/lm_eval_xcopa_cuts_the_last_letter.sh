#!/usr/bin/env bash
# lm-eval 0.4.13, task group xcopa: the prompt drops the last character of a premise whatever it is,
# on the assumption that it is a full stop. Thai premises end without one, so the last letter of the
# last word is lost.
# Seen: 'ฉันหิวข้าว' becomes 'ฉันหิวข้า' before the conjunction.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-deps 'lm-eval==0.4.13' 2>&1 | grep -v WARNING || true
"$folder/env/bin/python" - <<'P'
import importlib.util, pathlib, sysconfig
path = pathlib.Path(sysconfig.get_path('purelib')) / 'lm_eval' / 'tasks' / 'xcopa' / 'utils.py'
spec = importlib.util.spec_from_file_location('xcopa_utils', path)
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)
doc = {'premise': 'ฉันหิวข้าว', 'question': 'cause', 'choice1': 'a', 'choice2': 'b'}
text = utils.doc_to_text_th(doc)
print(text)
assert 'ฉันหิวข้าว' not in text and text.startswith('ฉันหิวข้า')
P
echo 'as described'
