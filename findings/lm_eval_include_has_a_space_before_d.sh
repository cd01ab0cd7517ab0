#!/usr/bin/env bash
# The INCLUDE tasks of lm-evaluation-harness 0.4.13 write their prompt as a double-quoted YAML scalar
# over two lines. YAML folds the line break into a space, so the prompt has ' D. ...' where the other
# options have no space in front; figures depend on it. Global-MMLU, on one line, has none.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps lm_eval==0.4.13 pyyaml==6.0.3 jinja2==3.1.6 \
  markupsafe==3.0.3 2>&1 | grep -v WARNING || true
cd "$folder"
"$folder/venv/bin/python" - <<'P'
import pathlib
import sysconfig

import jinja2
import yaml

tasks = pathlib.Path(sysconfig.get_path('purelib')) / 'lm_eval' / 'tasks'
doc = {'question': 'Where?', **{f'option_{letter}': letter for letter in 'abcd'}}
lines = {}
for name in ('include/default/Albanian/_albanian_template_yaml', 'global_mmlu/default/en/_en_template_yaml'):
  template = yaml.safe_load((tasks / name).read_text())['doc_to_text']
  lines[name.split('/')[0]] = jinja2.Template(template).render(doc).split('\n')
print(lines)
assert lines['include'] == ['Where?', 'A. a', 'B. b', 'C. c', ' D. d', 'Answer:']
assert lines['global_mmlu'][4] == 'D. d'
P
echo 'as described'
