#!/usr/bin/env bash
# PEFT 0.21.2 with target_parameters (experts of a mixture in one tensor) and a rank_pattern for them:
# it warns that the key "did not match any targeted module" and was ignored, and it applies it. Who
# believes the warning and takes the key out gets adapters of another rank.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 2>&1 \
  | grep -v WARNING || true
"$folder/venv/bin/python" - <<'P'
import warnings

from peft import LoraConfig, get_peft_model
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

config = Qwen3MoeConfig(
  vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_experts=4,
  num_experts_per_tok=2, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
)
lora = LoraConfig(
  r=2, target_modules=['q_proj'], target_parameters=['mlp.experts.gate_up_proj'],
  rank_pattern={r'.*\.gate_up_proj': 6},
)
with warnings.catch_warnings(record=True) as said:
  warnings.simplefilter('always')
  model = get_peft_model(Qwen3MoeForCausalLM(config), lora)
said = [str(w.message) for w in said if 'rank_pattern' in str(w.message)]
shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if 'experts' in n and 'lora_A' in n}
print(said, shapes)
assert len(said) == 1 and 'ignored' in said[0]
assert [shape[0] for shape in shapes.values()] == [4 * 6]  # experts times the rank of the pattern
P
echo 'as described'
