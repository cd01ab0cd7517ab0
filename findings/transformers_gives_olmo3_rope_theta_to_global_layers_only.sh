#!/usr/bin/env bash
# Olmo3Config (transformers 5.24.0) with the rope_theta of older config.json files, beside and not in
# rope_parameters: only the global layers get it. The base of the sliding layers is the class'
# default of 500,000, because the key is taken from the arguments twice. transformers 4.57.1 used it
# in all layers. Published OLMo 3 models have 500,000, so they do not show it; a model trained with
# another base gives other logits. Write rope_parameters with one entry for each kind of layer.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 2>&1 | grep -v WARNING || true
"$folder/venv/bin/python" - <<'P'
from transformers import Olmo3Config

found = Olmo3Config(rope_theta=10_000.0, num_hidden_layers=4).rope_parameters
print(found)
assert found['full_attention']['rope_theta'] == 10_000.0
assert found['sliding_attention']['rope_theta'] == 500_000.0
P
echo 'as described'
