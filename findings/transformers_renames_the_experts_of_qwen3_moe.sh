#!/usr/bin/env bash
# Qwen3MoeConfig (transformers 5.24.0) reads `num_experts`, as published files have it, and saves it
# as `num_local_experts`. A reader that knows the published key only takes its own default for a
# directory that passed through save_pretrained: 128 experts, where the weights have another number.
# Read both keys.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 2>&1 | grep -v WARNING || true
cd "$folder"
"$folder/venv/bin/python" - <<'P'
import json
from transformers import Qwen3MoeConfig

config = Qwen3MoeConfig.from_dict({'model_type': 'qwen3_moe', 'num_experts': 6})
assert config.num_experts == 6
config.save_pretrained('saved')
saved = json.load(open('saved/config.json'))
print({key: value for key, value in saved.items() if 'experts' in key})
assert 'num_experts' not in saved and saved['num_local_experts'] == 6
P
echo 'as described'
