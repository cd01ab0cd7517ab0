#!/usr/bin/env bash
# A Llama of transformers 5.24.0 (torch 2.13.0) in float64 is no float64 reference: its RMSNorm
# converts to float32 and back, and its rotary cosines are computed in float32 and then widened. The
# logits have dtype float64 and are exact to about seven digits only. Whether two candidate tokens
# are a tie of float32 cannot be decided with it, and a comparison at 1e-10 fails: replace both
# modules first.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 2>&1 | grep -v WARNING || true
"$folder/venv/bin/python" - <<'P'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
  vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
  num_key_value_heads=4,
)
model = LlamaForCausalLM(config).double().eval()
ids = torch.arange(48)[None]
position_ids = torch.arange(48)[None]
x = torch.randn(1, 48, 32, dtype=torch.float64)

norm = model.model.norm
exact = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
of_norm = (norm(x) - exact).abs().max().item()

rotary = model.model.rotary_emb
cos, sin = rotary(x, position_ids)
frequencies = config.rope_parameters['rope_theta'] ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
exact_cos = torch.cat([position_ids[0, :, None] * frequencies] * 2, -1).cos()
of_angles = (cos[0] - exact_cos).abs().max().item()

with torch.no_grad():
  logits = model(ids).logits
print(cos.dtype, logits.dtype, f'norm off by {of_norm:.1e}, cosines by {of_angles:.1e}')
assert logits.dtype == cos.dtype == norm(x).dtype == torch.float64
assert 1e-9 < of_norm < 1e-5 and 1e-9 < of_angles < 1e-4
P
echo 'as described'
