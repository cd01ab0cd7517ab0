"""Names of the tensors of a layer in Hugging Face files, and the leaves that each one has.

A tensor of several leaves concatenates them along its rows; kernels are stored transposed. Where a
tensor has all experts, see `leaves.is_packed`.
"""

_LAYER = {
  'self_attn.o_proj.weight': ('self_attention/out/kernel',),
  'self_attn.o_proj.bias': ('self_attention/out/bias',),
  'self_attn.q_norm.weight': ('self_attention/query_norm/scale',),
  'self_attn.k_norm.weight': ('self_attention/key_norm/scale',),
  'mlp.down_proj.weight': ('mlp/down/kernel',),
  'mlp.down_proj.bias': ('mlp/down/bias',),
}
_SEPARATE = {
  f'{module}.{theirs}_proj.{name}': (f'{path}/{ours}/{leaf}',)
  for module, path, pairs in (
    ('self_attn', 'self_attention', (('q', 'query'), ('k', 'key'), ('v', 'value'))),
    ('mlp', 'mlp', (('gate', 'gate'), ('up', 'up'))),
  )
  for theirs, ours in pairs
  for name, leaf in (('weight', 'kernel'), ('bias', 'bias'))
}
_FUSED = {
  'self_attn.qkv_proj.weight': tuple(
    f'self_attention/{name}/kernel' for name in ('query', 'key', 'value')
  ),
  'mlp.gate_up_proj.weight': ('mlp/gate/kernel', 'mlp/up/kernel'),
}
_FIRST_NORM = {'input_layernorm.weight': ('pre_attention_norm/scale',)}
_PRE_NORMS = {**_FIRST_NORM, 'post_attention_layernorm.weight': ('pre_mlp_norm/scale',)}
_POST_NORMS = {
  **_FIRST_NORM,
  'post_attention_layernorm.weight': ('post_attention_norm/scale',),
  'pre_feedforward_layernorm.weight': ('pre_mlp_norm/scale',),
  'post_feedforward_layernorm.weight': ('post_mlp_norm/scale',),
}
_XIELU = {
  f'mlp.act_fn.{name}': (f'mlp/activation/{name}',)
  for name in ('alpha_p', 'alpha_n', 'beta', 'eps')
}
LLAMA_TENSORS = {**_LAYER, **_SEPARATE, **_PRE_NORMS}
POST_NORM_TENSORS = {**_LAYER, **_SEPARATE, **_POST_NORMS}
FUSED_TENSORS = {**_LAYER, **_FUSED, **_PRE_NORMS}
APERTUS_TENSORS = {
  **_LAYER, **_SEPARATE, **_XIELU,
  'attention_layernorm.weight': ('pre_attention_norm/scale',),
  'feedforward_layernorm.weight': ('pre_mlp_norm/scale',),
}  # fmt: skip
# `{expert}` stands for the number of the expert.
_EXPERTS = {
  f'mlp.experts.{{expert}}.{name}_proj.weight': (f'mlp/{name}/kernel',)
  for name in ('gate', 'up', 'down')
}
_ATTENTION = {name: paths for name, paths in {**_LAYER, **_SEPARATE}.items() if 'mlp' not in name}
EXPERT_TENSORS = {
  **_ATTENTION, **_PRE_NORMS, **_EXPERTS, 'mlp.gate.weight': ('mlp/router',),
}  # fmt: skip
MIXTRAL_TENSORS = {
  **_ATTENTION, **_PRE_NORMS, 'block_sparse_moe.gate.weight': ('mlp/router',),
  **{
    f'block_sparse_moe.experts.{{expert}}.{theirs}.weight': (f'mlp/{ours}/kernel',)
    for theirs, ours in (('w1', 'gate'), ('w2', 'down'), ('w3', 'up'))
  },
}  # fmt: skip
GPT_OSS_TENSORS = {
  **_ATTENTION, **_PRE_NORMS, 'self_attn.sinks': ('self_attention/sinks',),
  'mlp.router.weight': ('mlp/router',), 'mlp.router.bias': ('mlp/router_bias',),
  **{
    f'mlp.experts.{theirs}{end}': tuple(f'mlp/{name}/{leaf}' for name in names)
    for end, leaf in (('', 'kernel'), ('_bias', 'bias'))
    for theirs, names in (('gate_up_proj', ('gate', 'up')), ('down_proj', ('down',)))
  },
}  # fmt: skip
GEMMA4_TENSORS = {**POST_NORM_TENSORS, 'layer_scalar': ('layer_scalar',)}
TOP_TENSORS = {
  'model.embed_tokens.weight': ('token_embedding',),
  'model.norm.weight': ('final_norm/scale',),
  'lm_head.weight': ('lm_head',),
}
